"""Look rows up among integer codes, and give them their scales afterwards.

torch writes a look-up in a quantized table as DequantizeLinear -> Gather, which computes all of the table for every
input: for 800 of 24,000 rows of 64 that took 0.43 ms, where the rows alone take 0.03 ms. A row's codes and its scale
are gathered instead, and multiplied: the same product of two float32 numbers. All operators are standard ones;
com.microsoft's GatherBlockQuantized took twice as long.

Contract: in, a model whose constants are initializers; out, the same function, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from qdeploy.export.passes.values import array, dtype_of, initializer

_LAST = "last axis"  # the initializer that look-ups share


def on_codes(model: ir.Model) -> None:
    """Rewrite every look-up in a table with a scale a row, in place."""
    for node in list(model.graph):
        source = node.inputs[0].producer() if node.op_type == "Gather" and node.inputs[0] is not None else None
        if source is not None and source.op_type == "DequantizeLinear" and _is_table(node, source):
            _rewrite(model.graph, node, source)


def _is_table(gather: ir.Node, dequantize: ir.Node) -> bool:
    """Whether rows are picked along the axis of the scales, and the zero points are 0."""
    codes, scale, zero_point = (array(value) for value in (*dequantize.inputs, None)[:3])
    axes = gather.attributes.get_int("axis", 0), dequantize.attributes.get_int("axis", 1)
    stored = codes is not None and codes.ndim == 2 and scale is not None and scale.ndim == 1
    return stored and axes == (0, 0) and (zero_point is None or not zero_point.any())


def _rewrite(graph: ir.Graph, gather: ir.Node, dequantize: ir.Node) -> None:
    (codes, scale), indices, rows = dequantize.inputs[:2], gather.inputs[1], gather.outputs[0]

    def add(op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes)
        node.metadata_props.update(gather.metadata_props)
        graph.insert_before(gather, node)
        return node.outputs[0]

    real = add("Cast", add("Gather", codes, indices, axis=0), to=ir.DataType.FLOAT)
    last = graph.initializers.get(_LAST) or initializer(graph, _LAST, np.array([-1], np.int64))
    product = add("Mul", real, add("Unsqueeze", add("Gather", scale, indices, axis=0), last))
    product.shape, product.type = rows.shape, ir.TensorType(dtype_of(rows))
    rows.replace_all_uses_with(product, replace_graph_outputs=True)
    graph.remove(gather, safe=True)
