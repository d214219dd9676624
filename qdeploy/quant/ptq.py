"""Post-training quantization: watch activations, choose ranges, round weights, convert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from qdeploy.core import affine, plugins
from qdeploy.core.errors import QDeployError
from qdeploy.core.qtensor import QTensor
from qdeploy.core.scheme import QScheme
from qdeploy.graph.operators import argument, tensor_at
from qdeploy.quant.convert import convert, layer_bias, smallest_weight_scale
from qdeploy.quant.placement import Placement, QuantizedLayer
from qdeploy.quant.weight_range import symmetric_scale


def quantize(
    graph_module: fx.GraphModule,
    placement: Placement,
    batches: Iterable[Tensor | tuple[Tensor, ...]],
    *,
    observer: str = "minmax",
    observer_options: Mapping[str, Any] | None = None,
    weight_observer: str = "minmax",
    rounding: str = "nearest",
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Calibrate on ``batches`` (model inputs, float32), round the weights and convert the graph, in place."""
    calibrate(graph_module, placement, batches, observer=observer, **(observer_options or {}))
    round_weights(
        graph_module, placement, weight_observer=weight_observer, rounding=rounding, seed=seed, progress=progress
    )
    convert(graph_module, placement)


@torch.no_grad()
def calibrate(
    graph_module: fx.GraphModule, placement: Placement, batches: Iterable[Tensor | tuple[Tensor, ...]], *,
    observer: str, **options: Any,
) -> None:  # fmt: skip
    """Run the float graph over ``batches`` with every activation quantizer watching, then freeze the ranges.

    ``options`` are the observer's own.
    """
    make = plugins.load("observer", observer)
    for quantizer in placement.activations.values():
        quantizer.watch(make(quantizer.scheme, **options))
    for batch in batches:
        graph_module(*(batch if isinstance(batch, tuple) else (batch,)))
    for quantizer in placement.activations.values():
        quantizer.freeze()


def round_weights(
    graph_module: fx.GraphModule, placement: Placement, *, weight_observer: str, rounding: str, seed: int,
    progress: Callable[[str], None] | None = None,
) -> None:  # fmt: skip
    """Give every weight quantizer its codes, one layer at a time."""
    solve = plugins.load("rounding", rounding)
    for layer in placement.layers:
        if progress is not None:
            progress(layer.name)
        weight = tensor_at(graph_module, weight_of(layer)).detach().cpu().numpy()
        try:
            scale = weight_scale(weight, layer_bias(graph_module, layer.node), layer, observer=weight_observer)
        except QDeployError as error:
            raise QDeployError(f"Quantizing the weight of {layer.name!r}: {error.message}", error.hint) from None
        codes = solve(weight, scale, layer.weight.scheme, seed=seed)
        zero_point = np.zeros(scale.shape, layer.weight.scheme.dtype)
        layer.weight.set(QTensor(codes, scale, zero_point, layer.weight.scheme, axis=0))


def weight_scale(weight: np.ndarray, bias: np.ndarray | None, layer: QuantizedLayer, *, observer: str) -> np.ndarray:
    """Per-channel weight scales [C_out], raised where the int32 bias would overflow beside the products."""
    scheme: QScheme = layer.weight.scheme
    scale = symmetric_scale(weight, scheme, observer=observer)
    codes = affine.quantize(weight, scale, np.zeros(len(scale), scheme.dtype), scheme, axis=0)
    zero_point = int(layer.input.zero_point)
    products = [affine.accumulator_bound(channel[None], None, zero_point, layer.input.scheme) for channel in codes]
    return np.maximum(scale, smallest_weight_scale(bias, float(layer.input.scale), np.array(products)))


def weight_of(layer: QuantizedLayer) -> str:
    """The path of a layer's float weight in the graph."""
    quantizer_call = argument(layer.node, 1, "weight")
    return str(quantizer_call.args[0].target)
