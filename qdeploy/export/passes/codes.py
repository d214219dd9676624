"""Do on integer codes what onnxruntime would otherwise do on dequantized values, between two integer layers.

* DequantizeLinear -> Pad -> QuantizeLinear of one scale and zero point is a Pad of the codes, with the zero point for
  zeros: it moves values, but onnxruntime has no rule for it.
* Clip -> QuantizeLinear is QuantizeLinear -> Clip of the codes. Quantizing is monotone, so both give the same codes;
  a float32 Clip in between would keep the layer before it from running in integers.

Contract: in, a model whose constants are initializers; out, the same function, bit for bit.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qdeploy.core import affine
from qdeploy.core.scheme import QScheme
from qdeploy.export.passes.values import array, dtype_of, equal, initializer


def on_codes(model: ir.Model) -> None:
    """Run both rewrites in place."""
    for node in reversed(list(model.graph)):  # of two clips in a row, the second first
        if node.op_type == "Pad":
            _pad(model.graph, node)
        elif node.op_type == "Clip":
            _clip(model.graph, node)


def _pad(graph: ir.Graph, pad: ir.Node) -> None:
    dequantize, quantize = pad.inputs[0].producer() if pad.inputs[0] else None, _only_quantizer(pad)
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or quantize is None:
        return
    if not all(equal(a, b) for a, b in zip(dequantize.inputs[1:], quantize.inputs[1:], strict=True)):
        return
    if len(pad.inputs) > 2 and pad.inputs[2] is not None:
        if array(pad.inputs[2]) != 0:
            return
        pad.replace_input_with(2, quantize.inputs[2])
    pad.replace_input_with(0, dequantize.inputs[0])
    codes = quantize.outputs[0]
    pad.outputs[0].type = ir.TensorType(dtype_of(quantize.inputs[2]))
    codes.replace_all_uses_with(pad.outputs[0])
    graph.remove(quantize, safe=True)


def _clip(graph: ir.Graph, clip: ir.Node) -> None:
    quantize = _only_quantizer(clip)
    if quantize is None:
        return
    scale, zero_point = array(quantize.inputs[1]), array(quantize.inputs[2])
    limits = [array(value) if value is not None else None for value in (*clip.inputs[1:], None)][:2]
    given = [value is not None for value in (*clip.inputs[1:], None)][:2]
    if scale is None or zero_point is None or [limit is not None for limit in limits] != given:
        return
    scheme = QScheme(8, signed=zero_point.dtype == np.int8)
    quantize.replace_input_with(0, clip.inputs[0])
    codes = quantize.outputs[0]
    codes.replace_all_uses_with(clip.outputs[0])
    clip.replace_input_with(0, codes)
    for index, limit in enumerate(limits, start=1):
        if limit is not None:
            code = affine.quantize(limit.reshape(()), scale, zero_point, scheme)
            clip.replace_input_with(index, initializer(graph, f"{clip.name}.limit{index}", code))
    clip.outputs[0].dtype = ir.DataType.from_numpy(zero_point.dtype)
    graph.remove(clip)
    graph.insert_after(quantize, clip)


def _only_quantizer(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear that is the only reader of a node's output."""
    readers = node.outputs[0].uses()
    if len(readers) != 1 or node.outputs[0].is_graph_output():
        return None
    reader = next(iter(readers)).node
    return reader if reader.op_type == "QuantizeLinear" and len(reader.inputs) == 3 else None
