"""Readable, stable names: a layer of the PyTorch model keeps its name as the name of its node.

Contract: in, a model fresh from torch.onnx, whose nodes say in their metadata which layer they belong to; out,
the same model where the node of layer L and its value are called L, the codes of a quantized value "L:codes" ("L:wide"
before they are clipped to fewer than 8 bits), its dequantized form "L:real", and a layer's integer weights "L.weight".
Names depend on the model alone.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
_OUTPUT = ".output_quantizer"
_QUANTIZERS = (
    *(_OUTPUT, ".weight_quantizer", ".bias_quantizer"), ".weight_ih_quantizer", ".weight_hh_quantizer"
)  # fmt: skip


def assign(model: ir.Model, *, outputs: Sequence[str]) -> None:
    """Name nodes, values, initializers and outputs, in place."""
    _rename_initializers(model)
    nodes: set[str] = set()
    values = {str(value.name) for value in (*model.graph.inputs, *model.graph.initializers.values())} | set(outputs)
    # A layer may have become several ONNX nodes: the last one computes its value and gets the plain name.
    last = {scope: node for node in model.graph if (scope := _scope(node))}
    quantized: set[str] = set()
    for node in model.graph:
        scope = _scope(node)
        node.name = _unique(_name(node, scope, quantized, is_last=last.get(scope) is node), nodes)
        for index, value in enumerate(node.outputs):
            value.name = _unique(node.name if index == 0 else f"{node.name}.{index}", values)
        _name_constants(node, values)
    for name, value in zip(outputs, model.graph.outputs, strict=True):
        value.name = name
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape([size if isinstance(size, int) else ("batch" if axis == 0 else str(size))
                                for axis, size in enumerate(value.shape)])  # fmt: skip


def _name(node: ir.Node, scope: str, quantized: set[str], *, is_last: bool) -> str:
    if node.op_type == "QuantizeLinear":
        # A value that was only moved shares the quantizer of its source; its codes are called after itself. So are
        # codes that a clip of the model follows: what leaves it has the name of the clipped value.
        stem = scope.removesuffix(_OUTPUT)
        source = node.inputs[0]
        clips = [_scope(use.node) for use in node.outputs[0].uses() if use.node.op_type == "Clip"]
        clipped = any(not clip.endswith(_OUTPUT) for clip in clips)
        if (stem in quantized or clipped) and source is not None and source.producer() is not None:
            stem = str(source.name)
        quantized.add(stem)
        return f"{stem}:codes" if clipped or not clips else f"{stem}:wide"
    if node.op_type == "Clip" and scope.endswith(_OUTPUT):
        codes = node.inputs[0]
        assert codes is not None
        return f"{str(codes.name).removesuffix(':wide')}:codes"
    if node.op_type == "DequantizeLinear":
        codes = node.inputs[0]
        assert codes is not None
        return f"{str(codes.name).removesuffix(':codes')}:real"
    layer = scope or node.op_type
    return layer if is_last else f"{layer}.{node.op_type}"


def _scope(node: ir.Node) -> str:
    """The path of the innermost module that the node was traced in."""
    scopes = node.metadata_props.get(_SCOPES)
    paths = ast.literal_eval(scopes) if scopes else []
    return str(paths[-2]) if len(paths) > 1 and not str(paths[-2]).startswith("_empty") else ""


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate


def _name_constants(node: ir.Node, taken: set[str]) -> None:
    """Constants that torch numbered are called after the first node that reads them."""
    for index, value in enumerate(node.inputs):
        if value is not None and value.is_initializer() and _is_numbered(str(value.name)):
            value.name = _unique(f"{node.name}.{index}", taken)


def _is_numbered(name: str) -> bool:
    return name.startswith(("val_", "node_"))


def _rename_initializers(model: ir.Model) -> None:
    """The artifact's weight is its codes: "conv1.weight_quantizer.codes" becomes "conv1.weight"."""
    for value in list(model.graph.initializers.values()):
        name = str(value.name)
        renamed = name
        for quantizer in _QUANTIZERS:
            kind = quantizer.removesuffix("_quantizer")
            renamed = renamed.replace(f"{quantizer}.codes", kind).replace(f"{quantizer}.", f"{kind}.")
        if renamed != name:
            # A weight that a float32 layer reads as well keeps its name there.
            value.name = _unique(renamed, set(model.graph.initializers))
