"""The layers of any ONNX model as records, without data: for ``qdeploy inspect``."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.core.records import Layer
from qdeploy.quant.fusion_table import reason_for_float
from qdeploy.runtimes.onnxruntime import optimized_graph
from qdeploy.verify.artifact import IntegerLayer, integer_layers, parse
from qdeploy.verify.coverage import Coverage, kernels_by_layer, runs_in_integers
from qdeploy.verify.dynamic import DynamicLayer, dynamic_layers
from qdeploy.verify.lookups import LOOKUP


def layers_of(model: bytes, found: Coverage) -> tuple[Layer, ...]:
    """Every layer that multiplies or is quantized, in graph order, with bits and the kernel that runs it here."""
    proto = parse(model)
    kernels = kernels_by_layer(onnx.load_from_string(optimized_graph(proto.SerializeToString())), proto)
    quantized = {layer.name: layer for layer in integer_layers(proto)}
    dynamic = {layer.name: layer for layer in dynamic_layers(proto)}
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
                weight_bits=_weight_bits(integer or dynamic.get(node.name)),
                activation_bits=integer.output.scheme.bits if integer and integer.output else None,
            )
        )
    return tuple(records)


def _weight_bits(layer: IntegerLayer | DynamicLayer | None) -> int | None:
    """The width at which the codes lie packed in the file; the fewest bits that hold them where a code takes a byte."""
    if isinstance(layer, DynamicLayer):
        return _bits(
            np.concatenate([layer.stored[key].reshape(-1) for key in ("w", "r") if key in layer.stored]), layer.bytes
        )
    weights = [x for x in layer.inputs if x.constant is not None] if layer else []
    return None if not weights or weights[0].constant is None else _bits(weights[0].constant, weights[0].stored)


def _bits(codes: NDArray[Any], stored: int) -> int | None:
    if codes.size == 0:
        return None
    if stored < codes.size:
        return 8 * stored // codes.size
    reach = max(int(codes.max()), -int(codes.min()) - 1, 0)
    return min(max(reach.bit_length() + 1, 1), 8)
