"""From a trained PyTorch model to an ONNX artifact: the line capture, fold, place, quantize, export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qdeploy.core import scheme
from qdeploy.core.records import Histogram
from qdeploy.export.to_onnx import to_onnx
from qdeploy.graph.capture import capture
from qdeploy.graph.fold import fold
from qdeploy.graph.normalize import normalize
from qdeploy.graph.operators import tensor_at
from qdeploy.quant import ptq
from qdeploy.quant.placement import Placement, place
from qdeploy.quant.quantizer import ActivationQuantizer

BINS = 64


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


def float32(model: nn.Module, example: Tensor) -> Artifact:
    """The model as it is, batch norm folded. ``example`` [N >= 2, ...] is one preprocessed input batch."""
    graph = capture(model, example)
    fold(graph)
    normalize(graph)
    return Artifact(to_onnx(graph, example))


def quantized(
    model: nn.Module,
    example: Tensor,
    batches: Iterable[Tensor],
    *,
    weight_bits: int = 8,
    weight_observer: str = "minmax",
    activation_bits: int = 8,
    activation_observer: str = "minmax",
    observer_options: Mapping[str, Any] | None = None,
    rounding: str = "nearest",
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Artifact:
    """The model quantized after training, calibrated on ``batches`` of preprocessed inputs."""
    graph = capture(model, example)
    fold(graph)
    normalize(graph)
    placement = place(graph, weight=scheme.weight(weight_bits), activation=scheme.activation(activation_bits))
    floats = {layer.name: tensor_at(graph, ptq.weight_of(layer)).detach().numpy() for layer in placement.layers}
    ptq.quantize(
        graph, placement, batches, observer=activation_observer, observer_options=observer_options,
        weight_observer=weight_observer, rounding=rounding, seed=seed, progress=progress,
    )  # fmt: skip
    return Artifact(
        to_onnx(graph, example),
        weights={layer.name: _weights(floats[layer.name], layer.weight) for layer in placement.layers},
        activations=_activations(placement),
        float_reasons=placement.float_layers,
    )


def batches_of(samples: np.ndarray, size: int) -> list[Tensor]:
    """Preprocessed samples [N, ...] as tensors of at most ``size`` samples."""
    return list(torch.split(torch.from_numpy(np.ascontiguousarray(samples)), size))


def _weights(weight: np.ndarray, quantizer: Any) -> QuantizedValue:
    # Channels differ in range; the widest one bounds them all.
    reach = float(quantizer.scale.max()) * quantizer.scheme.qmax
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
