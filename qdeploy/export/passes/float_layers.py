"""Keep the float32 weights of a layer between quantizers from being quantized behind the model's back.

When a session is created, onnxruntime (WeightBiasQuantization, since 1.21) rounds the float32 weights of a Conv,
ConvTranspose or Gemm between a DequantizeLinear and a QuantizeLinear to int8, with one scale for the whole tensor. A
layer that stays in float32 on purpose would lose what it was kept for, and a ConvTranspose is slower for it as well.
It does so only where the input has a scalar scale: the same scale once a channel means the same and is left alone.

Contract: in, a model whose constants are initializers; out, the same function, bit for bit.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qdeploy.export.passes.values import array, initializer

_CHANNEL_AXIS = {"Conv": 1, "ConvTranspose": 0, "Gemm": 1}  # of the weight: what meets the channels of the input


def protect(model: ir.Model) -> None:
    """Give every such layer a DequantizeLinear of its own, with the scale once a channel, in place."""
    for node in list(model.graph):
        if node.op_type in _CHANNEL_AXIS and node.inputs[0] is not None and node.inputs[1] is not None:
            dequantize, weight = node.inputs[0].producer(), node.inputs[1].const_value
            if dequantize is not None and dequantize.op_type == "DequantizeLinear" and weight is not None:
                _protect(model.graph, node, dequantize, weight.numpy())


def _protect(graph: ir.Graph, node: ir.Node, dequantize: ir.Node, weight: np.ndarray) -> None:
    axis = _CHANNEL_AXIS[node.op_type]
    if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0):
        axis = 0
    channels = weight.shape[axis] * (node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1)
    codes, *parameters = dequantize.inputs
    arrays = [array(value) for value in parameters]
    if any(parameter is None or parameter.ndim for parameter in arrays):
        return
    name = f"{node.name}.input"
    repeated = [
        initializer(graph, f"{name}.{kind}", np.full(channels, parameter))
        for kind, parameter in zip(("scale", "zero_point"), arrays, strict=False)
    ]
    own = ir.node("DequantizeLinear", [codes, *repeated], attributes={"axis": 1}, name=name)
    own.outputs[0].dtype, own.outputs[0].shape = ir.DataType.FLOAT, node.inputs[0].shape  # type: ignore[union-attr]
    own.metadata_props.update(dequantize.metadata_props)
    graph.insert_before(node, own)
    node.replace_input_with(0, own.outputs[0])
