"""What onnxruntime really does on this machine, found out by running it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from qdeploy import runner

ROUNDS, BLOCK_SECONDS = 3, 0.1  # a block is as long as a cgroup's period: what its quota takes away is in every time
BUDGET_SECONDS = 1.0  # after which no round is begun: dozens of threads on one core take seconds to stop
LAYERS, CHANNELS, SIZE = 20, 32, 8


@dataclass(frozen=True, slots=True)
class Slowdown:
    """Mean time of a call of a small int8 model, in milliseconds, with two numbers of threads."""

    default_threads: int
    default_ms: float
    allowed_threads: int
    allowed_ms: float

    @property
    def ratio(self) -> float:
        """How many times slower onnxruntime's default is."""
        return self.default_ms / self.allowed_ms


def default_threads() -> int | None:
    """How many threads a session gets when nobody says how many; None where the system does not tell."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        return None
    before = len(list(tasks.iterdir()))
    # Default options on purpose: this is what code that sets none gets.
    session = ort.InferenceSession(runner.PRODUCT, providers=["CPUExecutionProvider"])
    added = len(list(tasks.iterdir())) - before
    del session
    return added + 1  # the calling thread works, too


def slowdown(default: int, allowed: int) -> Slowdown:
    """Time onnxruntime's own number of threads, which is ``default``, against ``allowed``; takes about 0.7 s.

    Means, and not medians: a thread that spins on the core which another one needs stops that for whole ticks of the
    scheduler. Most calls do not meet it and the others take a hundred times as long.
    """
    model = small_int8_model()
    feeds = {"x0": np.full((1, CHANNELS, SIZE, SIZE), 100, np.uint8)}
    sessions = (runner.make_session(model, allowed), ort.InferenceSession(model, providers=["CPUExecutionProvider"]))
    means: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for session, found in zip(sessions, means, strict=True):
            times = runner.time_block(partial(session.run, None, feeds), BLOCK_SECONDS)
            found.append(statistics.mean(times) / 1e6)
            runner.settle()  # threads that spin on would slow the other one
        if time.perf_counter() - started > BUDGET_SECONDS:
            break
    allowed_ms, default_ms = map(statistics.median, means)
    return Slowdown(default, default_ms, allowed, allowed_ms)


def small_int8_model() -> bytes:
    """LAYERS convolutions of uint8 by int8 codes, of "x0" [1, CHANNELS, SIZE, SIZE] uint8.

    Short layers, as small networks have: threads meet between them, and that is where they wait for each other.
    """
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).integers(-8, 9, (CHANNELS, CHANNELS, 3, 3), np.int8)
    constants = {"w": weights, "zero_w": np.int8(0), "zero": np.uint8(0)}
    constants |= {"scale": np.float32(1), "scale_w": np.float32(0.02)}  # the codes neither die out nor all reach 255
    grid = ["scale", "zero"]
    nodes = [
        helper.make_node(
            "QLinearConv", [f"x{i}", *grid, "w", "scale_w", "zero_w", *grid], [f"x{i + 1}"], pads=[1, 1, 1, 1]
        )
        for i in range(LAYERS)
    ]
    shape = [1, CHANNELS, SIZE, SIZE]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x0", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(f"x{LAYERS}", TensorProto.UINT8, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())
