"""Layers that quantize what they read at run time: the kernels of the artifact, its graph, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from qdeploy.core.errors import NotApplicableError
from qdeploy.export import artifact
from qdeploy.graph.operators import tensor_at
from qdeploy.quant import ptq, qat
from qdeploy.quant.moments import columns
from qdeploy.quant.placement import Placement
from qdeploy.runtimes.onnxruntime import Runtime, optimized_graph
from qdeploy.verify.constants import Constants
from qdeploy.verify.coverage import coverage
from qdeploy.verify.dynamic import dynamic_layers
from qdeploy.verify.parity import parity
from qdeploy.verify.portability import portability

X = torch.randn(24, 6, 5, generator=torch.Generator().manual_seed(1))
DYNAMIC = "DynamicQuantizeLSTM"


class Sequences(nn.Module):
    """Two directions, two layers, and a linear layer on the last step."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 12, layers, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0][:, -1])


def model(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return Sequences(layers).eval()


def quantized(net: nn.Module, **options) -> tuple[torch.fx.GraphModule, Placement, bytes]:
    """The converted graph, its placement and the artifact."""
    solver = {key: options.pop(key) for key in ("rounding",) if key in options}
    made = artifact.placed(net, X[:2], first_last_bits=None, **options)
    ptq.quantize(made.graph, made.placement, [X], **solver)
    return made.graph, made.placement, artifact.to_onnx(made.graph, X[:2])


def alone(model: bytes, x: Tensor = X) -> np.ndarray:
    """The answers of one sample a call."""
    runtime = Runtime(model, threads=1)
    return np.concatenate([runtime.run({"x": sample[None].numpy()})["output"] for sample in x])


def kernels(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(optimized_graph(model)).graph.node]


@pytest.mark.parametrize(("bits", "rounding"), [(8, "nearest"), (4, "gptq"), (3, "adaround")])
def test_an_lstm_runs_in_its_integer_kernel_with_the_codes_and_answers_of_the_graph(bits, rounding):
    graph, placement, made = quantized(model(), weight_bits=bits, rounding=rounding)
    assert kernels(made).count(DYNAMIC) == 2
    with torch.no_grad():
        wanted = np.concatenate([graph(sample[None]).numpy() for sample in X])
    # A code of the linear layer's input may turn: one step of 8 bits.
    np.testing.assert_allclose(alone(made), wanted, atol=0.02 * np.abs(wanted).max())
    assert np.mean(np.abs(alone(made) - wanted)) < 1e-3 * np.abs(wanted).max()
    constants = Constants(onnx.load_from_string(made))
    for layer in placement.layers:
        if layer.recurrent:
            kind = "weight_hh" if layer.of_states else "weight_ih"
            codes = layer.weight.tensor.codes.reshape(2, 48, -1).swapaxes(1, 2)
            node = next(n for n in onnx.load_from_string(made).graph.node if n.name == layer.layer)
            np.testing.assert_array_equal(constants.get(node.input[1 + (kind == "weight_hh")]), codes)
            assert constants.stored_bytes(f"{layer.layer}.{kind}") == -(-codes.size * bits // 8)


def test_layers_hold_against_the_reference_and_float32():
    net = model()
    _, _, made = quantized(net, weight_bits=4)
    feeds = [{"x": sample[None].numpy()} for sample in X]
    found = {layer.name: layer for layer in parity(made, feeds, float_model=artifact.float32(net, X[:2]).model).layers}
    assert [(found[name].max_step, found[name].outputs_checked) for name in ("lstm.0", "lstm.1")] == [
        (0, 24 * 6 * 24)
    ] * 2
    assert 20 < found["lstm.0"].sqnr_local_db < 40


@pytest.mark.parametrize("wrong", ["gates", "direction", "scale"])
def test_a_reference_sees_other_gates_directions_and_scales(wrong):
    """The kernel's own answers, against a reference of weights that are not its own."""
    _, _, made = quantized(model(1))
    proto = onnx.load_from_string(made)
    (layer,), node = dynamic_layers(proto), next(n for n in proto.graph.node if n.op_type == DYNAMIC)
    x = X[:1].transpose(0, 1).numpy()
    proto.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    found = Runtime(proto.SerializeToString()).run({"x": X[:1].numpy()})[node.output[0]]
    assert np.abs(layer.answer(x) - found).max() < layer.step(x) / 2
    change = {
        "gates": lambda a: np.roll(a, 12, axis=-1),
        "direction": lambda a: a[::-1],
        "scale": lambda a: a * np.float32(1.5),
    }[wrong]
    for key in ("w_scale",) if wrong == "scale" else ("w", "w_scale"):
        layer.stored[key] = change(layer.stored[key])
    assert np.rint(np.abs(layer.answer(x) - found) / layer.step(x)).max() > 1


def test_an_answer_depends_on_what_else_is_in_the_batch_and_on_its_padding_but_not_on_threads_when_alone():
    _, _, made = quantized(model())
    loud = torch.cat([X[:1], 20 * X[1:2]])
    together = Runtime(made, threads=1).run({"x": loud.numpy()})["output"]
    assert np.abs(together[0] - alone(made, loud)[0]).max() > 1e-3
    one = {"x": X[:1].numpy()}
    answers = [Runtime(made, threads=threads).run(one)["output"] for threads in (1, 2, 4)]
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


def test_the_states_before_each_step_are_columns_of_the_directions():
    states = torch.arange(2 * 2 * 3 * 4.0).reshape(2, 2, 3, 4) + 1  # two steps, two directions
    made = artifact.placed(model(1), X[:2])
    layer = next(layer for layer in made.placement.layers if layer.of_states)
    found = columns(layer.node, states).reshape(2, 3, 2, 4)
    torch.testing.assert_close(found[1, :, 0], states[0, 0])
    torch.testing.assert_close(found[0, :, 1], states[1, 1])
    assert not found[0, :, 0].any()
    assert not found[1, :, 1].any()


def test_rounding_on_the_states_is_better_than_nearest_at_2_bits():
    net = model(1)
    with torch.no_grad():
        wanted = net(X).numpy()
    errors = [
        np.mean((alone(quantized(net, weight_bits=2, rounding=name)[2]) - wanted) ** 2) for name in ("nearest", "gptq")
    ]
    assert errors[1] < 0.8 * errors[0]


def test_weights_of_8_bits_hold_the_pair_rule():
    """What saturates on x86 without VNNI is in the proof, and portable weights are without it."""
    net = model(1)
    made = artifact.placed(net, X[:2])
    ptq.quantize(made.graph, made.placement, [X], portable=False)
    found = {one.name for one in portability(artifact.to_onnx(made.graph, X[:2])).saturation}
    assert "lstm" in found
    assert portability(quantized(net)[2]).saturation == ()


@pytest.mark.parametrize(("fake_quant", "bits"), [("lsq", 4), ("apot", 3), ("pact", 2), ("ste", 1), ("qil", 8)])
def test_trained_codes_are_what_ships(fake_quant, bits):
    made = artifact.placed(model(1), X[:2], weight_bits=bits, first_last_bits=None)
    graph = artifact.trainable(made, [X], fake_quant=fake_quant)
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.05)
    first = made.placement.layers[0]
    before = tensor_at(graph, first.weight_path).detach().clone()
    graph(X).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, tensor_at(graph, first.weight_path))
    wanted = {
        layer.name: layer.weight.fake.quantized(tensor_at(graph, layer.weight_path).detach())
        for layer in made.placement.layers if layer.recurrent
    }  # fmt: skip
    shipped = artifact.trained(graph, made, X[:2])
    (found,) = [layer for layer in dynamic_layers(onnx.load_from_string(shipped.model)) if layer.op == DYNAMIC]
    for layer, key in (("lstm.weight_ih", "w"), ("lstm.weight_hh", "r")):
        np.testing.assert_array_equal(found.stored[key].swapaxes(1, 2).reshape(96, -1), wanted[layer].codes)
        np.testing.assert_array_equal(found.stored[f"{key}_scale"].reshape(-1), wanted[layer].scale)


def test_what_learns_ranges_is_not_applicable_where_there_are_none():
    made = artifact.placed(model(), X[:2], weight_bits=4)  # the first and the last layer are kept at 8 bits
    with pytest.raises(NotApplicableError, match=r"pact learns ranges.*'lstm.1'"):
        qat.require_activations("pact", made.placement)
    qat.require_activations("lsq", made.placement)
    qat.require_activations("pact", artifact.placed(model(), X[:2], weight_bits=4, first_last_bits=None).placement)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv1d(6, 4, 3), nn.Linear(12, 16), nn.Linear(16, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.conv(x).relu().flatten(1)).relu())


def test_linear_layers_find_ranges_at_run_time_and_convolutions_stay_float32():
    torch.manual_seed(0)
    graph, placement, made = quantized(Mixed().eval(), dynamic=True)
    assert kernels(made).count("DynamicQuantizeMatMul") == 2
    assert not {"QuantizeLinear", "QLinearConv", "QGemm"} & set(kernels(made))
    assert "run time" in placement.float_layers["conv"]
    assert placement.activations == {}
    with torch.no_grad():
        wanted = np.concatenate([graph(sample[None]).numpy() for sample in X])
    np.testing.assert_allclose(alone(made), wanted, atol=1e-5)
    seen = {layer.name: layer for layer in parity(made, [{"x": sample[None].numpy()} for sample in X]).layers}
    assert [seen[name].max_step for name in "ab"] == [0, 0]


def test_a_table_that_a_linear_layer_multiplies_with_has_two_readers():
    """One looks rows up, the other has a kernel of its own with its own layout of the same codes."""
    torch.manual_seed(0)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = nn.Embedding(50, 16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(self.linear(self.table(x).mean(1)).relu(), self.table.weight)

    ids = torch.randint(0, 50, (8, 7))
    model = Tied().eval()
    made = artifact.quantized(model, ids[:2], [ids], dynamic=True).model
    (found,) = Runtime(made).run({"x": ids[:1].numpy()}).values()
    assert coverage(made).kernels["DynamicQuantizeMatMul"] == 2
    np.testing.assert_allclose(found, model(ids[:1]).detach().numpy(), atol=0.05)
