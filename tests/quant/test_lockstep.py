"""The two graphs side by side: the values at each stop are those of whole runs, whatever is kept in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx, nn

from qdeploy.core.errors import QDeployError
from qdeploy.core.qtensor import QTensor
from qdeploy.graph.operators import tensor_at
from qdeploy.quant import ptq
from qdeploy.quant.lockstep import Lockstep
from qdeploy.quant.placement import Placement, place
from qdeploy.quant.rounding.nearest import round_weight
from qdeploy.quant.weight_range import symmetric_scale
from tests.networks import Net, Net2, conv, graph_of, samples

BATCHES = list(samples(10, 8, 8, 8).split(4))


def network() -> nn.Module:
    """Residual, branches, a flattened linear layer, a layer that is called twice."""
    return Net(
        lambda m, x: m.d(torch.cat([m.b(m.a(x).relu()) + x, m.a(x).relu()], 1).flatten(1)).relu(),
        a=conv(), b=conv(), d=nn.Linear(1024, 5),
    ).eval()  # fmt: skip


def calibrated(net: nn.Module, *x: torch.Tensor) -> tuple[fx.GraphModule, Placement]:
    graph = graph_of(net, *x)
    placement = place(graph)
    ptq.calibrate(graph, placement, [x], observer="minmax")
    return graph, placement


def set_codes(graph: fx.GraphModule, layer) -> None:
    weight = tensor_at(graph, layer.weight_path).detach().numpy()
    scale = symmetric_scale(weight, layer.weight.scheme)
    codes = round_weight(weight, scale, layer.weight.scheme)
    layer.weight.set(QTensor(codes, scale, np.zeros(scale.shape, np.int8), layer.weight.scheme, axis=0))


class Recorder(fx.Interpreter):
    """Runs a graph whole and keeps every value."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node):
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


def whole(graph: fx.GraphModule, *x: torch.Tensor) -> dict[str, torch.Tensor]:
    recorder = Recorder(graph)
    with torch.no_grad():
        recorder.run(*x)
    return recorder.values


@pytest.mark.parametrize("in_memory", [1 << 30, 100_000, 0])
def test_inputs_at_every_layer_are_those_of_whole_runs(in_memory):
    net = network()
    graph, placement = calibrated(net, torch.cat(BATCHES))
    fresh = graph_of(net, BATCHES[0])  # the same names, no quantizers
    lockstep = Lockstep(graph, BATCHES, in_memory=in_memory)
    assert lockstep.shares == [0.4, 0.4, 0.2]
    for layer in placement.layers:
        lockstep.advance(layer.node)
        source = layer.node.args[0]
        found = [(x.clone(), x_hat.clone()) for x, x_hat, _ in lockstep.pairs(source)]
        for (x, x_hat), batch in zip(found, BATCHES, strict=True):
            torch.testing.assert_close(x_hat, whole(graph, batch)[source.name], rtol=0, atol=0)
            unquantized = next(n for n in fresh.graph.nodes if n.name == layer.node.name).args[0]
            torch.testing.assert_close(x, whole(fresh, batch)[unquantized.name], rtol=0, atol=0)
        set_codes(graph, layer)
    assert len(placement.layers) == 4


def test_a_shift_moves_the_quantized_output_only():
    graph, placement = calibrated(
        nn.Sequential(conv(), nn.Flatten(), nn.Linear(512, 3), nn.Linear(3, 2)).eval(), BATCHES[0]
    )
    first, second, third = (layer.node for layer in placement.layers)

    def inputs(shifted: dict[fx.Node, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        lockstep = Lockstep(graph, BATCHES[:1])
        lockstep.shift.update(shifted)
        found = []
        for node in (second, third):
            lockstep.advance(node)
            found.append(next(lockstep.pairs(node.args[0]))[:2])
        return found

    plain = inputs({})
    with torch.no_grad():
        graph.get_parameter(first.args[2].target).add_(0.5)
        moved = inputs({})  # both graphs
        graph.get_parameter(first.args[2].target).sub_(0.5)
    shifted = inputs({first: torch.full((8,), 0.5)})
    for at in range(2):
        torch.testing.assert_close(shifted[at][0], plain[at][0])
        torch.testing.assert_close(shifted[at][1], moved[at][1])


def test_only_what_is_still_read_is_kept():
    layers = {f"conv{i}": conv() for i in range(6)}
    graph, placement = calibrated(nn.Sequential(*layers.values()).eval(), BATCHES[0])
    lockstep = Lockstep(graph, BATCHES)
    for layer in placement.layers:
        lockstep.advance(layer.node)
        kept = lockstep._float + lockstep._quantized
        assert all(set(values) == {layer.node.args[0]} for values in kept)


def test_files_hold_what_memory_does_not():
    graph, placement = calibrated(nn.Sequential(conv(), conv()).eval(), BATCHES[0])
    lockstep = Lockstep(graph, BATCHES, in_memory=BATCHES[0].numel() * 4 * 3)
    lockstep.advance(placement.layers[1].node)
    source = placement.layers[1].node.args[0]
    mapped = [tensor.untyped_storage().filename for pair in lockstep.pairs(source) for tensor in pair[:2]]
    assert mapped[:3] == [None] * 3
    assert all(name is not None for name in mapped[3:])


def test_several_inputs_and_no_samples():
    net = Net2(lambda m, x, y: m.a(x) + m.b(y), a=conv(), b=conv()).eval()
    x, y = samples(4, 8, 8, 8), samples(4, 8, 8, 8, seed=1)
    graph, placement = calibrated(net, x, y)
    lockstep = Lockstep(graph, [(x, y), (x[:0], y[:0])])
    assert lockstep.shares == [1.0]
    for layer, value in zip(placement.layers, (x, y), strict=True):
        lockstep.advance(layer.node)
        torch.testing.assert_close(next(lockstep.pairs(layer.node.args[0]))[0], value)
    for nothing in ([], [(x[:0], y[:0])]):
        with pytest.raises(QDeployError, match="no calibration samples"):
            Lockstep(graph, nothing)
