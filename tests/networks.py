"""Small networks written in one line, and the whole line of qdeploy applied to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn

from qdeploy.core.scheme import QScheme
from qdeploy.export.to_onnx import to_onnx
from qdeploy.graph.capture import capture
from qdeploy.graph.fold import fold
from qdeploy.graph.layers import LAYER
from qdeploy.graph.normalize import normalize
from qdeploy.quant import ptq
from qdeploy.quant.placement import Placement, place
from qdeploy.runtimes.onnxruntime import Runtime, optimized_graph
from qdeploy.verify.coverage import Coverage, coverage
from qdeploy.verify.parity import Parity, parity, sqnr_db


class Net(nn.Module):
    """``Net(lambda m, x: m.b(m.a(x).relu()), a=conv(), b=conv())``: layers by name, and what forward does with them."""

    def __init__(self, run: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class Net2(Net):
    """A network of two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.run(self, x, y)


def conv(inputs: int = 8, outputs: int = 8, kernel: int = 3, **options: Any) -> nn.Conv2d:
    options.setdefault("padding", kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, **options)


def conv1d(inputs: int = 8, outputs: int = 8, kernel: int = 3, **options: Any) -> nn.Conv1d:
    options.setdefault("padding", kernel // 2)
    return nn.Conv1d(inputs, outputs, kernel, **options)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norm as after training: statistics and gains away from 0 and 1, some gains negative."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_(0, 0.5, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                module.weight.data.normal_(1, 0.5, generator=generator)
                module.bias.data.normal_(0, 0.5, generator=generator)
    return model.eval()


def label(value: Any) -> str:
    """What a test that takes networks and tensors is called."""
    if isinstance(value, Tensor):
        return "x".join(map(str, value.shape))
    if isinstance(value, nn.Module):
        return "+".join(type(module).__name__ for module in value.modules() if not list(module.children()))
    return str(value)


def samples(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def graph_of(model: nn.Module, *example: Tensor) -> fx.GraphModule:
    """Captured, folded, normalized."""
    graph = capture(model, example)
    fold(graph)
    normalize(graph)
    return graph


def operators(graph: fx.GraphModule) -> list[str]:
    """What the graph calls, without overloads: ["conv2d", "relu"]."""
    return [n.target._schema.name.split("::")[-1] for n in graph.graph.nodes if hasattr(n.target, "_schema")]


def layer_names(graph: fx.GraphModule) -> list[str]:
    return [node.meta[LAYER] for node in graph.graph.nodes if LAYER in node.meta]


def outputs_of(model: nn.Module, *inputs: Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        found = model(*inputs)
    return [value.numpy() for value in ([found] if isinstance(found, Tensor) else found)]


@dataclass
class Built:
    """A quantized artifact and what it was made from."""

    net: nn.Module
    example: tuple[Tensor, ...]
    graph: fx.GraphModule
    placement: Placement
    model: bytes
    _coverage: Coverage | None = field(default=None, init=False)

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        names = [value.name for value in onnx.load_from_string(self.model).graph.input]
        return {name: value.numpy() for name, value in zip(names, self.example, strict=True)}

    @property
    def running(self) -> Counter[str]:
        """The operators that onnxruntime runs."""
        nodes = onnx.load_from_string(optimized_graph(self.model)).graph.node
        return Counter(node.op_type.removeprefix("Nhwc") for node in nodes)

    @property
    def kernels(self) -> dict[str, int]:
        """The operators that onnxruntime runs, without what only changes layout."""
        layout = ("Transpose", "Reshape", "Flatten", "ReorderInput", "ReorderOutput")
        return {op: n for op, n in self.running.items() if op not in layout}

    @property
    def coverage(self) -> Coverage:
        if self._coverage is None:
            self._coverage = coverage(self.model)
        return self._coverage

    def parity(self) -> Parity:
        return parity(self.model, [self.feeds])

    def run(self) -> list[np.ndarray]:
        return list(Runtime(self.model).run(self.feeds).values())

    def sqnr(self) -> float:
        """The worst output against the float32 network, in decibels."""
        expected = outputs_of(self.net, *self.example)
        return min(sqnr_db(want, found) for want, found in zip(expected, self.run(), strict=True))


def build(
    net: nn.Module, *example: Tensor, keep_float: tuple[str, ...] = (), weight: QScheme | None = None,
    activation: QScheme | None = None, portable: bool = True, **export: Any,
) -> Built:  # fmt: skip
    """Quantize with min-max on the example itself; ``export``: options of to_onnx."""
    graph = graph_of(net.eval(), *example)
    placement = place(graph, weight=weight, activation=activation, keep_float=keep_float)
    ptq.quantize(graph, placement, [example], portable=portable)
    return Built(net, example, graph, placement, to_onnx(graph, example, **export))


def check(built: Built, *, share: float = 1.0, sqnr: float = 20.0) -> None:
    """What every artifact promises: the reference's codes, the share of integer work, an output close to float32's."""
    seen = built.parity()
    assert seen.differing_codes == 0
    assert max((layer.max_step for layer in seen.layers), default=0) <= 1
    assert built.coverage.integer_mac_share >= share
    assert built.sqnr() > sqnr
    for batch in (1, 3):
        feeds = {name: np.concatenate([value, value])[:batch] for name, value in built.feeds.items()}
        first = next(iter(Runtime(built.model).run(feeds).values()))
        assert len(first) % batch == 0
