"""An export with layers that quantize at run time is refused where it answers otherwise than its graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import permutations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn

from qdeploy.core.errors import QDeployError
from qdeploy.export import artifact, same_answers
from qdeploy.export.same_answers import require_same_answers
from qdeploy.quant import ptq
from tests.networks import Net

STEPS, WIDTH, IDS = 6, 12, 40
ORDERS = [order for order in permutations(range(4)) if order != (0, 1, 2, 3)]
MATRICES = ["weight_ih", "weight_hh"]
ARGUMENTS = {"weight": 1, "weight_ih": 1, "weight_hh": 2, "bias": 3, "weight_ih.scale": 8, "weight_hh.scale": 10}
Exported = tuple[fx.GraphModule, onnx.ModelProto, Tensor]


def export(net: nn.Module, example: Tensor, data: Tensor, **options) -> Exported:
    """The graph, the artifact with a byte for every code, and the example: zeros, as a build has it."""
    made = artifact.placed(net.eval(), example, first_last_bits=None, **options)
    ptq.quantize(made.graph, made.placement, [data])
    model = artifact.to_onnx(made.graph, example, packing="none")
    return made.graph, onnx.load_from_string(model), example


@cache
def lstm(tokens: bool, directions: int, *, hidden: int = 64, layers: int = 1, bits: int = 8) -> Exported:
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.fc(m.lstm(m.embed(x))[0][:, -1]),
        embed=nn.Embedding(IDS, WIDTH, padding_idx=0) if tokens else nn.Identity(),
        lstm=nn.LSTM(WIDTH, hidden, layers, bidirectional=directions == 2, batch_first=True),
        fc=nn.Linear(hidden * directions, 3),
    )
    example = torch.zeros(2, STEPS, dtype=torch.long) if tokens else torch.zeros(2, STEPS, WIDTH)
    data = torch.randint(0, IDS, (8, STEPS)) if tokens else torch.randn(8, STEPS, WIDTH)
    return export(net, example, data, weight_bits=bits)


@pytest.fixture(scope="module", params=[(False, 1), (False, 2), (True, 1), (True, 2)], ids=str)
def exported(request: pytest.FixtureRequest) -> Exported:
    return lstm(*request.param)


def stored_name(model: onnx.ModelProto, name: str) -> str:
    """What the tensor "LAYER.weight_hh" is called in the file."""
    node = next(node for node in model.graph.node if name.startswith(f"{node.name}.") and "Dynamic" in node.op_type)
    return node.input[ARGUMENTS[name.removeprefix(f"{node.name}.")]]


def seen(exported: Exported, change: Callable[[np.ndarray], np.ndarray], *names: str) -> bool:
    """Whether the check refuses the artifact with these of its tensors changed."""
    graph, model, example = exported
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in wrong.graph.initializer}
    for name in names:
        stored = tensors[stored_name(wrong, name)]
        array = np.ascontiguousarray(change(numpy_helper.to_array(stored).copy()))
        stored.CopyFrom(numpy_helper.from_array(array, stored.name))
    try:
        require_same_answers(graph, wrong.SerializeToString(), example)
    except QDeployError as error:
        return "answers otherwise than the graph" in str(error)
    return False


def reordered(order: Sequence[int], directions: Sequence[int]) -> Callable[[np.ndarray], np.ndarray]:
    """The gates of these directions in another order: [D, K, 4 * H] codes or [D, 4 * H] scales."""

    def change(array: np.ndarray) -> np.ndarray:
        for d in directions:
            gates = np.split(array[d], 4, axis=-1)
            array[d] = np.concatenate([gates[i] for i in order], axis=-1)
        return array

    return change


@pytest.mark.parametrize("matrix", MATRICES)
def test_every_other_order_of_gates_is_refused_in_either_direction(exported, matrix):
    """All 23, of 64 states as torch starts them, whose gates are almost alike."""
    name = stored_name(exported[1], f"lstm.{matrix}")
    codes = next(tensor for tensor in exported[1].graph.initializer if tensor.name == name)
    each = [(d,) for d in range(codes.dims[0])]
    names = (f"lstm.{matrix}", f"lstm.{matrix}.scale")
    assert len(ORDERS) == 23
    missed = [
        (order, directions) for order in ORDERS for directions in each
        if not seen(exported, reordered(order, directions), *names)
    ]  # fmt: skip
    assert missed == []


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (0, 2, 1, 3), (2, 1, 0, 3)])
def test_codes_without_their_scales_and_biases_in_another_order_are_refused(exported, order):
    def biases(array: np.ndarray) -> np.ndarray:  # [D, 8 * H]: those of the inputs, then those of the states
        halves = np.split(array, 2, axis=-1)
        return np.concatenate([reordered(order, [0])(half) for half in halves], axis=-1)

    for matrix in MATRICES:
        assert seen(exported, reordered(order, [0]), f"lstm.{matrix}")
    assert seen(exported, biases, "lstm.bias")


@pytest.mark.parametrize("tokens", [False, True])
def test_exchanged_directions_are_refused(tokens):
    made = lstm(tokens, 2)
    for matrix in MATRICES:
        assert seen(made, lambda array: array[::-1], f"lstm.{matrix}", f"lstm.{matrix}.scale")
    every = [f"lstm.{matrix}{part}" for matrix in MATRICES for part in ("", ".scale")]
    assert seen(made, lambda array: array[::-1], *every, "lstm.bias")


@pytest.mark.parametrize(
    ("tokens", "directions", "options"),
    [
        (False, 2, {"layers": 2}),
        (True, 1, {"bits": 4}),
        (True, 2, {"layers": 2, "bits": 1}),
        (False, 1, {"hidden": 3}),
    ],
)
def test_what_the_export_makes_passes_by_far(monkeypatch, tokens, directions, options):
    """Within a thousandth of the tolerance as well, and with packed weights."""
    graph, model, example = lstm(tokens, directions, **options)
    monkeypatch.setattr(same_answers, "LAYER_TOLERANCE", 1e-6)
    require_same_answers(graph, model.SerializeToString(), example)
    require_same_answers(graph, artifact.to_onnx(graph, example), example)


@pytest.mark.parametrize("matrix", MATRICES)
def test_layers_behind_others_are_compared_by_themselves(matrix):
    made = lstm(False, 2, layers=2)
    for layer in ("lstm.0", "lstm.1"):
        for order in ((2, 1, 0, 3), (1, 0, 2, 3)):
            assert seen(made, reordered(order, [1]), f"{layer}.{matrix}", f"{layer}.{matrix}.scale")


def test_a_module_that_is_called_twice_is_compared_twice():
    torch.manual_seed(0)
    net = Net(lambda m, x: m.lstm(m.lstm(x)[0])[0], lstm=nn.LSTM(8, 8, batch_first=True))
    made = export(net, torch.zeros(2, STEPS, 8), torch.randn(8, STEPS, 8))
    require_same_answers(made[0], made[1].SerializeToString(), made[2])
    _, second = (node for node in made[1].graph.node if node.op_type == "DynamicQuantizeLSTM")
    second.input[1], second.input[2] = second.input[2], second.input[1]  # both matrices are square
    with pytest.raises(QDeployError, match=f"layer '{second.name}'"):
        require_same_answers(made[0], made[1].SerializeToString(), made[2])


def test_layers_of_another_name_or_wiring_are_refused():
    graph, shipped, example = lstm(False, 2, layers=2)
    model = onnx.ModelProto()
    model.CopyFrom(shipped)
    node = next(node for node in model.graph.node if node.name == "lstm.1")
    node.name = "another"
    with pytest.raises(QDeployError, match=r"no layer 'lstm\.1'"):
        require_same_answers(graph, model.SerializeToString(), example)
    node.name = "lstm.1"
    turn = next(node for node in model.graph.node if node.name == "lstm.0.by_sample")
    turn.attribute[0].ints[:] = [0, 2, 3, 1]  # directions and states interleaved
    with pytest.raises(QDeployError, match=r"what layer 'lstm\.1' reads differs"):
        require_same_answers(graph, model.SerializeToString(), example)


def test_linear_layers_with_ranges_of_the_call_are_compared():
    torch.manual_seed(0)
    net = Net(lambda m, x: m.b(m.a(x).relu()), a=nn.Linear(12, 16), b=nn.Linear(16, 3, bias=False))
    made = export(net, torch.zeros(2, 12), torch.randn(8, 12), dynamic=True)
    require_same_answers(made[0], made[1].SerializeToString(), made[2])

    def exchanged(array: np.ndarray) -> np.ndarray:
        array[[0, 1]] = array[[1, 0]]
        return array

    assert seen(made, exchanged, "a.weight")
    assert seen(made, exchanged, "b.weight")


def test_ids_are_those_that_every_table_holds():
    """Tables of two sizes, and ids with an offset."""
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.lstm(m.a(x) + m.b(x + 3))[0],
        a=nn.Embedding(100, 8), b=nn.Embedding(20, 8), lstm=nn.LSTM(8, 8, batch_first=True),
    )  # fmt: skip
    graph, model, example = export(net, torch.zeros(2, STEPS, dtype=torch.long), torch.randint(0, 17, (8, STEPS)))
    inputs = same_answers._inputs(graph, example)
    assert len({tuple(x.flatten().tolist()) for x in inputs}) == same_answers.SAMPLES
    assert all(x.shape == (1, STEPS) and x.dtype == torch.long and int(x.max()) < 17 for x in inputs)
    require_same_answers(graph, model.SerializeToString(), example)


def test_an_export_asks(monkeypatch):
    """What artifact.quantized makes goes through the check."""
    asked: list[bytes] = []
    monkeypatch.setattr(artifact, "require_same_answers", lambda graph, model, example: asked.append(model))
    net = Net(lambda m, x: m.lstm(x)[0], lstm=nn.LSTM(4, 4, batch_first=True))
    made = artifact.quantized(net.eval(), torch.zeros(2, 3, 4), [torch.randn(4, 3, 4)])
    assert asked == [made.model]
