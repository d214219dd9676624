"""Export a captured graph to ONNX: torch.onnx's exporter, our quantizers translated one to one, then the passes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, fx

from qdeploy.core.errors import QDeployError
from qdeploy.core.records import HalfPrecision
from qdeploy.core.scheme import QScheme
from qdeploy.export.passes import clips, codes, constants, float_layers, lookups, names, reshapes, sharing
from qdeploy.export.passes import half_precision as half_precision_pass
from qdeploy.export.passes import metadata as metadata_pass
from qdeploy.export.passes import pack_weights as packing_pass
from qdeploy.export.translations import translations
from qdeploy.graph.layers import LAYER
from qdeploy.graph.quiet import quiet
from qdeploy.quant.quantizer import StoredWeight, WeightQuantizer

OPSET = 21


def to_onnx(
    graph_module: fx.GraphModule, example: Tensor | Sequence[Tensor], *, outputs: Sequence[str] | None = None,
    metadata: dict[str, str] | None = None, packing: Literal["packed", "none"] = "packed",
    storage: half_precision_pass.Storage = "float32", rounded: list[HalfPrecision] | None = None,
) -> bytes:  # fmt: skip
    """The graph as a checked ONNX model: dynamic batch, opset 21, readable stable names, deterministic bytes.

    ``example`` as for capture; ``outputs`` names the model's outputs: "output" by default, or "output_0", "output_1"
    where there are more. Inputs keep the names of forward's arguments.

    ``packing``: integer weights of fewer than 8 bits take their true width in the file, or a byte each ("none", for a
    runtime that does not compute constants when it loads a model). ``storage``: what float32 weights are stored as.
    Neither changes an integer kernel, and packing changes no bit of an answer. ``rounded`` is a list to be filled with
    what storing in 16 bits did to each weight.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    _label(graph_module)
    model = ir.from_proto(_export(graph_module, inputs))
    weights = _weights(model, graph_module)
    sharing.merge_scales(model)
    constants.fold(model)
    reshapes.simplify(model)
    clips.drop_redundant(model)
    codes.on_codes(model)
    lookups.on_codes(model)
    clips.merge(model)
    float_layers.protect(model)
    constants.clean(model)
    sharing.merge_weights(model)
    sharing.separate_outputs(model)
    names.assign(model, outputs=_output_names(model, outputs))
    metadata_pass.replace(model, metadata or {})
    if packing == "packed":
        packing_pass.pack(model, weights)
    stored = half_precision_pass.store(model, storage)
    if rounded is not None:
        rounded += stored
    proto = ir.to_proto(model)
    # torch leaves shapes of values that translations rewrote; stale ones make onnx's own tools refuse the model.
    del proto.graph.value_info[:]
    onnx.checker.check_model(proto, full_check=True)
    serialized: bytes = proto.SerializeToString(deterministic=True)
    return serialized


def _weights(model: ir.Model, graph_module: fx.GraphModule) -> list[tuple[ir.Value, QScheme]]:
    """The initializers that hold the codes of weights, with their schemes."""
    schemes = {
        f"{path}.codes": module.scheme
        for path, module in graph_module.named_modules(remove_duplicate=False)
        if isinstance(module, WeightQuantizer | StoredWeight)
    }
    return [(value, schemes[name]) for name, value in model.graph.initializers.items() if name in schemes]


def _export(graph_module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1)
    try:
        with quiet():
            program = torch.export.export(
                graph_module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False
            )
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, custom_translation_table=translations(), optimize=False
            )
    except torch.onnx.OnnxExporterError as error:
        raise _export_error(error) from error
    if exported is None:
        raise QDeployError("torch.onnx returned no model.")
    return exported.model_proto


def _export_error(error: BaseException) -> QDeployError:
    """What stopped the exporter, from beneath the advice that it wraps its errors in."""
    cause: BaseException = error
    operator = ""
    while cause.__cause__ is not None:
        cause = cause.__cause__
        if isinstance(cause, QDeployError):
            return cause
        named = re.search(r"target=torch\.ops\.(\w+\.\w+)", str(cause))
        operator = f"{named[1]}: " if named else operator
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return QDeployError(
        f"The model cannot be exported to ONNX: {operator}{lines[0][:200] if lines else type(cause).__name__}",
        "torch.onnx.export(model, inputs, dynamo=True) on its own shows the whole message.",
    )


def _output_names(model: ir.Model, given: Sequence[str] | None) -> Sequence[str]:
    count = len(model.graph.outputs)
    chosen = given or (["output"] if count == 1 else [f"output_{i}" for i in range(count)])
    if len(chosen) != count:
        raise QDeployError(f"The model has {count} outputs, but {len(chosen)} names for them: {', '.join(chosen)}.")
    taken = {value.name for value in model.graph.inputs}
    repeated = [name for i, name in enumerate(chosen) if name in taken or name in chosen[:i]]
    if repeated:
        raise QDeployError(f"{repeated[0]!r} names two of the model's inputs and outputs.", "Give each its own name.")
    return chosen


def _label(graph_module: fx.GraphModule) -> None:
    """Say in every operator's metadata which layer it is; tracing hands that on to the ONNX node."""
    for node in graph_module.graph.nodes:
        if LAYER in node.meta:
            node.meta["nn_module_stack"] = {node.meta[LAYER]: (node.meta[LAYER], "qdeploy.Layer")}
