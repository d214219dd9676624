"""Walk the float32 graph and the quantized graph side by side, over all calibration batches, from layer to layer.

At each stop both stand still: the values there are known in float32 and with everything before them quantized, so that
what lies at the stop can be solved for. Then both go on. From stop to stop, values are kept only while a later node
reads them: in memory up to a limit, beyond it in temporary files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from qdeploy.core.errors import QDeployError
from qdeploy.graph.operators import is_operator, tensor_at
from qdeploy.quant.quantizer import ActivationQuantizer, WeightQuantizer

IN_MEMORY = 2 << 30  # bytes of values of both graphs that stay in memory between stops

Values = dict[fx.Node, Any]


class Lockstep:
    """One walk over a placed and calibrated graph, whose weights may get their codes on the way.

    The quantized graph uses the codes of the weights that have them and all frozen activation quantizers; the float32
    graph neither. ``shift``, float32 [C_out] by layer node, is what has become of a layer's bias in the quantized
    graph: it is added to the layer's output there. QDeployError if ``batches`` hold no sample.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        batches: Sequence[Tensor | tuple[Tensor, ...]],
        *,
        in_memory: int = IN_MEMORY,
    ) -> None:
        inputs = [(batch,) if isinstance(batch, Tensor) else tuple(batch) for batch in batches]
        inputs = [batch for batch in inputs if len(batch[0])]
        if not inputs:
            raise QDeployError("There are no calibration samples.", "Calibrate with at least one.")
        self.graph_module = graph_module
        self.in_memory = in_memory
        self.shares = [len(batch[0]) / sum(len(b[0]) for b in inputs) for batch in inputs]
        self.shift: dict[fx.Node, Tensor] = {}
        self._nodes = [node for node in graph_module.graph.nodes if not self._is_parameter(node)]
        placeholders = [node for node in self._nodes if node.op == "placeholder"]
        self._nodes = [node for node in self._nodes if node.op not in ("placeholder", "output")]
        self._index = {node: index for index, node in enumerate(self._nodes)}
        self._float: list[Values] = [dict(zip(placeholders, batch, strict=True)) for batch in inputs]
        self._quantized: list[Values] = [dict(values) for values in self._float]
        self._at = 0

    @torch.no_grad()
    def advance(self, stop: fx.Node) -> None:
        """Run all that comes before ``stop``. Stops come in the order of the graph."""
        end = self._index[stop]
        held = 0
        for float_values, quantized_values in zip(self._float, self._quantized, strict=True):
            for values, quantized in ((float_values, False), (quantized_values, True)):
                for node in self._nodes[self._at : end]:
                    values[node] = self._run(node, values, quantized)
                    for read in (node, *node.all_input_nodes):
                        if self._last_reader(read) <= self._index[node]:
                            values.pop(read, None)
            held = self._settle(float_values, quantized_values, held)
        self._at = end

    def pairs(self, node: fx.Node) -> Iterator[tuple[Tensor, Tensor, float]]:
        """A live node's values by batch: in the float32 graph, in the quantized one; and the batch's share."""
        for float_values, quantized_values, share in zip(self._float, self._quantized, self.shares, strict=True):
            yield float_values[node], quantized_values[node], share

    @torch.no_grad()
    def results(self, node: fx.Node) -> Iterator[tuple[Any, Any, float]]:
        """What the node where both stand will give, as weights and codes are now; nothing moves on."""
        for float_values, quantized_values, share in zip(self._float, self._quantized, self.shares, strict=True):
            yield self._run(node, float_values, False), self._run(node, quantized_values, True), share

    def parameter(self, node: fx.Node, *, quantized: bool) -> Tensor:
        """A stored tensor, as one of the graphs uses it; read anew each time, as codes come into being at a stop."""
        if node.op == "get_attr":
            return tensor_at(self.graph_module, str(node.target))
        weight = self.parameter(node.all_input_nodes[0], quantized=quantized)
        module = self.graph_module.get_submodule(str(node.target))
        return module(weight) if quantized else weight

    def _run(self, node: fx.Node, values: Values, quantized: bool) -> Any:
        def load(source: fx.Node) -> Any:
            return values[source] if source in values else self.parameter(source, quantized=quantized)

        args, kwargs = fx.map_arg(node.args, load), fx.map_arg(node.kwargs, load)
        if node.op == "call_module":
            module = self.graph_module.get_submodule(str(node.target))
            if isinstance(module, ActivationQuantizer) and not quantized:
                return args[0]
            return module(*args, **kwargs)
        assert callable(node.target)
        result = node.target(*args, **kwargs)
        if quantized and node in self.shift:
            shift = self.shift[node]
            axis = result.dim() - 1 if is_operator(node, "aten.linear") else 1
            result = result + shift.reshape(-1, *[1] * (result.dim() - 1 - axis))
        return result

    def _is_parameter(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            return True
        return node.op == "call_module" and isinstance(
            self.graph_module.get_submodule(str(node.target)), WeightQuantizer
        )

    def _last_reader(self, node: fx.Node) -> int:
        return max((self._index.get(user, -1) for user in node.users), default=-1)

    def _settle(self, float_values: Values, quantized_values: Values, held: int) -> int:
        """Move to files what does not fit beside the ``held`` bytes in memory; returns the bytes held after that."""
        placed: dict[int, Tensor] = {}  # both graphs share what is still the same in them
        for values in (float_values, quantized_values):
            for node, value in values.items():
                if not isinstance(value, Tensor) or value.untyped_storage().filename is not None:
                    continue
                if id(value) not in placed:
                    size = value.numel() * value.element_size()
                    fits = held + size <= self.in_memory
                    held += size if fits else 0
                    placed[id(value)] = value if fits else _in_file(value)
                values[node] = placed[id(value)]
        return held


def _in_file(value: Tensor) -> Tensor:
    """The same tensor, mapped from a temporary file whose space is free again when the tensor is gone."""
    handle, name = tempfile.mkstemp(prefix="qdeploy-")
    try:
        if hasattr(os, "posix_fallocate") and value.numel():
            # Without this a full disk is found when the mapped memory is written, by a signal.
            os.posix_fallocate(handle, 0, value.numel() * value.element_size())
        mapped = torch.from_file(name, shared=True, size=value.numel(), dtype=value.dtype).reshape(value.shape)
        return mapped.copy_(value)
    finally:
        os.close(handle)
        with suppress(PermissionError):  # Windows keeps a mapped file
            Path(name).unlink()
