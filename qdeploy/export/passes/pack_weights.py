"""Store weights of fewer than 8 bits at their true width, so that they still run in integer kernels.

onnxruntime fuses a layer into an integer kernel where its weight is a stored int8 tensor. An INT4 weight behind a
DequantizeLinear is none, and the layer stays float32; but what is computed from stored tensors alone is computed when
the model is loaded, before layers are fused. So:

* contiguous codes of 4 bits are an INT4 tensor and a Cast to int8;
* every other width, and every codebook, is a uint8 tensor of exactly ceil(n * bits / 8) bytes and a call of a function
  that the model itself defines, once for all layers, out of standard operators.

The layout. A weight's index is its code in two's complement, or the code's place in the codebook. The bits of the index
are cut into fields whose widths are powers of two, the widest first and lowest: 7 = 4 + 2 + 1. The bytes hold the first
field of all n weights, then the second, then the third, each from the lowest bit of a byte up. A field's width divides
all that lies before it, so no field crosses a byte, and bytes are decoded by looking them up in a table.

Contract: in, a model whose integer weights are int8 initializers; out, the same function, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qdeploy.core.scheme import QScheme
from qdeploy.export.passes.values import initializer, store_as

DOMAIN = "qdeploy"


def pack(model: ir.Model, weights: Iterable[tuple[ir.Value, QScheme]]) -> None:
    """Store these initializers, the codes of weights, packed, in place; those of 8 bits are left as they are."""
    functions: dict[tuple[QScheme, bool], ir.Function] = {}
    for value, scheme in weights:
        if value.graph is not model.graph:  # merged with an equal weight
            continue
        assert value.const_value is not None
        codes, name = value.const_value.numpy(), f"{value.name}:codes"
        if scheme.bits == 8 or codes.size == 0:
            continue
        if scheme.bits == 4 and scheme.codebook is None:
            to = ir.DataType.INT4 if scheme.signed else ir.DataType.UINT4
            container = {"to": ir.DataType.from_numpy(scheme.dtype)}
            store_as(model.graph, value, codes.astype(to.numpy()), "Cast", name=name, attributes=container)
            continue
        ragged = any(codes.size * width % 8 for width, _ in _fields(scheme.bits))
        key = QScheme(scheme.bits, scheme.signed, codebook=scheme.codebook), ragged  # symmetric or not is all the same
        if key not in functions:
            functions[key] = _add_function(model, *key)
        shape = _shape(model.graph, codes.shape)
        store_as(model.graph, value, packed_bytes(codes, scheme), functions[key].name, shape, name=name, domain=DOMAIN)


def packed_bytes(codes: np.ndarray, scheme: QScheme) -> np.ndarray:
    """The codes of a weight in the layout of this module: uint8 [ceil(codes.size * bits / 8)]."""
    index = np.searchsorted(scheme.codebook, codes) if scheme.codebook is not None else codes
    flat = index.reshape(-1, 1).astype(np.uint8)
    fields = [flat >> np.arange(shift, shift + width, dtype=np.uint8) & 1 for width, shift in _fields(scheme.bits)]
    return np.packbits(np.concatenate([field.reshape(-1) for field in fields]), bitorder="little")


def _fields(bits: int) -> list[tuple[int, int]]:
    """Width and place of each field of an index: 7 bits are (4, 0), (2, 4), (1, 6)."""
    widths = [width for width in (4, 2, 1) if bits & width]
    return [(width, sum(widths[:i])) for i, width in enumerate(widths)]


def _code_of_index(scheme: QScheme) -> np.ndarray:
    """The code that each index means: [2**bits] of the scheme's dtype."""
    index = np.arange(2**scheme.bits)
    if scheme.codebook is not None:
        return np.asarray(scheme.codebook, scheme.dtype)[np.minimum(index, scheme.levels - 1)]
    return np.where(scheme.signed & (index > scheme.qmax), index - len(index), index).astype(scheme.dtype)


def _shape(graph: ir.Graph, sizes: Sequence[int]) -> ir.Value:
    """The shape of a weight as a tensor, which weights of one shape share."""
    name = "shape:" + "x".join(map(str, sizes))
    return graph.initializers.get(name) or initializer(graph, name, np.array(sizes, np.int64))


def _add_function(model: ir.Model, scheme: QScheme, ragged: bool) -> ir.Function:
    """Define how weights of one scheme are unpacked: (bytes uint8 [B], shape int64 [rank]) -> codes [shape].

    ``ragged``: whether a field of all weights may end inside a byte, where the next one begins.
    """
    body = _Body(ragged)
    meaning, fields = _code_of_index(scheme), _fields(scheme.bits)
    # A code is the bitwise or of what the fields of its index mean; a place in a codebook is looked up as a whole.
    by_place = scheme.codebook is not None and len(fields) > 1
    means = np.arange(2**scheme.bits, dtype=np.uint8) if by_place else meaning
    codes = body.field(*fields[0], means, only=len(fields) == 1)
    for field in fields[1:]:
        codes = body.add("BitwiseOr", codes, body.field(*field, means))
    if by_place:
        codes = body.look_up(body.constant(meaning), codes)
    codes.name = "codes"
    graph = ir.Graph(body.inputs, [codes], nodes=body.nodes, opset_imports={"": model.graph.opset_imports[""]})
    for node in body.nodes:
        node.name = None  # the file is smaller without
    name = f"unpack_{scheme.bits}bit" + "_codebook" * (scheme.codebook is not None) + "_ragged" * ragged
    alike = sum(function.name.startswith(name) for function in model.functions.values())
    function = ir.Function(DOMAIN, f"{name}_{alike + 1}" if alike else name, graph=graph, attributes={})
    model.functions[function.identifier()] = function
    model.graph.opset_imports[DOMAIN] = 1
    return function


class _Body:
    """The nodes of such a function, as they are added."""

    def __init__(self, ragged: bool) -> None:
        self.nodes: list[ir.Node] = []
        self.ragged = ragged
        self.inputs = self.packed, self.shape = ir.Value(name="packed"), ir.Value(name="shape")
        self.n = self.add("ReduceProd", self.shape, keepdims=1)
        self.bytes = self.constant(np.arange(256, dtype=np.uint8)[:, None])  # every byte there is

    def field(self, width: int, place: int, meaning: np.ndarray, *, only: bool = False) -> ir.Value:
        """What one field of every weight means, [shape]; ``meaning`` [2**bits] is that of an index."""
        values = self.look_up(self._of_bytes(width, place, meaning), self.packed if only else self._slice(width, place))
        if self.ragged:
            start = self._divide(self.add("Mod", self._times(place), self._integer(8)), width)
            flat = self.add("Reshape", values, self._integer(-1))
            values = self.add("Slice", flat, start, self.add("Add", start, self.n))
        return self.add("Reshape", values, self.shape)

    def look_up(self, table: ir.Value, index: ir.Value) -> ir.Value:
        return self.add("Gather", table, self.add("Cast", index, to=ir.DataType.INT32))

    def add(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        self.nodes.append(ir.node(op_type, inputs, attributes=attributes))
        return self.nodes[-1].outputs[0]

    def constant(self, array: np.ndarray) -> ir.Value:
        return self.add("Constant", value=ir.tensor(array))

    def _of_bytes(self, width: int, place: int, meaning: np.ndarray) -> ir.Value:
        """What the 8 / width fields in each byte mean: [256, 8 / width]. Computed: it is large beside a small model."""
        places = self.constant(np.arange(0, 8, width, dtype=np.uint8))
        shifted = self.add("BitShift", self.bytes, places, direction="RIGHT")
        fields = self.add("BitwiseAnd", shifted, self.constant(np.array(2**width - 1, np.uint8)))
        return self.look_up(self.constant(meaning[np.arange(2**width) << place]), fields)

    def _slice(self, width: int, place: int) -> ir.Value:
        """The bytes that hold a field of all weights."""
        last = self.add("Add", self._times(place + width), self._integer(7))
        return self.add("Slice", self.packed, self._divide(self._times(place), 8), self._divide(last, 8))

    def _times(self, bits: int) -> ir.Value:
        return self.add("Mul", self.n, self._integer(bits))

    def _divide(self, value: ir.Value, divisor: int) -> ir.Value:
        return self.add("Div", value, self._integer(divisor))

    def _integer(self, value: int) -> ir.Value:
        return self.add("Constant", value_ints=[value])
