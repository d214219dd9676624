"""Capture: a functional graph with a free batch, readable names, the caller's model untouched, errors that say why."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qdeploy.core.errors import QDeployError
from qdeploy.graph.capture import capture
from tests.networks import Net, Net2, conv, layer_names, operators, outputs_of, samples

IMAGES = samples(4, 8, 6, 6)


def names(model: nn.Module, *example: torch.Tensor) -> list[str]:
    return layer_names(capture(model, example or (IMAGES,)))


# ---------------------------------------------------------------------------------------------------------- names


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act = conv(), nn.BatchNorm2d(8), nn.ReLU()

    def forward(self, x):
        return F.relu(self.act(self.bn1(self.conv1(x))) + x)


def test_layers_are_called_after_their_modules():
    model = nn.Sequential(Block(), nn.Sequential(conv(), nn.ReLU6()))
    assert names(model) == ["input", "0.conv1", "0.bn1", "0.act", "0.add", "0.relu", "1.0", "1.1"]


def test_a_module_called_again_has_a_number():
    assert names(Net(lambda m, x: m.a(m.a(m.a(x))), a=conv())) == ["x", "a", "a_1", "a_2"]


def test_the_last_operator_of_a_torch_module_has_its_plain_name():
    """Conv2d with a padding mode pads first; the convolution is the layer."""
    model = Net(lambda m, x: m.a(m.a(x)), a=conv(padding_mode="reflect"))
    assert names(model) == ["x", "a.pad", "a", "a.pad_1", "a_1"]


def test_a_module_from_a_parametrization_keeps_its_place():
    model = Net(lambda m, x: m.a(x), a=nn.utils.parametrizations.weight_norm(conv()))
    assert names(model)[-1] == "a"


def test_a_made_up_name_never_falls_on_a_stored_tensor():
    """A layer's parameters will lie under its name: with another module's name they would overwrite that one's."""
    model = Net(lambda m, x: m.a_1(m.a(m.a(x))), a=conv(), a_1=conv())
    assert names(model) == ["x", "a", "a_2", "a_1"]
    model = Net(
        lambda m, x: m.add(x * m.x + m.mul), add=conv(), mul=nn.Parameter(IMAGES[:1]), x=nn.Parameter(IMAGES[:1])
    )
    assert names(model) == ["x_1", "mul_1", "add_1", "add"]


def test_names_are_unique_and_the_same_every_time():
    model = nn.Sequential(Block(), Block(), nn.Flatten(), nn.Linear(288, 4))
    first = names(model)
    assert len(set(first)) == len(first)
    assert names(model) == first
    assert names(model, samples(7, 8, 6, 6)) == first


def test_inputs_are_called_as_forward_calls_them():
    class Two(nn.Module):
        def forward(self, image, mask):
            return image * mask

    assert names(Two(), IMAGES, IMAGES)[:2] == ["image", "mask"]


# ------------------------------------------------------------------------------------------------- the caller's model


def test_the_callers_model_is_left_alone():
    model = nn.Sequential(Block(), Block())
    model[1].eval()  # as when half of a model is frozen
    training = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = capture(model, IMAGES)
    for tensor in (*graph.parameters(), *graph.buffers()):
        tensor.data.fill_(7)
    assert [module.training for module in model.modules()] == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_tied_weights_stay_tied():
    linear = nn.Linear(6, 6)
    other = nn.Linear(6, 6, bias=False)
    other.weight = linear.weight
    graph = capture(nn.Sequential(linear, other), IMAGES)
    assert len({id(p) for p in graph.parameters()}) == 2


# ----------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_any_batch_runs(batch):
    model = nn.Sequential(Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    x = samples(batch, 8, 6, 6, seed=1)
    torch.testing.assert_close(capture(model, IMAGES)(x), model(x))


def test_eval_mode_is_captured_whatever_the_model_is_in():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(8)).train()
    graph = capture(model, IMAGES)
    torch.testing.assert_close(graph(IMAGES), model.eval()(IMAGES))


def test_several_inputs_and_outputs():
    model = Net2(lambda m, x, y: (m.a(x) + y, x), a=conv())
    graph = capture(model, (IMAGES, IMAGES * 2))
    for found, expected in zip(graph(IMAGES, IMAGES * 2), outputs_of(model, IMAGES, IMAGES * 2), strict=True):
        torch.testing.assert_close(found.detach().numpy(), expected)


def test_capture_is_silent(capfd):
    """torch warns about its own internals when it captures an LSTM."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = capture(nn.LSTM(6, 4, batch_first=True), samples(3, 5, 6))
    assert "lstm" in operators(graph)
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("run", "message", "hint"),
    [
        (lambda m, x: x * 2 if x.sum() > 0 else x, "could not be captured", "control flow"),
        (lambda m, x: x.reshape(4, -1), "one batch size only", "flatten"),
        (lambda m, x: x @ torch.ones(5, 5), "could not be captured", "run on the example"),
        (lambda m, x: torch.from_numpy(x.numpy()), "could not be captured", ""),
        (lambda m, x: {"a": x}["b"], "could not be captured.*'b'", ""),
        (lambda m, x: m.absent(x), "absent", ""),
    ],
)
def test_a_model_that_cannot_be_captured_says_why(run, message, hint, capfd):
    with pytest.raises(QDeployError, match=f"Net.*{message}") as caught:
        capture(Net(run), IMAGES)
    assert hint in caught.value.hint
    assert len(caught.value.message) < 300
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("example", [IMAGES[:1], torch.tensor(1.0)])
def test_a_batch_of_one_is_refused(example):
    with pytest.raises(QDeployError, match="batch of at least 2"):
        capture(conv(), example)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_and_inputs_are_float32(dtype):
    with pytest.raises(QDeployError, match=f"'weight' of Conv2d is {dtype}") as caught:
        capture(conv().to(dtype), IMAGES)
    assert "model.float()" in caught.value.hint
    with pytest.raises(QDeployError, match=f"input 0 is {dtype}"):
        capture(conv(), IMAGES.to(dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value):
    model = nn.Sequential(conv(), conv())
    model[1].weight.data[0, 0] = value
    with pytest.raises(QDeployError, match=r"9 of the 576 values of '1\.weight'"):
        capture(model, IMAGES)


def test_a_mask_of_infinities_is_no_error():
    mask = torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf"))
    model = Net(lambda m, x: (x + m.mask).softmax(-1))
    model.register_buffer("mask", mask)
    assert "softmax" in operators(capture(model, IMAGES))
