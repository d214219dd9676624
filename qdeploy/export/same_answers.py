"""Whether an artifact answers as the graph does that it was exported from.

Layer parity holds every kernel against what the artifact says of it. Where weights change their order on the way into
it, as an LSTM's gates do, what the artifact says could be wrong as a whole, and only the graph knows better.

Outputs alone see little of that: behind small weights the gates of an LSTM are almost alike. So each layer that
quantizes what it reads at run time is compared by itself. The graph runs node by node; such a layer reads what the
artifact's layer of the same name has read, and what the artifact's layer gave goes on to the nodes behind it. An error
stays where it is made, and nothing of it is rounded away before it is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from qdeploy.core.errors import QDeployError
from qdeploy.graph.layers import LAYER
from qdeploy.graph.operators import is_operator, shape_of
from qdeploy.runtimes.onnxruntime import Runtime

SAMPLES = 5
IDS = 256  # of integers, where there are no tables of embeddings
_LAYERS = ("qdeploy.dynamic_lstm", "qdeploy.dynamic_linear")
# Of differences, in root mean square, as shares of what is wanted. Between such layers and behind them both compute the
# same integers, but a last bit may become another code, of which there are few where activations have few bits.
TOLERANCE = 0.25
# Of such a layer on the same inputs. Kernels are within 1e-6 of the graph; a last bit that becomes another code may be
# more than this in a small sample, but hardly in most samples. Another order of gates was 6e-3 or more where tried.
LAYER_TOLERANCE = 1e-3
SMALLEST = 1e-6


@torch.no_grad()
def require_same_answers(graph_module: fx.GraphModule, model: bytes, example: Tensor) -> None:
    """QDeployError unless ``model`` answers as the graph does, layer by layer and as a whole.

    It is asked about inputs like ``example``, one sample a call: noise where they are real, else numbers that the
    graph's tables of embeddings hold.
    """
    runtime, layers = Runtime(model, threads=1), _Layers(graph_module, model)
    compared = _Compared()
    for x in _inputs(graph_module, example):
        feeds = {runtime.inputs[0]: x.numpy()}
        answers = layers.run(x, feeds, compared)
        found = runtime.run(feeds)
        for name, answer in zip(runtime.outputs, answers, strict=True):
            if answer.is_floating_point():
                compared.add(f"output {name!r}", answer.numpy(), found[name], TOLERANCE)
    compared.require()


class _Compared:
    """Differences of values, sample by sample. Most samples have to agree: an error that is no accident is in all."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[float, float, float]]] = {}  # size, error and the largest error

    def add(self, what: str, wanted: NDArray[Any], found: NDArray[Any], tolerance: float) -> None:
        if wanted.shape != found.shape:
            raise _refusal(f"{what} is of the shape {found.shape}, and not {wanted.shape}")
        wide = wanted.astype(np.float64)
        size, error = (float(np.sqrt(np.mean(np.square(v)))) if v.size else 0.0 for v in (wide, wide - found))
        self._found.setdefault(what, []).append((size, error, tolerance * size + SMALLEST))

    def require(self) -> None:
        for what, samples in self._found.items():
            beyond = [not error <= most for _, error, most in samples]  # so that one that is no number is beyond
            if 2 * sum(beyond) > len(samples):
                size, error, _ = samples[beyond.index(True)]
                raise _refusal(f"{what} differs by {error:.3g}, of {size:.3g}")


class _Layers:
    """The layers of a graph that quantize what they read at run time, beside those of its artifact."""

    def __init__(self, graph_module: fx.GraphModule, model: bytes) -> None:
        proto = onnx.load_from_string(model)
        nodes = {node.name: node for node in proto.graph.node}
        self._nodes = {
            node: nodes.get(node.meta[LAYER]) for node in graph_module.graph.nodes if is_operator(node, *_LAYERS)
        }
        missing = [str(node.meta[LAYER]) for node, own in self._nodes.items() if own is None]
        if missing:
            raise _refusal(f"it has no layer {missing[0]!r}")
        present = {value.name for value in (*proto.graph.input, *proto.graph.output)}
        wanted = [name for own in self._nodes.values() if own is not None for name in (own.input[0], *own.output)]
        for name in dict.fromkeys(wanted):
            if name and name not in present:
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
        self._runtime = Runtime(proto.SerializeToString(), threads=1)
        self._graph_module = graph_module

    def run(self, x: Tensor, feeds: Mapping[str, NDArray[Any]], compared: _Compared) -> list[Tensor]:
        """The graph's answers for ``x``, from what the artifact's layers gave for ``feeds``."""
        values = {**feeds, **self._runtime.run(feeds)}
        answers = _Beside(self._graph_module, self._nodes, values, compared).run(x)
        return [value for value in ([answers] if isinstance(answers, Tensor) else answers) if isinstance(value, Tensor)]


class _Beside(fx.Interpreter):
    """Runs a graph on the ``values`` of its artifact, and compares each layer of ``nodes`` with the artifact's."""

    def __init__(
        self, graph_module: fx.GraphModule, nodes: Mapping[fx.Node, Any], values: Mapping[str, NDArray[Any]],
        compared: _Compared,
    ) -> None:  # fmt: skip
        super().__init__(graph_module)
        self._nodes, self._values, self._compared = nodes, values, compared

    def run_node(self, n: fx.Node) -> Any:
        if n not in self._nodes:
            return super().run_node(n)
        own, layer = self._nodes[n], str(n.meta[LAYER])
        (entering, *others), _ = self.fetch_args_kwargs_from_env(n)
        read = self._values[own.input[0]]
        self._compared.add(f"what layer {layer!r} reads", entering.numpy(), read, TOLERANCE)
        assert callable(n.target)
        answers = n.target(torch.from_numpy(read), *others)
        if isinstance(answers, Tensor):
            found = torch.from_numpy(self._values[own.output[0]])
            self._compared.add(f"layer {layer!r}", answers.numpy(), found.numpy(), LAYER_TOLERANCE)
            return found
        given = []
        for index, (kind, answer) in enumerate(zip(("states", "last state", "last cell state"), answers, strict=True)):
            name = own.output[index] if index < len(own.output) else ""
            given.append(torch.from_numpy(self._values[name]) if name else answer)
            # Each direction by itself: the states are [T, D, N, H], the last ones [D, N, H].
            pairs = zip(answer.unbind(-3), given[-1].unbind(-3), strict=True)
            for direction, (wanted, found) in zip(("forward", "backward"), pairs, strict=False):
                what = f"layer {layer!r} ({kind}, {direction})"
                self._compared.add(what, wanted.numpy(), found.numpy(), LAYER_TOLERANCE)
        return tuple(given)


def _inputs(graph_module: fx.GraphModule, example: Tensor) -> list[Tensor]:
    """Some inputs of one sample each."""
    generator, shape = torch.Generator().manual_seed(0), example[:1].shape
    if example.is_floating_point():
        return [torch.randn(shape, generator=generator) for _ in range(SAMPLES)]
    tables = [shape_of(n.args[0])[:1] for n in graph_module.graph.nodes if is_operator(n, "aten.embedding")]
    count = max((size for shape in tables for size in shape), default=IDS)
    while True:
        found = [torch.randint(0, count, shape, generator=generator).to(example.dtype) for _ in range(SAMPLES)]
        try:
            for x in found:
                graph_module(x)
        except (IndexError, RuntimeError):
            # Another table is smaller, or the graph adds to its input before it looks it up.
            if count <= 1:
                raise
            count //= 2
        else:
            return found


def _refusal(what: str) -> QDeployError:
    return QDeployError(
        f"The exported model answers otherwise than the graph it was made from: {what}.",
        "This is a bug; please report the model.",
    )
