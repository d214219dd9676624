"""Clip codes once: merge two Clips of codes in a row, and drop one whose codes cannot leave its limits.

A quantizer of fewer than 8 bits is a QuantizeLinear and a Clip of the codes. A value that was only moved (MaxPool,
Reshape ...) carries the quantizer of its source a second time, and there the Clip changes nothing. The codes that enter
lie within the limits. DequantizeLinear and QuantizeLinear of one scale give back every code: (c - z) * s / s differs
from the integer c - z by two float32 roundings, less than 2**-14 for 8-bit codes, and is rounded back to it. What moves
values only picks among them, or adds zeros, whose code is the zero point.

Contract: in, a model whose constants are initializers; out, the same function, bit for bit.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qdeploy.export.passes.values import array
from qdeploy.quant.fusion_table import TABLE, Role

_MOVES = frozenset(row.onnx for row in TABLE if row.role is Role.MOVE) | {"Identity", "Flatten"}


def drop_redundant(model: ir.Model) -> None:
    """Drop the Clips of moved codes, in place."""
    for node in list(model.graph):
        limits, seen = code_limits(node), _reach(node.inputs[0]) if node.op_type == "Clip" else None
        if limits is not None and seen is not None and limits[0] <= seen[0] and seen[1] <= limits[1]:
            _remove(model.graph, node)


def merge(model: ir.Model) -> None:
    """Make one Clip of two in a row, with the limits of both, in place; the first keeps its place and name."""
    for node in list(model.graph):
        source = node.inputs[0].producer() if node.op_type == "Clip" and node.inputs[0] is not None else None
        inner, outer = code_limits(source), code_limits(node)
        if source is None or inner is None or outer is None or len(source.outputs[0].uses()) > 1:
            continue
        # Clips are monotone: what the second does to the limits of the first, it does to all that lies between them.
        source.resize_inputs(3)
        for index, limit in enumerate(inner, start=1):
            if limit < outer[0]:
                source.replace_input_with(index, node.inputs[1])
            elif limit > outer[1]:
                source.replace_input_with(index, node.inputs[2])
        _remove(model.graph, node)


def code_limits(node: ir.Node | None) -> tuple[int, int] | None:
    """The limits of a Clip of codes; None for any other node."""
    if node is None or node.op_type != "Clip":
        return None
    given = [value for value in node.inputs[1:] if value is not None]
    low, high = (array(value) for value in (*node.inputs[1:], None, None)[:2])
    stored = [limit for limit in (low, high) if limit is not None]
    if not stored or len(stored) < len(given) or stored[0].dtype not in (np.uint8, np.int8):
        return None
    container = np.iinfo(stored[0].dtype)
    return int(container.min if low is None else low), int(container.max if high is None else high)


def _reach(codes: ir.Value | None) -> tuple[int, int] | None:
    """Limits that codes cannot leave as they come from a Clip, moved on the way or not; None where nobody knows."""
    producer = codes.producer() if codes is not None else None
    if producer is None or producer.op_type != "QuantizeLinear":
        return code_limits(producer)
    source = producer.inputs[0].producer() if producer.inputs[0] is not None else None
    while source is not None and _moves(source):
        source = source.inputs[0].producer() if source.inputs[0] is not None else None
    if source is None or source.op_type != "DequantizeLinear" or not _same_parameters(source, producer):
        return None
    limits, zero_point = _reach(source.inputs[0]), array(source.inputs[2])
    return limits if limits and zero_point is not None and limits[0] <= zero_point <= limits[1] else None


def _moves(node: ir.Node) -> bool:
    if node.op_type == "Pad":
        value = node.inputs[2] if len(node.inputs) > 2 else None
        return value is None or array(value) == 0
    if node.op_type == "Resize":
        return node.attributes.get_string("mode", "nearest") == "nearest"
    return node.op_type in _MOVES


def _same_parameters(dequantize: ir.Node, quantize: ir.Node) -> bool:
    """Whether scale and zero point are scalars and the same."""
    pairs = [(array(a), array(b)) for a, b in zip(dequantize.inputs[1:], quantize.inputs[1:], strict=False)]
    return len(pairs) == 2 and all(a is not None and b is not None and a.ndim == 0 and a == b for a, b in pairs)


def _remove(graph: ir.Graph, clip: ir.Node) -> None:
    source = clip.inputs[0]
    assert source is not None
    clip.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(clip, safe=True)
