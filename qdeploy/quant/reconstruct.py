"""Layer by layer, on the data: codes, ranges and biases that give each layer's float32 output back.

At a layer all earlier ones are quantized already. It is solved for on the inputs that it will really meet, so every
layer makes up for part of what the earlier ones have lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, fx

from qdeploy.core.errors import QDeployError
from qdeploy.graph.operators import tensor_at
from qdeploy.quant.agreement import agree
from qdeploy.quant.bias_correction import correction, shift_bias
from qdeploy.quant.convert import layer_bias, smallest_scale
from qdeploy.quant.lockstep import Lockstep
from qdeploy.quant.moments import COLUMNS, Moments, MomentSums
from qdeploy.quant.placement import Placement, QuantizedLayer
from qdeploy.quant.portable import breaks
from qdeploy.quant.quantizer import ActivationQuantizer
from qdeploy.quant.ranges import learn_range
from qdeploy.quant.weights import Solver, make_portable, quantize_weight
from qdeploy.runner import memory_bytes

MANY_WEIGHTS = 1024  # of one channel: fewer columns tell enough of which of two codes is better
MATRICES = 6  # of the size of the second moment that are held at once while a layer is solved


def reconstruct(
    graph_module: fx.GraphModule, placement: Placement, batches: Sequence[Tensor | tuple[Tensor, ...]],
    solve: Solver, *, weight_observer: str, informed: bool, bias_correction: bool, learn_ranges: bool,
    portable: bool = False, seed: int = 0, progress: Callable[[str], None] | None = None,
) -> None:  # fmt: skip
    """Walk a calibrated graph once and give every weight quantizer its codes, in place.

    ``informed``: whether rounding is told what the layer's inputs are. ``bias_correction`` shifts biases so that mean
    outputs stay what they were, of all layers but recurrent ones; rounding then need not care for the means.
    ``learn_ranges`` sets the activation quantizers' ranges again on the way. ``portable``: see ptq.quantize; codes of
    rounding that is told nothing are left to ``constrain_layers``.
    """
    lockstep = Lockstep(graph_module, batches)
    layers = by_node(placement)
    quantizers = _first_calls(graph_module, placement) if learn_ranges else {}
    for node in list(graph_module.graph.nodes):
        if node in quantizers:
            lockstep.advance(node)
            learn_range(lockstep, node, quantizers[node])
            if portable:
                agree(graph_module, [quantizers[node]])
        elif node in layers:
            lockstep.advance(node)
            for layer in layers[node]:
                if progress is not None:
                    progress(layer.name)
                weight, shifts = _weight(graph_module, layer), bias_correction and not layer.recurrent
                moments = _moments(lockstep, layer, seed) if informed or shifts else None
                seen = moments if informed else None
                if seen is not None and shifts:
                    seen = seen.centred()
                layer.weight.set(quantize_weight(
                    weight, layer_bias(graph_module, layer), layer, solve, observer=weight_observer, moments=seen,
                    portable=portable and (informed or shifts), seed=seed,
                ))  # fmt: skip
                if moments is not None and shifts:
                    lockstep.shift[node] = _shift(graph_module, layer, weight, moments)
    for node, shift in lockstep.shift.items():
        shift_bias(graph_module, node, shift.cpu().numpy())


def constrain_layers(
    graph_module: fx.GraphModule, placement: Placement, batches: Sequence[Tensor | tuple[Tensor, ...]], *, seed: int = 0
) -> None:
    """Change the codes of layers in which a pair can saturate, in place, as little as their outputs allow.

    All weight quantizers have codes already. Two layers that read one weight, and have the same codes, keep one.
    """
    offending = [layer for layer in placement.layers if breaks(layer.weight.tensor.codes, layer.pair_limit)]
    if not offending:
        return
    lockstep = Lockstep(graph_module, batches)
    made: dict[tuple[str, bytes], QuantizedLayer] = {}
    for layer in offending:
        twin = made.setdefault((layer.weight_path, layer.weight.tensor.codes.tobytes()), layer)
        if twin is not layer and twin.pair_limit == layer.pair_limit:
            layer.weight.set(twin.weight.tensor)
            continue
        lockstep.advance(layer.node)
        moments = _moments_if_possible(lockstep, layer, seed)
        make_portable(_weight(graph_module, layer), layer_bias(graph_module, layer), layer, moments)


def by_node(placement: Placement) -> dict[fx.Node, list[QuantizedLayer]]:
    """The layers by their operator: the weights of an LSTM, that of its input first, have one."""
    found: dict[fx.Node, list[QuantizedLayer]] = {}
    for layer in placement.layers:
        found.setdefault(layer.node, []).append(layer)
    return found


def _weight(graph_module: fx.GraphModule, layer: QuantizedLayer) -> np.ndarray:
    weight: np.ndarray = tensor_at(graph_module, layer.weight_path).detach().cpu().numpy()
    return weight


def _first_calls(graph_module: fx.GraphModule, placement: Placement) -> dict[fx.Node, ActivationQuantizer]:
    """Where each activation quantizer is called first; later calls are for the same values, moved."""
    modules = {id(quantizer): quantizer for quantizer in placement.activations.values()}
    found: dict[fx.Node, ActivationQuantizer] = {}
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            quantizer = modules.pop(id(graph_module.get_submodule(str(node.target))), None)
            if quantizer is not None:
                found[node] = quantizer
    return found


def _moments_if_possible(lockstep: Lockstep, layer: QuantizedLayer, seed: int) -> Moments | None:
    """The moments, where memory and float32 can hold them: nearest rounding can do without."""
    if not _fits_memory(layer):
        return None
    try:
        return _moments(lockstep, layer, seed, most=COLUMNS if layer.size <= MANY_WEIGHTS else COLUMNS // 8)
    except QDeployError:
        return None


def _moments(lockstep: Lockstep, layer: QuantizedLayer, seed: int, most: int = COLUMNS) -> Moments:
    _require_memory(layer)
    sums = MomentSums(layer.node, seed=seed, most=most)
    source = layer.node.args[0]
    assert isinstance(source, fx.Node)
    try:
        for x, x_hat, share in lockstep.results(layer.node) if layer.of_states else lockstep.pairs(source):
            if layer.of_states:
                (x, *_), (x_hat, *_) = x, x_hat
            sums.update(x, x_hat, share=share)
        return sums.result()
    except QDeployError as error:
        raise QDeployError(f"Quantizing the weight of {layer.name!r}: {error.message}", error.hint) from None


def _fits_memory(layer: QuantizedLayer) -> bool:
    """Whether this machine can hold a layer's moments: a few matrices of weights by weights of one channel."""
    return memory_bytes() == 0 or _needed_memory(layer) <= memory_bytes()


def _needed_memory(layer: QuantizedLayer) -> int:
    return MATRICES * layer.groups * layer.size**2 * 8


def _require_memory(layer: QuantizedLayer) -> None:
    """Refuse a layer whose moments this machine cannot hold."""
    if not _fits_memory(layer):
        size, needed, there = layer.size, _needed_memory(layer), memory_bytes()
        raise QDeployError(
            f"The moments of {layer.name!r}, with {size:,} weights an output channel, take about {needed / 1e9:.0f} GB "
            f"of memory; this machine has {there / 1e9:.0f} GB.",
            f"Use rounding: nearest, or leave the layer in float32: rules: [{{match: {layer.name}, method: float32}}].",
        )


def _shift(graph_module: fx.GraphModule, layer: QuantizedLayer, weight: np.ndarray, moments: Moments) -> Tensor:
    """The correction of a layer's bias; none for a channel whose scale leaves no room for it in int32."""
    shift = correction(weight, layer.weight().cpu().numpy(), moments)
    bias = layer_bias(graph_module, layer)
    whole = shift if bias is None else bias + shift
    fits = layer.weight.scale.cpu().numpy() >= smallest_scale(layer.weight.codes.cpu().numpy(), whole, layer)
    return torch.from_numpy(np.where(fits, shift, np.float32(0))).to(layer.weight.scale.device)
