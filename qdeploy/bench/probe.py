"""What onnxruntime really does on this machine, found out by running it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from qdeploy import runner

DEPTH = 64  # products in one sum: enough for the vector kernels


def default_threads() -> int | None:
    """How many threads a session gets when nobody says how many; None where the system does not tell."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        return None
    before = len(list(tasks.iterdir()))
    # Default options on purpose: this is what code that sets none gets.
    session = ort.InferenceSession(_product_model(), providers=["CPUExecutionProvider"])
    added = len(list(tasks.iterdir())) - before
    del session
    return added + 1  # the calling thread works, too


def saturates() -> bool:
    """Whether products of uint8 activations and int8 weights saturate at int16 on the way to int32.

    Two products of 255 x 127 need 17 bits; CPUs without VNNI add them in 16 (VPMADDUBSW).
    """
    session = runner.make_session(_product_model(), 1)
    (result,) = session.run(None, {"codes": np.full((1, DEPTH), 255, np.uint8)})
    return bool(np.any(result != 255 * 127 * DEPTH))


def _product_model() -> bytes:
    """One MatMulInteger: uint8 [1, DEPTH] x int8 [DEPTH, 16], all weights 127."""
    weights = numpy_helper.from_array(np.full((DEPTH, 16), 127, np.int8), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["codes", "weights"], ["sums"])],
        "product",
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, [1, DEPTH])],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, [1, 16])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())
