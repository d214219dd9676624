"""The layers of any ONNX model as records, without data: for ``qdeploy inspect``."""

from __future__ import annotations

import onnx

from qdeploy.core.records import Layer
from qdeploy.quant.fusion_table import reason_for_float
from qdeploy.runtimes.onnxruntime import optimized_graph
from qdeploy.verify.artifact import IntegerLayer, integer_layers, parse
from qdeploy.verify.coverage import Coverage, kernels_by_layer, runs_in_integers
from qdeploy.verify.lookups import LOOKUP


def layers_of(model: bytes, found: Coverage) -> tuple[Layer, ...]:
    """Every layer that multiplies or is quantized, in graph order, with bits and the kernel that runs it here."""
    proto = parse(model)
    kernels = kernels_by_layer(onnx.load_from_string(optimized_graph(proto.SerializeToString())), proto)
    quantized = {layer.name: layer for layer in integer_layers(proto)}
    covered = {layer.name: layer for layer in found.layers}
    records = []
    for node in proto.graph.node:
        layer, integer = covered.get(node.name), quantized.get(node.name)
        if layer is None and (integer is None or (integer.output is None and integer.op != LOOKUP)):
            continue
        value = integer.output.name if integer is not None and integer.output is not None else node.name
        op = integer.op if integer is not None else node.op_type
        kernel = layer.kernel if layer else op if op == LOOKUP else kernels.get(node.name) or kernels.get(value) or op
        runs = layer.integer if layer else runs_in_integers([kernel])
        records.append(
            Layer(
                name=node.name,
                op=op,
                kernel=kernel,
                integer=runs,
                reason="" if runs else layer.reason if layer else reason_for_float(op),
                macs=layer.macs if layer else 0,
                weight_bits=_weight_bits(integer),
                activation_bits=integer.output.scheme.bits if integer and integer.output else None,
            )
        )
    return tuple(records)


def _weight_bits(layer: IntegerLayer | None) -> int | None:
    """The width at which the codes lie packed in the file; the fewest bits that hold them where a code takes a byte."""
    weights = [x for x in layer.inputs if x.constant is not None] if layer else []
    codes = weights[0].constant if weights else None
    if codes is None or codes.size == 0:
        return None
    if weights[0].stored < codes.size:
        return 8 * weights[0].stored // codes.size
    reach = max(int(codes.max()), -int(codes.min()) - 1, 0)
    return min(max(reach.bit_length() + 1, 1), 8)
