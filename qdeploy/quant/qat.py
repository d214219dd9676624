"""Quantization-aware training on the captured graph: what is trained is what ships.

``prepare`` takes the placed graph, puts a fake quantizer in every quantizer and brings the batch norms back to life
behind their layers; any training loop then trains it as a module. ``finish`` turns the trained graph into the integer
graph: codes from the fake quantizers, batch norm folded into scales and biases, the codes untouched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from qdeploy.core import plugins
from qdeploy.core.errors import NotApplicableError, QDeployError
from qdeploy.core.qtensor import QTensor
from qdeploy.graph.fold import FoldedNorm
from qdeploy.graph.operators import argument, set_parameter, tensor_at
from qdeploy.quant import calibration
from qdeploy.quant.agreement import agree
from qdeploy.quant.bias_grid import BiasGrid, RoundedBias
from qdeploy.quant.codes import nearest_codes
from qdeploy.quant.convert import convert, layer_bias, smallest_scale
from qdeploy.quant.fake_quant._base import settled
from qdeploy.quant.placement import Placement, QuantizedLayer, clip_range, is_clip

EXEMPT = "ste"  # the fake quantizer of what a recipe leaves at 8 bits: the plain affine one


class LiveBatchNorm(nn.Module):
    """Batch norm behind a layer whose weights are fake-quantized.

    ``weight`` counts by its magnitude: a negative gamma would negate codes, and two's complement has one that has no
    negative. ``prepare`` negates the layer's weights instead, which is the same function. ``frozen`` makes it use its
    running statistics in training as well, as it will at inference.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: FoldedNorm) -> None:
        super().__init__()
        sign = torch.where(norm.gamma < 0, -1.0, 1.0)
        self.weight = nn.Parameter(norm.gamma.abs())
        self.bias = nn.Parameter(norm.beta.clone())
        self.register_buffer("running_mean", norm.mean * sign)
        self.register_buffer("running_var", norm.variance.clone())
        # A cumulative average (momentum=None) is captured as 0, which would never move.
        self.eps, self.momentum = norm.eps, norm.momentum or 0.1
        self.frozen = False
        self.grid: BiasGrid | None = None  # of the bias that this becomes a part of

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] normalized with the statistics of the batch in training, with the running ones otherwise."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self._gamma(), self.bias + self._residue(),
            self.training and not self.frozen, self.momentum, self.eps,
        )  # fmt: skip

    @torch.no_grad()
    def _residue(self) -> Tensor | float:
        """What rounding changes in the bias that ships, which is that of the running statistics."""
        if self.grid is None:
            return 0.0
        gain = self._gamma() / torch.sqrt(self.running_var + self.eps)
        mean = self.running_mean if self.grid.own is None else self.running_mean - self.grid.own
        return self.grid.residue(self.bias - mean * gain, gain)

    def _gamma(self) -> Tensor:
        """The magnitude of ``weight``, with a gradient at 0 as well: a channel that starts there can come to life."""
        return torch.where(self.weight < 0, -self.weight, self.weight)

    def affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Gain and offset, float64 [C]: what it does at inference is x * gain + offset."""
        mean, variance, gamma, beta = (
            tensor.detach().cpu().double().numpy()
            for tensor in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        gain = np.abs(gamma) / np.sqrt(variance + self.eps)
        return gain, beta - mean * gain


class Schedule:
    """What changes from epoch to epoch: fake quantizers freeze their averages, batch norms their statistics, late."""

    def __init__(self, graph_module: nn.Module) -> None:
        self.graph_module = graph_module

    def __call__(self, epoch: int, epochs: int) -> None:
        """To be called before every epoch, 1 to ``epochs``."""
        for module in self.graph_module.modules():
            if isinstance(module, LiveBatchNorm):
                module.frozen = settled(epoch, epochs)
            elif callable(start := getattr(module, "start_epoch", None)):
                start(epoch, epochs)


def require_widths(fake_quant: str, *, weight_bits: Iterable[int], activation_bits: Iterable[int]) -> None:
    """NotRepresentableError if the fake quantizer has no exact integer form of one of these widths."""
    method = plugins.load("fake quant", fake_quant)
    for bits in weight_bits:
        method.Weight(torch.tensor([[-1.0, 1.0]]), bits)
    for bits in activation_bits:
        method.Activation(bits, 0.0, 1.0)


def learns_activations(fake_quant: str) -> bool:
    """Whether the fake quantizer is about ranges of activations, so that without any it is not the method."""
    return bool(getattr(plugins.load("fake quant", fake_quant), "needs_activations", False))


def require_activations(fake_quant: str, placement: Placement) -> None:
    """NotApplicableError if the fake quantizer is about ranges, and all that it would train are found at run time."""
    trained = [layer for layer in placement.layers if not layer.exempt]
    if learns_activations(fake_quant) and trained and all(layer.input is None for layer in trained):
        raise NotApplicableError(
            f"{fake_quant} learns ranges of activations, and that of what {_and_more(trained)} reads is found at run "
            "time by its kernel.",
            "Use a fake quantizer of weights, such as lsq.",
        )


def _and_more(layers: Sequence[QuantizedLayer]) -> str:
    names = list(dict.fromkeys(layer.layer for layer in layers))
    return repr(names[0]) + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


@torch.no_grad()
def prepare(
    graph_module: fx.GraphModule, placement: Placement, norms: Mapping[str, FoldedNorm],
    batches: Iterable[Tensor | tuple[Tensor, ...]], *, fake_quant: str, observer: str = "minmax",
    observer_options: Mapping[str, Any] | None = None, portable: bool = True,
) -> fx.GraphModule:  # fmt: skip
    """The placed graph, ready to be trained: ``norms`` is what fold returned, ``batches`` calibrate first ranges.

    A batch norm comes back behind a layer with quantized weights; behind one that stays in float32 it stays folded.
    ``portable``: weights are trained within the limit that keeps products of codes from saturating (pairs.py).
    """
    method, plain = (plugins.load("fake quant", name) for name in (fake_quant, EXEMPT))
    calibration.watch(graph_module, placement, batches, observer=observer, **(observer_options or {}))
    trained = {layer.input.name for layer in placement.layers if layer.input is not None and not layer.exempt}
    calls = {str(n.target): n for n in reversed(graph_module.graph.nodes) if n.op == "call_module"}
    readers: dict[str, Any] = {}  # by layer: what quantizes its output, and nobody else reads that
    for name, quantizer in placement.activations.items():
        low, high = quantizer.observed_range()
        producer = _producer(calls[f"{name}.output_quantizer"], placement)
        make = (method if name in trained else plain).Activation
        fake = make(quantizer.scheme.bits, min(low, 0.0), max(high, 0.0), foldable=producer is not None)
        quantizer.fake, quantizer.scheme, quantizer.observer = fake, fake.scheme, None
        if producer is not None:
            readers[producer.name] = fake
    for layer in placement.layers:
        if layer.name in norms:
            _revive(graph_module, layer, norms[layer.name])
        if layer.weight.fake is None:  # a table may have one already, of the layer that looks its rows up
            weight = tensor_at(graph_module, layer.weight_path).detach()
            fake = _weight_fake_quant(plain if layer.exempt else method, layer, weight)
            # The codes of a method may reach further than their bits do.
            layer.weight.fake, layer.weight.scheme = fake, fake.scheme
        if portable and layer.pair_limit is not None:
            layer.weight.fake.limit = layer.pair_limit
        if layer.input is not None and not layer.recurrent:
            _round_bias(graph_module, layer, readers.get(layer.name))
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    # torch.export's own class of graph module refuses train() and eval().
    return fx.GraphModule(graph_module, graph_module.graph)


def finish(
    graph_module: fx.GraphModule, placement: Placement, *, portable: bool = True
) -> dict[str, NDArray[np.float32]]:
    """Convert the trained graph into the integer graph, in place; ``portable``: additions round alike (agreement.py).

    Returns the float32 weights that the codes stand for, batch norms folded in, by layer name.
    """
    graph_module.cpu().eval()
    _unround_biases(graph_module)
    calls = {str(n.target): n for n in reversed(graph_module.graph.nodes) if n.op == "call_module"}
    starts: dict[str, float] = {}  # by layer: where the interval of what reads it starts
    for name, quantizer in placement.activations.items():
        found = quantizer.fake.qparams()  # type: ignore[union-attr,operator]
        if found.start != 0:
            producer = _producer(calls[f"{name}.output_quantizer"], placement)
            if producer is None:
                raise QDeployError(f"The interval of {name!r} does not start at 0, and no bias can take that in.")
            starts[producer.name] = float(found.start)
        quantizer.set(float(found.scale), int(found.zero_point), float(found.dequantize_scale))
    if portable:
        agree(graph_module)
    settled: dict[QuantizedLayer, NDArray[np.float32]] = {}
    for layer in map(placement.deciding, placement.layers):
        if layer not in settled:
            settled[layer] = _settle(graph_module, layer, starts.get(layer.name, 0.0))
    convert(graph_module, placement)
    return {layer.name: settled[placement.deciding(layer)] for layer in placement.layers}


def _weight_fake_quant(method: Any, layer: QuantizedLayer, weight: Tensor) -> Any:
    try:
        made = method.Weight(weight, layer.weight.scheme.bits)
    except QDeployError as error:
        raise type(error)(f"The weight of {layer.name!r}: {error.message}", error.hint) from None
    return made


def _revive(graph_module: fx.GraphModule, layer: QuantizedLayer, norm: FoldedNorm) -> None:
    """Give a layer back the parameters that it had before its batch norm, and the batch norm behind it."""
    graph, node = graph_module.graph, layer.node
    sign = torch.where(norm.gamma < 0, -1.0, 1.0)
    set_parameter(graph_module, layer.weight_path, norm.weight * sign.reshape(-1, *[1] * (norm.weight.dim() - 1)))
    _set_bias(graph_module, layer, None if norm.bias is None else norm.bias * sign)
    path = f"{layer.name}.batch_norm"
    graph_module.add_submodule(path, LiveBatchNorm(norm))
    with graph.inserting_after(node):
        call = graph.call_module(path, (node,))
    call.meta["val"] = node.meta.get("val")
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)


def _round_bias(graph_module: fx.GraphModule, layer: QuantizedLayer, reader: Any) -> None:
    """Put a layer's bias, or that of the batch norm behind it, on the steps that it ships with.

    ``reader``: the fake quantizer of the layer's output, where there is only one.
    """
    bias, norm = argument(layer.node, 2, "bias"), _norm_behind(graph_module, layer.node)
    if bias is None and norm is None and reader is not None and reader.start() is not None:
        # Nothing to train, and something to ship: the start of the interval.
        _set_bias(graph_module, layer, torch.zeros(len(tensor_at(graph_module, layer.weight_path))))
        bias = argument(layer.node, 2, "bias")
        tensor_at(graph_module, str(bias.target)).requires_grad_(False)
    own = tensor_at(graph_module, str(bias.target)) if isinstance(bias, fx.Node) else None
    grid = BiasGrid(layer.input.fake, layer.weight.fake, reader, own)  # type: ignore[union-attr,arg-type]
    if norm is not None:
        graph_module.get_submodule(str(norm.target)).grid = grid  # type: ignore[assignment]
    elif isinstance(bias, fx.Node):
        path = f"{layer.name}.rounded_bias"
        graph_module.add_submodule(path, RoundedBias(grid))
        with graph_module.graph.inserting_before(layer.node):
            call = graph_module.graph.call_module(path, (bias,))
        call.meta["val"] = bias.meta.get("val")
        layer.node.replace_input_with(bias, call)


def _unround_biases(graph_module: fx.GraphModule) -> None:
    """Biases as they are stored; codes are made of them with the scales that are found in the end."""
    for node in list(graph_module.graph.nodes):
        if node.op == "call_module" and isinstance(graph_module.get_submodule(str(node.target)), RoundedBias):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)


def _settle(graph_module: fx.GraphModule, layer: QuantizedLayer, start: float) -> NDArray[np.float32]:
    """Give a trained layer its codes, scales and float bias, its batch norm folded in; returns its float32 weight.

    y = (w x + b) * gain + offset: the gain of an output channel goes into its scale, the offset into its bias. A gain
    so small that the bias would leave int32 keeps the codes of a larger scale, beside which they vanish all the same.
    """
    weight = tensor_at(graph_module, layer.weight_path).detach().cpu()
    codes = layer.weight.fake.quantized(weight)  # type: ignore[union-attr,operator]
    bias = layer_bias(graph_module, layer)
    scale, real = codes.scale.astype(np.float64), weight.numpy()
    norm = _norm_behind(graph_module, layer.node)
    if norm is not None:
        gain, offset = graph_module.get_submodule(str(norm.target)).affine()  # type: ignore[operator]
        bias = (0.0 if bias is None else bias.astype(np.float64)) * gain + offset
        scale, real = scale * gain, real * gain.reshape(-1, *[1] * (real.ndim - 1))
        norm.replace_all_uses_with(layer.node)
        graph_module.graph.erase_node(norm)
    if start:
        bias = (np.zeros(len(scale)) if bias is None else bias) - start
    if bias is not None:
        bias = bias.astype(np.float32)
        _set_bias(graph_module, layer, torch.from_numpy(bias))
    layer.weight.set(_representable(codes, scale, bias, layer))
    return real.astype(np.float32)


def _representable(
    codes: QTensor, scale: NDArray[np.float64], bias: NDArray[np.float32] | None, layer: QuantizedLayer
) -> QTensor:
    """The codes with the scale [C_out] that the folded layer has, raised where its bias would not fit int32."""
    try:
        smallest = smallest_scale(codes.codes, bias, layer)
    except QDeployError as error:
        raise QDeployError(f"The weight of {layer.name!r}: {error.message}", error.hint) from None
    shipped = np.maximum(scale.astype(np.float32), smallest)
    kept = codes.codes
    raised = scale < smallest
    if raised.any():
        ratio = (scale / shipped.astype(np.float64))[raised].reshape(-1, *[1] * (kept.ndim - 1))
        kept = kept.copy()
        kept[raised] = nearest_codes(kept[raised] * ratio, codes.scheme).astype(kept.dtype)
    return QTensor(kept, shipped, codes.zero_point, codes.scheme, axis=0)


def _set_bias(graph_module: fx.GraphModule, layer: QuantizedLayer, bias: Tensor | None) -> None:
    node = layer.node
    arguments: list[Any] = [*node.args, *[None] * (3 - len(node.args))]
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != "bias"}
    arguments[2] = None
    if bias is not None:
        path = f"{layer.name}.own_bias"
        set_parameter(graph_module, path, bias)
        with graph_module.graph.inserting_before(node):
            arguments[2] = graph_module.graph.get_attr(path)
        arguments[2].meta["val"] = bias
    node.args = tuple(arguments)


def _norm_behind(graph_module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    return users[0] if isinstance(graph_module.get_submodule(str(users[0].target)), LiveBatchNorm) else None


def _producer(call: fx.Node, placement: Placement) -> QuantizedLayer | None:
    """The layer whose bias can take in a shift of what the quantizer ``call`` reads: nobody else reads the value.

    Between them stand at most ReLUs, and the batch norm: relu(y) - start and relu(y - start) have the same codes.
    """
    layers = {layer.node: layer for layer in placement.layers}
    node = call.args[0]
    while isinstance(node, fx.Node) and len(node.users) == 1:
        if node in layers:
            return layers[node]
        if not (is_clip(node) and clip_range(node) == (0.0, np.inf)) and not _is_norm(node):
            return None
        node = node.args[0]
    return None


def _is_norm(node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    return isinstance(node.graph.owning_module.get_submodule(str(node.target)), LiveBatchNorm)  # type: ignore[union-attr]
