"""Store once what is stored twice, and give every output of the model a value of its own.

Contract: in, a valid model; out, the same function.
"""

from __future__ import annotations

import onnx_ir as ir

from qdeploy.export.passes.values import dtype_of, equal

_SMALLEST = 64  # elements; smaller ones are left apart, under the names of their layers


def merge_weights(model: ir.Model) -> None:
    """One initializer for weights that are equal: those of a module that is called more than once. In place.

    Zero points of weights stay apart: where two int8 weights share one, onnxruntime 1.31 cannot load a model with
    session.x64quantprecision=1.
    """
    first: dict[tuple[object, ...], ir.Value] = {}
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.size < _SMALLEST:
            continue
        if tensor.dtype == ir.DataType.INT8 and (len(tensor.shape) < 2 or str(value.name).endswith(".zero_point")):
            continue
        kept = first.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if kept is not value:
            value.replace_all_uses_with(kept)
            model.graph.initializers.pop(str(value.name))


def merge_scales(model: ir.Model) -> None:
    """One initializer where a quantizer multiplies with the scale that it divided by. In place."""
    for value in list(model.graph.initializers.values()):
        owner, _, kind = str(value.name).rpartition(".")
        divided = model.graph.initializers.get(f"{owner}.scale")
        if kind == "dequantize_scale" and divided is not None and equal(divided, value):
            value.replace_all_uses_with(divided)
            model.graph.initializers.pop(str(value.name))


def separate_outputs(model: ir.Model) -> None:
    """An output that is an input, a stored tensor or another output as well becomes a copy of it. In place.

    Two values need two names, and the caller names the outputs.
    """
    seen: set[int] = set()
    for index, value in enumerate(list(model.graph.outputs)):
        if value.producer() is None or id(value) in seen:
            copy = ir.node("Identity", [value])
            copy.outputs[0].shape, copy.outputs[0].type = value.shape, ir.TensorType(dtype_of(value))
            model.graph.append(copy)
            model.graph.outputs[index] = copy.outputs[0]
        seen.add(id(value))
