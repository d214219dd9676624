"""Export a captured graph to ONNX: torch.onnx's exporter, our quantizers translated one to one, then the passes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript import opset21 as op
from torch import Tensor, fx

from qdeploy.core.errors import QDeployError
from qdeploy.export.passes import constants, names, reshapes
from qdeploy.export.passes import metadata as metadata_pass
from qdeploy.graph.capture import LAYER
from qdeploy.quant import ops

OPSET = 21


def to_onnx(
    graph_module: fx.GraphModule, example: Tensor | Sequence[Tensor], *, outputs: Sequence[str] = ("output",),
    metadata: dict[str, str] | None = None,
) -> bytes:  # fmt: skip
    """The graph as a checked ONNX model: dynamic batch, opset 21, readable stable names, deterministic bytes.

    ``example`` as for capture; ``outputs`` names the model's outputs; inputs keep the names of forward's arguments.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    batch = torch.export.Dim("batch", min=1)
    _label(graph_module)
    with _quiet():
        program = torch.export.export(
            graph_module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False
        )
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, custom_translation_table=_translations(), optimize=False
        )
    if exported is None:
        raise QDeployError("torch.onnx returned no model.")
    model = ir.from_proto(exported.model_proto)
    constants.fold(model)
    reshapes.simplify(model)
    constants.clean(model)
    names.assign(model, outputs=outputs)
    metadata_pass.replace(model, metadata or {})
    proto = ir.to_proto(model)
    # torch leaves shapes of values that translations rewrote; stale ones make onnx's own tools refuse the model.
    del proto.graph.value_info[:]
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString(deterministic=True)


def _label(graph_module: fx.GraphModule) -> None:
    """Say in every operator's metadata which layer it is; tracing hands that on to the ONNX node."""
    for node in graph_module.graph.nodes:
        if LAYER in node.meta:
            node.meta["nn_module_stack"] = {node.meta[LAYER]: (node.meta[LAYER], "qdeploy.Layer")}


def _translations() -> dict[Any, Any]:
    return {
        ops.quantize._opoverload: _quantize,
        ops.dequantize._opoverload: _dequantize,
        torch.ops.aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
        torch.ops.aten.conv1d.default: _conv,
        torch.ops.aten.conv2d.default: _conv,
    }


def _quantize(x: Any, scale: Any, zero_point: Any) -> Any:
    return op.QuantizeLinear(x, scale, zero_point)


def _dequantize(codes: Any, scale: Any, zero_point: Any, axis: int) -> Any:
    if axis < 0:
        return op.DequantizeLinear(codes, scale, zero_point)
    return op.DequantizeLinear(codes, scale, zero_point, axis=axis)


def _conv(
    x: Any, weight: Any, bias: Any = None, stride: Sequence[int] = (1,), padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,), groups: int = 1,
) -> Any:  # fmt: skip
    """A plain Conv. torch's own translation computes a bias of zeros where there is none, which unfuses the layer."""
    spatial = len(weight.shape) - 2
    stride, padding, dilation = (list(v) * spatial if len(v) == 1 else list(v) for v in (stride, padding, dilation))
    attributes = {"strides": stride, "pads": padding * 2, "dilations": dilation, "group": groups}
    return op.Conv(x, weight, **attributes) if bias is None else op.Conv(x, weight, bias, **attributes)


def _adaptive_avg_pool2d(x: Any, output_size: Sequence[int]) -> Any:
    """To 1x1 it is GlobalAveragePool, which has an integer kernel; torch's own translation is ReduceMean."""
    if tuple(output_size) != (1, 1):
        raise QDeployError(
            f"An adaptive average pool to {tuple(output_size)} has no ONNX operator.",
            "Make the input size a multiple of the output size, or pool with a fixed kernel.",
        )
    return op.GlobalAveragePool(x)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx prints progress and warns about its own internals; none of it is for qdeploy's users."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
