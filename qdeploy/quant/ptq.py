"""Post-training quantization: watch activations, choose ranges, round weights, convert."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, fx

from qdeploy.core import plugins
from qdeploy.core.errors import QDeployError, nearest
from qdeploy.graph.operators import tensor_at
from qdeploy.quant import calibration
from qdeploy.quant.agreement import agree
from qdeploy.quant.convert import convert, layer_bias
from qdeploy.quant.placement import Placement
from qdeploy.quant.reconstruct import constrain_layers, reconstruct
from qdeploy.quant.weights import OBSERVERS, OUTPUT, Solver, quantize_weight

NEAREST = "nearest"  # the one rounding that asks for no calibration data


def quantize(
    graph_module: fx.GraphModule,
    placement: Placement,
    batches: Iterable[Tensor | tuple[Tensor, ...]],
    *,
    observer: str = "minmax",
    observer_options: Mapping[str, Any] | None = None,
    weight_observer: str = "minmax",
    rounding: str = NEAREST,
    rounding_options: Mapping[str, Any] | None = None,
    bias_correction: bool = False,
    learn_ranges: bool = False,
    portable: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Calibrate on ``batches`` (model inputs, float32), round the weights and convert the graph, in place.

    ``observer`` chooses the ranges of activations, ``weight_observer`` ("minmax", "mse", or "output", for a rounding
    other than nearest) the scales of weights, ``rounding`` the codes; their options are keyword arguments of the
    plugins. All other work than nearest rounding is done layer by layer on the data (reconstruct.py), as are
    ``bias_correction`` and ``learn_ranges``. ``portable``: no CPU answers otherwise; products of codes cannot saturate
    (portable.py), and additions round alike (agreement.py). ``progress`` is called with the name of each layer when its
    turn comes. QDeployError: an unknown name, options that contradict each other, no samples, NaN or infinity.
    """
    _check(weight_observer, rounding)
    plugin = plugins.load("rounding", rounding)
    solve = functools.partial(plugin, **(rounding_options or {}))
    on_data = rounding != NEAREST or bias_correction or learn_ranges
    batches = list(batches)
    calibrate(graph_module, placement, batches, observer=observer, **(observer_options or {}))
    if portable:
        agree(graph_module)
    if not on_data:
        round_weights(graph_module, placement, solve, weight_observer=weight_observer, seed=seed, progress=progress)
    else:
        reconstruct(
            graph_module, placement, batches, solve, weight_observer=weight_observer,
            informed=rounding != NEAREST, bias_correction=bias_correction, learn_ranges=learn_ranges,
            portable=portable, seed=seed, progress=progress,
        )  # fmt: skip
    if portable:
        constrain_layers(graph_module, placement, batches, seed=seed)
    convert(graph_module, placement)


def calibrate(
    graph_module: fx.GraphModule, placement: Placement, batches: Iterable[Tensor | tuple[Tensor, ...]], *,
    observer: str, **options: Any,
) -> None:  # fmt: skip
    """Run the float graph over ``batches`` with every activation quantizer watching, then freeze the ranges.

    ``options`` are the observer's own.
    """
    calibration.watch(graph_module, placement, batches, observer=observer, **options)
    for quantizer in placement.activations.values():
        quantizer.freeze()


def round_weights(
    graph_module: fx.GraphModule, placement: Placement, solve: Solver, *, weight_observer: str, seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> None:  # fmt: skip
    """Give every weight quantizer its codes, one layer at a time, from the weights alone."""
    for layer in placement.layers:
        if progress is not None:
            progress(layer.name)
        if layer.weight.frozen:
            continue
        weight = tensor_at(graph_module, layer.weight_path).detach().cpu().numpy()
        decides = placement.deciding(layer)
        bias = layer_bias(graph_module, decides)
        layer.weight.set(quantize_weight(weight, bias, decides, solve, observer=weight_observer, seed=seed))


def _check(weight_observer: str, rounding: str) -> None:
    if weight_observer not in OBSERVERS:
        raise QDeployError(f"Weights have no observer {weight_observer!r}.", nearest(weight_observer, OBSERVERS))
    if weight_observer == OUTPUT and rounding == NEAREST:
        raise QDeployError(
            "The observer 'output' of weights needs a rounding that sees the layers' inputs.",
            "Use rounding: gptq or adaround, or the observer mse.",
        )
