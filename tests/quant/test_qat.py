"""What is trained is what ships: the graph with fake quantizers, its training, and the codes that leave it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from qdeploy.core import plugins
from qdeploy.core.errors import QDeployError
from qdeploy.export import artifact
from qdeploy.export.to_onnx import to_onnx
from qdeploy.graph.capture import capture
from qdeploy.graph.fold import fold
from qdeploy.graph.normalize import normalize
from qdeploy.graph.operators import tensor_at
from qdeploy.quant import qat
from qdeploy.quant.placement import place, weighted_layers
from qdeploy.quant.rules import layer_schemes
from qdeploy.runtimes.onnxruntime import Runtime
from qdeploy.verify.coverage import coverage
from qdeploy.verify.parity import parity, sqnr_db
from tests.networks import Net, conv, randomise, samples

METHODS = plugins.names("fake quant")
IMAGES = samples(16, 3, 8, 8)


def network(seed: int = 0) -> nn.Module:
    """Two blocks with a residual connection; batch norms with some negative gammas."""
    torch.manual_seed(seed)
    net = Net(
        lambda m, x: m.head(m.n3(m.c(y := m.n2(m.b(m.n1(m.a(x)).relu()).relu())) + y).relu().mean((2, 3))),
        a=conv(3, 8, bias=False), n1=nn.BatchNorm2d(8), b=conv(), n2=nn.BatchNorm2d(8), c=conv(bias=False),
        n3=nn.Identity(), head=nn.Linear(8, 4),
    )  # fmt: skip
    return randomise(net)


def plain(seed: int = 0) -> nn.Module:
    """Layers with batch norm and ReLU in a row, as they train."""
    torch.manual_seed(seed)
    net = randomise(Net(
        lambda m, x: m.head(m.n3(m.c(m.n2(m.b(m.n1(m.a(x)).relu())).relu())).relu().mean((2, 3))),
        a=conv(3, 8, bias=False), n1=nn.BatchNorm2d(8), b=conv(), n2=nn.BatchNorm2d(8), c=conv(bias=False),
        n3=nn.BatchNorm2d(8), head=nn.Linear(8, 4),
    ))  # fmt: skip
    net.n1.weight.data[:3].abs_().neg_()
    return net


def prepared(net, method="lsq", weights=4, activations=4, *, portable=True, **options):
    graph = capture(net, IMAGES[:2])
    norms = fold(graph)
    normalize(graph)
    schemes = layer_schemes(weighted_layers(graph), weight_bits=weights, activation_bits=activations, **options)
    placement = place(graph, layers=schemes)
    return qat.prepare(graph, placement, norms, [IMAGES], fake_quant=method, portable=portable), placement


def train(graph, steps=5, lr=0.05):
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(graph.parameters(), lr=lr)
    graph.train()
    for _ in range(steps):
        optimizer.zero_grad()
        graph(IMAGES).square().mean().backward()
        optimizer.step()
    graph.eval()


def answers(graph):
    with torch.no_grad():
        return graph(IMAGES).numpy()


@pytest.mark.parametrize("method", METHODS)
def test_the_prepared_graph_at_8_bits_answers_as_the_model_does(method):
    net = plain()
    graph, _ = prepared(net, method, 6 if method == "apot" else 8, 8)
    assert sqnr_db(answers(net), answers(graph.eval())) > 20


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("method", METHODS)
def test_the_codes_that_were_trained_are_the_codes_that_ship(method, bits):
    graph, placement = prepared(plain(), method, bits, bits)
    train(graph)
    expected = {
        layer.name: layer.weight.fake.quantized(tensor_at(graph, layer.weight_path).detach()).codes
        for layer in placement.layers
    }
    trained = answers(graph)
    qat.finish(graph, placement)
    for layer in placement.layers:
        assert np.array_equal(layer.weight.codes.numpy(), expected[layer.name])
        assert len(np.unique(expected[layer.name])) <= 2**layer.weight.scheme.bits
    # Biases too lie on the steps that ship; float32 sums have another order, so a code may fall differently.
    assert sqnr_db(trained, answers(graph)) > 60
    model = to_onnx(graph, IMAGES[:2])
    (found,) = Runtime(model).run({"x": IMAGES.numpy()}).values()
    assert sqnr_db(answers(graph), found) > 60
    checked = parity(model, [{"x": IMAGES.numpy()}])
    assert checked.differing_codes == 0
    assert checked.outputs_checked > 0
    assert coverage(model).integer_mac_share == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_is_trained(method):
    graph, _ = prepared(plain(), method)
    graph.train()
    graph(IMAGES).square().mean().backward()
    for name, parameter in graph.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_batch_norm_is_alive_in_training_and_folded_at_the_end():
    graph, placement = prepared(plain())
    norms = [module for module in graph.modules() if isinstance(module, qat.LiveBatchNorm)]
    before = [norm.running_mean.clone() for norm in norms]
    assert len(norms) == 3
    train(graph)
    assert all(not torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True))
    qat.finish(graph, placement)
    assert not any(isinstance(module, qat.LiveBatchNorm) for module in graph.modules())


def test_frozen_batch_norms_keep_their_statistics():
    graph, _ = prepared(plain())
    schedule = qat.Schedule(graph)
    frozen = []
    for epoch in range(1, 9):
        schedule(epoch, 8)
        frozen.append([module.frozen for module in graph.modules() if isinstance(module, qat.LiveBatchNorm)])
    assert frozen == [[False] * 3] * 6 + [[True] * 3] * 2
    norms = [module for module in graph.modules() if isinstance(module, qat.LiveBatchNorm)]
    before = [norm.running_mean.clone() for norm in norms]
    train(graph)
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True))


def test_negative_gammas_negate_the_weights():
    net = plain()
    assert (net.n1.weight < 0).any()
    graph, placement = prepared(net, "ste", 8, 8)
    floats = qat.finish(graph, placement)
    folded = net.a.weight * (net.n1.weight / torch.sqrt(net.n1.running_var + net.n1.eps)).reshape(-1, 1, 1, 1)
    assert np.allclose(floats["a"], folded.detach().numpy(), atol=1e-6)
    assert sqnr_db(answers(net), answers(graph)) > 25


@pytest.mark.parametrize("gamma", [0.0, 1e-30, 1e-12])
@pytest.mark.parametrize("bits", [8, 4, 1])
def test_a_gain_of_nothing_leaves_the_bias(gamma, bits):
    net = plain()
    with torch.no_grad():
        net.n2.weight[3], net.n2.bias[3] = gamma, 0.75
    graph, placement = prepared(net, "ste", bits, 8)
    trained = answers(graph.eval())
    qat.finish(graph, placement)
    layer = next(layer for layer in placement.layers if layer.name == "b")
    assert np.isfinite(layer.weight.scale.numpy()).all()
    bias = graph.get_submodule("b.bias_quantizer")()
    assert float(bias[3]) == pytest.approx(0.75, rel=1e-3)
    assert sqnr_db(trained, answers(graph)) > 20
    assert parity(to_onnx(graph, IMAGES[:2]), [{"x": IMAGES.numpy()}]).differing_codes == 0


def test_what_scales_behind_the_batch_norm_is_part_of_it():
    torch.manual_seed(0)
    net = randomise(Net(lambda m, x: m.b((m.n(m.a(x)) * 0.5 + 0.25).relu()), a=conv(3), n=nn.BatchNorm2d(8), b=conv()))
    graph, placement = prepared(net, "ste", 8, 8)
    assert sqnr_db(answers(net), answers(graph.eval())) > 25
    qat.finish(graph, placement)
    assert sqnr_db(answers(net), answers(graph)) > 25


def test_a_batch_norm_behind_a_sum_ships_as_a_layer_of_its_own():
    torch.manual_seed(0)
    net = Net(lambda m, x: m.b(m.n(m.a(y := m.s(x)) + y).relu()), s=conv(3), a=conv(), n=nn.BatchNorm2d(8), b=conv())
    graph, placement = prepared(randomise(net), "lsq", 4, 4)
    train(graph)
    qat.finish(graph, placement)
    assert coverage(to_onnx(graph, IMAGES[:2])).integer_mac_share == 1.0


@pytest.mark.parametrize("portable", [True, False])
def test_residual_networks_train_and_ship(portable):
    """The scales at which all kernels add alike are chosen at the end: the one thing that training does not see."""
    graph, placement = prepared(network(), portable=portable)
    train(graph)
    trained = answers(graph)
    qat.finish(graph, placement, portable=portable)
    assert sqnr_db(trained, answers(graph)) > (30 if portable else 60)
    model = to_onnx(graph, IMAGES[:2])
    assert parity(model, [{"x": IMAGES.numpy()}]).differing_codes == 0
    operators = {node.op_type for node in onnx.load_from_string(model).graph.node}
    assert "BatchNormalization" not in operators


def test_qil_folds_the_start_of_an_interval_into_the_bias_before_it():
    graph, placement = prepared(plain(), "qil")
    inner = [placement.activations[name].fake for name in ("relu", "relu_1")]
    train(graph, steps=20)
    starts = [float(fake.qparams().start) for fake in inner]
    assert max(starts) > 0
    trained = answers(graph)
    qat.finish(graph, placement)
    assert sqnr_db(trained, answers(graph)) > 60
    assert parity(to_onnx(graph, IMAGES[:2]), [{"x": IMAGES.numpy()}]).differing_codes == 0


def test_qil_gives_a_bias_to_a_layer_without_one():
    """The start of the interval behind it, on the steps that ship."""
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.head(m.b(m.a(x).relu()).relu().mean((2, 3))),
        a=conv(3, 8, bias=False), b=conv(bias=False), head=nn.Linear(8, 4),
    )  # fmt: skip
    graph, placement = prepared(randomise(net), "qil")
    biases = [name for name, parameter in graph.named_parameters() if not parameter.requires_grad]
    assert biases == ["a.own_bias"]
    train(graph, steps=20)
    assert not any(graph.get_parameter(name).any() for name in biases)
    trained = answers(graph)
    qat.finish(graph, placement)
    assert sqnr_db(trained, answers(graph)) > 60


def test_the_layers_that_are_exempt_are_plain_8_bits():
    graph, placement = prepared(plain(), "apot", 4, 4)
    kinds = {layer.name: type(layer.weight.fake).__module__.rpartition(".")[2] for layer in placement.layers}
    assert kinds == {"a": "ste", "b": "apot", "c": "apot", "head": "ste"}
    assert placement.layers[0].weight.fake.scheme.bits == 8
    del graph


def test_a_width_that_a_method_does_not_have_is_refused_with_the_layer():
    with pytest.raises(QDeployError, match=r"The weight of 'a'.*not representable"):
        prepared(plain(), "apot", 8, 8)


def test_the_state_of_training_can_be_saved_and_read_back():
    graph, placement = prepared(plain(), "lsq")
    train(graph)
    state = graph.state_dict()
    again, other = prepared(plain(), "lsq")
    again.load_state_dict(state)
    assert np.array_equal(answers(graph), answers(again.eval()))
    qat.finish(graph, placement)
    qat.finish(again, other)
    assert to_onnx(graph, IMAGES[:2]) == to_onnx(again, IMAGES[:2])


def test_a_cumulative_average_moves_in_training_too():
    net = plain()
    net.n1.momentum = None
    graph, _ = prepared(net)
    norm = graph.get_submodule("a.batch_norm")
    before = norm.running_mean.clone()
    train(graph)
    assert not torch.equal(norm.running_mean, before)


def test_a_gain_of_0_can_come_to_life():
    net = plain()
    net.n1.weight.data[0] = 0.0
    graph, _ = prepared(net)
    graph.train()
    graph(IMAGES).square().mean().backward()
    assert graph.get_submodule("a.batch_norm").weight.grad[0] != 0


def test_the_last_epoch_of_three_is_settled():
    graph, _ = prepared(plain())
    schedule, frozen = qat.Schedule(graph), []
    for epoch in (1, 2, 3):
        schedule(epoch, 3)
        frozen.append(graph.get_submodule("a.batch_norm").frozen)
    assert frozen == [False, False, True]


def test_after_equalization_batch_norms_stay_folded_and_the_function_what_it_was():
    net = plain()
    made = artifact.placed(net, IMAGES[:2], equalized=True)
    graph = artifact.trainable(made, [IMAGES], fake_quant="ste")
    assert sqnr_db(answers(net), answers(graph.eval())) > 20
