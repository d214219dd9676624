"""What a table and a softmax cost in each form: the tables of docs/transformers.md, measured on this machine.

python benchmarks/transformer_kernels.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qdeploy.runtimes.onnxruntime import Runtime

ROWS, CHANNELS, READ = 24_000, 64, 800
HEADS, TOKENS = 12, 197
CALLS = 300
MICROSOFT = "com.microsoft"

Array = NDArray[np.generic]
Forms = Mapping[str, bytes]


def model(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array], x: Array) -> bytes:
    """A model of ``nodes`` from "x" to "y"."""
    first = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
    graph = helper.make_graph(
        list(nodes), "g", [first], [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString()


def tables(ids: Array) -> Forms:
    """The forms of a table that is looked up."""
    rng, node = np.random.default_rng(0), helper.make_node
    codes = rng.integers(-127, 128, (ROWS, CHANNELS), np.int8)
    scales = rng.uniform(0.001, 0.002, ROWS).astype(np.float32)
    zeros = np.zeros(ROWS, np.int8)
    stored = {"codes": codes, "scales": scales, "zeros": zeros}
    blocks = {"codes": (codes.astype(np.int16) + 128).astype(np.uint8), "scales": scales[:, None]}
    return {
        "float32 Gather": model([node("Gather", ["t", "x"], ["y"])], {"t": codes * scales[:, None]}, ids),
        "Gather of codes, Cast, Gather of scales, Mul": model(
            [
                node("Gather", ["codes", "x"], ["c"]),
                node("Cast", ["c"], ["f"], to=onnx.TensorProto.FLOAT),
                node("Gather", ["scales", "x"], ["s"]),
                node("Mul", ["f", "s"], ["y"]),
            ],
            {"codes": codes, "scales": scales[:, None]},
            ids,
        ),
        "com.microsoft.GatherBlockQuantized, 8 bits": model(
            [
                node(
                    "GatherBlockQuantized",
                    ["codes", "x", "scales"],
                    ["y"],
                    domain=MICROSOFT,
                    block_size=CHANNELS,
                    bits=8,
                )
            ],
            blocks,
            ids,
        ),
        "DequantizeLinear, Gather, as torch exports it": model(
            [
                node("DequantizeLinear", ["codes", "scales", "zeros"], ["t"], axis=0),
                node("Gather", ["t", "x"], ["y"]),
            ],
            stored,
            ids,
        ),
    }


def softmaxes(logits: Array) -> Forms:
    """A softmax of what a product in integers gives, float32, to the codes that the next product reads."""
    node = helper.make_node
    constants = {
        "scale": np.array(0.05, np.float32), "zero": np.array(128, np.uint8),
        "out": np.array(1 / 256, np.float32), "none": np.array(0, np.uint8),
    }  # fmt: skip
    there = ["scale", "zero", "out", "none"]
    return {
        "QuantizeLinear, com.microsoft.QLinearSoftmax": model(
            [
                node("QuantizeLinear", ["x", "scale", "zero"], ["c"]),
                node("QLinearSoftmax", ["c", *there], ["y"], domain=MICROSOFT, axis=-1, opset=21),
            ],
            constants,
            logits,
        ),
        "Softmax, QuantizeLinear": model(
            [node("Softmax", ["x"], ["p"], axis=-1), node("QuantizeLinear", ["p", "out", "none"], ["y"])],
            constants,
            logits,
        ),
    }


def medians(forms: Forms, x: Array) -> dict[str, float]:
    """The median time of a call in microseconds, on one thread, the calls of all forms in turn."""
    runtimes = {name: Runtime(content, threads=1) for name, content in forms.items()}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(CALLS):
        for name, runtime in runtimes.items():
            start = time.perf_counter()
            runtime.run({"x": x})
            times[name].append(1e6 * (time.perf_counter() - start))
    return {name: statistics.median(taken) for name, taken in times.items()}


def show(title: str, forms: Callable[[Array], Forms], x: Array) -> None:
    """Print one table."""
    print(f"\n{title}\n\n| Form | Time |\n|---|---|")  # noqa: T201
    for name, taken in medians(forms(x), x).items():
        print(f"| {name} | {taken:.0f} us |")  # noqa: T201


def main() -> None:
    """Print the tables."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (1, HEADS, TOKENS, TOKENS)).astype(np.float32)
    show(f"{READ} of {ROWS:,} rows of {CHANNELS}", tables, rng.integers(0, ROWS, READ))
    show(f"Softmax, {HEADS} heads of {TOKENS} by {TOKENS}", softmaxes, logits)


if __name__ == "__main__":
    main()
