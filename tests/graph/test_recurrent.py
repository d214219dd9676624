"""LSTM layers, one node each: the function of torch's, with weights stored as ONNX wants them."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import Tensor, nn

from qdeploy.core.errors import QDeployError
from qdeploy.export.to_onnx import to_onnx
from qdeploy.graph.capture import capture
from qdeploy.graph.normalize import normalize
from qdeploy.graph.operators import is_operator
from qdeploy.graph.recurrent import LSTM
from qdeploy.runtimes.onnxruntime import Runtime

RESULTS = {
    "states": lambda y, h, c: y, "last step": lambda y, h, c: y[:, -1], "last state": lambda y, h, c: h[-1],
    "cell and all states": lambda y, h, c: torch.cat([c[0], h[0], y.mean((0, 1)).expand(c.shape[1], -1)], 1),
}  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self, result: str = "states", **options: object) -> None:
        super().__init__()
        self.lstm, self.result = nn.LSTM(5, 7, **options), result  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y, (h, c) = self.lstm(x if self.lstm.batch_first else x.transpose(0, 1))
        return RESULTS[self.result](y if self.lstm.batch_first else y.transpose(0, 1), h, c)


def graph_of(model: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    graph = capture(model.eval(), x)
    normalize(graph)
    return graph


@pytest.mark.parametrize(
    ("result", "options"),
    [
        ("states", {}),
        ("last step", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        ("last state", {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.5}),
        ("cell and all states", {"bidirectional": True}),
    ],
)
def test_the_graph_and_the_onnx_model_compute_what_torch_computes(result, options):
    torch.manual_seed(0)
    model, x = Recurrent(result, **options), torch.randn(2, 6, 5)
    graph, wanted = graph_of(model, x), model.eval()(x)
    layers = [node for node in graph.graph.nodes if is_operator(node, LSTM)]
    assert len(layers) == options.get("num_layers", 1)
    torch.testing.assert_close(graph(x), wanted)
    onnx_model = to_onnx(graph, x)
    torch.testing.assert_close(torch.from_numpy(Runtime(onnx_model).run({"x": x.numpy()})["output"]), wanted)
    stored = {tensor.name for tensor in onnx.load_from_string(onnx_model).graph.initializer}
    for node in onnx.load_from_string(onnx_model).graph.node:
        if node.op_type == "LSTM":
            assert {name for name in node.input[1:4] if name} <= stored


def test_gradients_reach_the_weights_that_torch_would_train():
    torch.manual_seed(0)
    model, x = Recurrent(bidirectional=True, batch_first=True), torch.randn(2, 6, 5)
    graph = graph_of(model, x)
    graph(x).square().sum().backward()
    model(x).square().sum().backward()
    lstm = model.lstm
    both = torch.stack([lstm.weight_hh_l0.grad, lstm.weight_hh_l0_reverse.grad])
    i, f, g, o = both.reshape(2, 4, 7, 7).unbind(1)
    torch.testing.assert_close(graph.get_parameter("lstm.weight_hh").grad, torch.stack([i, o, f, g], 1).reshape(-1, 7))


def test_an_initial_state_is_left_to_torch():
    class Continued(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(5, 7)

        def forward(self, x: Tensor) -> Tensor:
            _, state = self.lstm(x.transpose(0, 1))
            return self.lstm(x.transpose(0, 1), state)[0]

    graph = graph_of(Continued(), torch.randn(2, 6, 5))
    kinds = [
        LSTM if is_operator(n, LSTM) else "aten.lstm" for n in graph.graph.nodes if is_operator(n, LSTM, "aten.lstm")
    ]
    assert kinds == [LSTM, "aten.lstm"]


@pytest.mark.parametrize("layers", [1, 2])
def test_projections_are_refused(layers: int):
    """ONNX's LSTM has none, and torch.onnx exports one that no runtime computes."""
    with pytest.raises(QDeployError, match="Layer 'lstm' is an LSTM with projections") as error:
        graph_of(Recurrent(proj_size=3, num_layers=layers), torch.randn(2, 6, 5))
    assert "proj_size" in error.value.hint
