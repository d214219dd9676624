"""Give a Reshape a constant shape where only one size is unknown: that size is -1.

torch writes the batch size into every shape by arithmetic on Shape(x). onnxruntime moves a quantizer through a
Reshape of constant shape, and a reader of the model sees what happens.

Contract: in, a model whose constants are initializers; out, the same function.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qdeploy.export.passes.values import initializer


def simplify(model: ir.Model) -> None:
    """Run the pass in place."""
    for node in model.graph:
        if node.op_type == "Reshape":
            sizes = _sizes(node.inputs[1])
            if sizes is not None and sizes.count(-1) <= 1 and 0 not in sizes:
                shape = initializer(model.graph, f"{node.name}.shape", np.array(sizes, np.int64))
                node.replace_input_with(1, shape)


def _sizes(value: ir.Value | None) -> list[int] | None:
    """The elements of a shape that is concatenated from constants and computed sizes; -1 for a computed one."""
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "Concat":
        return None
    sizes: list[int] = []
    for element in producer.inputs:
        if element is None:
            return None
        if element.const_value is not None:
            sizes.extend(int(size) for size in element.const_value.numpy().reshape(-1))
        else:
            sizes.append(-1)  # torch concatenates computed sizes one by one
    return sizes
