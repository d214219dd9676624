"""From a trained PyTorch model to an ONNX artifact: the line capture, fold, place, quantize, export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from qdeploy.core.records import HalfPrecision, Histogram
from qdeploy.core.scheme import Grid
from qdeploy.export.same_answers import require_same_answers
from qdeploy.export.to_onnx import to_onnx
from qdeploy.graph.capture import capture
from qdeploy.graph.fold import FoldedNorm, fold
from qdeploy.graph.normalize import normalize
from qdeploy.graph.operators import tensor_at
from qdeploy.quant import ptq, qat
from qdeploy.quant.equalize import equalize
from qdeploy.quant.placement import Placement, place, weighted_layers
from qdeploy.quant.quantizer import ActivationQuantizer
from qdeploy.quant.rules import Rule, layer_schemes

BINS = 64
Storage = Literal["float32", "float16", "bfloat16"]
Packing = Literal["packed", "none"]


@dataclass(frozen=True, slots=True)
class QuantizedValue:
    """What a report shows of a quantized tensor."""

    bits: int
    histogram: Histogram | None


@dataclass(frozen=True, slots=True)
class Artifact:
    """An exported model. ``weights`` by layer name and ``activations`` by value name say how each is quantized."""

    model: bytes
    weights: dict[str, QuantizedValue] = field(default_factory=dict)
    activations: dict[str, QuantizedValue] = field(default_factory=dict)
    float_reasons: dict[str, str] = field(default_factory=dict)  # layer name -> why placement left it in float32
    half_precision: list[HalfPrecision] = field(default_factory=list)  # of the weights stored in 16 bits


@dataclass(frozen=True, slots=True)
class Placed:
    """A captured graph with its quantizers, and the batch norms that were folded away."""

    graph: fx.GraphModule
    placement: Placement
    norms: dict[str, FoldedNorm]


def float32(model: nn.Module, example: Tensor, *, storage: Storage = "float32") -> Artifact:
    """The model as it is, batch norm folded. ``example`` [N >= 2, ...] is one preprocessed input batch.

    ``storage`` is the type that weights have in the file; the CPU computes in float32 whatever it is.
    """
    graph = capture(model, example)
    fold(graph)
    normalize(graph)
    rounded: list[HalfPrecision] = []
    return Artifact(to_onnx(graph, example, storage=storage, rounded=rounded), half_precision=rounded)


def placed(
    model: nn.Module, example: Tensor, *, weight_bits: int = 8, weight_grid: Grid = "midtread",
    activation_bits: int = 8, first_last_bits: int | None = 8, rules: Sequence[Rule] = (),
    keep_float: Sequence[str] = (), equalized: bool = False, dynamic: bool = False,
) -> Placed:  # fmt: skip
    """The model captured, with quantizers where onnxruntime fuses; see quant/rules.py for the bits of each layer.

    ``equalized``: cross-layer equalization first (Nagel 2019), which leaves the float32 function as it was.
    ``dynamic``: linear layers quantize what they read at run time (quant/dynamic.py), and no other layer is quantized.
    """
    graph = capture(model, example)
    norms = fold(graph)
    normalize(graph)
    if equalized:
        equalize(graph)
    weighted_layers(graph, keep_float, dynamic=dynamic)  # refuses a pattern that matches nothing
    # Of all layers: one that stays in float32 is still the first, and another layer is not.
    layers = layer_schemes(
        weighted_layers(graph, dynamic=dynamic), weight_bits=weight_bits, weight_grid=weight_grid,
        activation_bits=activation_bits, first_last_bits=first_last_bits, rules=rules,
    )  # fmt: skip
    # Batch norms hold the weights from before equalization, so none of them comes back after it.
    return Placed(
        graph, place(graph, layers=layers, keep_float=keep_float, dynamic=dynamic), {} if equalized else norms
    )


def quantized(
    model: nn.Module,
    example: Tensor,
    batches: Iterable[Tensor],
    *,
    weight_bits: int = 8,
    weight_grid: Grid = "midtread",
    weight_observer: str = "minmax",
    activation_bits: int = 8,
    activation_observer: str = "minmax",
    observer_options: Mapping[str, Any] | None = None,
    first_last_bits: int | None = 8,
    rules: Sequence[Rule] = (),
    keep_float: Sequence[str] = (),
    rounding: str = "nearest",
    rounding_options: Mapping[str, Any] | None = None,
    equalized: bool = False,
    dynamic: bool = False,
    bias_correction: bool = False,
    learn_ranges: bool = False,
    portable: bool = True,
    packing: Packing = "packed",
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Artifact:
    """The model quantized after training, calibrated on ``batches`` of preprocessed inputs; see quant/ptq.py."""
    made = placed(
        model, example, weight_bits=weight_bits, weight_grid=weight_grid, activation_bits=activation_bits,
        first_last_bits=first_last_bits, rules=rules, keep_float=keep_float, equalized=equalized, dynamic=dynamic,
    )  # fmt: skip
    graph, placement = made.graph, made.placement
    weights = {layer.name: tensor_at(graph, layer.weight_path).detach().numpy() for layer in placement.layers}
    ptq.quantize(
        graph, placement, batches, observer=activation_observer, observer_options=observer_options,
        weight_observer=weight_observer, rounding=rounding, rounding_options=rounding_options,
        bias_correction=bias_correction, learn_ranges=learn_ranges, portable=portable, seed=seed, progress=progress,
    )  # fmt: skip
    return _artifact(graph, placement, example, weights, packing)


def trainable(
    made: Placed, batches: Iterable[Tensor], *, fake_quant: str, activation_observer: str = "minmax",
    observer_options: Mapping[str, Any] | None = None, portable: bool = True,
) -> fx.GraphModule:  # fmt: skip
    """The placed graph as a module to train: fake quantizers in place, batch norms alive (see quant/qat.py)."""
    return qat.prepare(
        made.graph, made.placement, made.norms, batches, fake_quant=fake_quant, observer=activation_observer,
        observer_options=observer_options, portable=portable,
    )  # fmt: skip


def trained(
    graph: fx.GraphModule, made: Placed, example: Tensor, *, portable: bool = True, packing: Packing = "packed"
) -> Artifact:
    """What ``trainable`` returned, after training, as an artifact."""
    weights = qat.finish(graph, made.placement, portable=portable)
    return _artifact(graph, made.placement, example, weights, packing)


def _artifact(
    graph: fx.GraphModule, placement: Placement, example: Tensor, weights: Mapping[str, np.ndarray], packing: Packing
) -> Artifact:
    model = to_onnx(graph, example, packing=packing)
    if any(layer.input is None for layer in placement.layers):
        require_same_answers(graph, model, example)
    return Artifact(
        model,
        weights=_by_layer(placement, weights),
        activations=_activations(placement),
        float_reasons=placement.float_layers,
    )


def batches_of(samples: np.ndarray, size: int) -> list[Tensor]:
    """Preprocessed samples [N, ...] as tensors of at most ``size`` samples."""
    return list(torch.split(torch.from_numpy(np.ascontiguousarray(samples)), size))


def _by_layer(placement: Placement, weights: Mapping[str, np.ndarray]) -> dict[str, QuantizedValue]:
    """What reports show of each layer's weights: those of an LSTM together."""
    return {
        name: _weights(
            np.concatenate([weights[layer.name].reshape(-1) for layer in layers]), [layer.weight for layer in layers]
        )
        for name, layers in {
            layer.layer: [other for other in placement.layers if other.node is layer.node] for layer in placement.layers
        }.items()
    }


def _weights(weight: np.ndarray, quantizers: Sequence[Any]) -> QuantizedValue:
    # Channels differ in range; the widest one bounds them all.
    quantizer = quantizers[0]
    reach = max(float(q.scale.max()) * max(q.scheme.qmax, -q.scheme.qmin) for q in quantizers)
    widest = max(reach, float(np.abs(weight).max(initial=0.0)), np.finfo(np.float32).tiny)
    counts, _ = np.histogram(weight, bins=BINS, range=(-widest, widest))
    return QuantizedValue(
        quantizer.scheme.bits, Histogram(tuple(int(c) for c in counts), -widest, widest, -reach, reach)
    )


def _activations(placement: Placement) -> dict[str, QuantizedValue]:
    return {
        name: QuantizedValue(quantizer.scheme.bits, _activation_histogram(quantizer))
        for name, quantizer in placement.activations.items()
    }


def _activation_histogram(quantizer: ActivationQuantizer) -> Histogram | None:
    seen = quantizer.histogram
    if seen is None or seen.min >= seen.max:
        return None
    low, high = float(seen.min), float(seen.max)
    range_low, range_high = quantizer.range
    return Histogram(tuple(int(c) for c in seen.rebinned(BINS, low, high)), low, high, range_low, range_high)
