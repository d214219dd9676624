"""The tensors of a model that do not depend on its inputs: stored, or computed from stored ones.

Weights may lie packed in the file. They are unpacked here by onnx's reference implementation, which shares nothing with
onnxruntime, so that a mistake of one cannot hide behind the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator


class Constants:
    """Look-ups of constants by name, each computed once, when it is asked for."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._computed: dict[str, onnx.NodeProto] = {}  # by output
        self._arrays: dict[str, NDArray[Any]] = {}
        domains = {"", "ai.onnx", *(function.domain for function in model.functions)}
        for node in model.graph.node:
            known = all(name in self for name in node.input if name) and (node.input or node.op_type == "Constant")
            if known and node.domain in domains and not any(a.HasField("g") for a in node.attribute):
                self._computed.update(dict.fromkeys(node.output, node))

    def __contains__(self, name: str) -> bool:
        return name in self._stored or name in self._computed

    def get(self, name: str) -> NDArray[Any] | None:
        """The constant called ``name``; None if there is none."""
        if name not in self:
            return None
        if name not in self._arrays:
            stored = self._stored.get(name)
            self._arrays[name] = self._compute(name) if stored is None else numpy_helper.to_array(stored)
        return self._arrays[name]

    def stored_bytes(self, name: str) -> int:
        """The bytes that a constant takes in the file: those of the tensor that it is computed from."""
        while name in self._computed and self._computed[name].input:
            name = self._computed[name].input[0]
        stored = self._stored.get(name)
        return 0 if stored is None else len(stored.raw_data) or stored.ByteSize()

    def _compute(self, name: str) -> NDArray[Any]:
        outputs, stored, pending = set(), set(), [name]
        while pending:
            value = pending.pop()
            if value in self._stored:
                stored.add(value)
            elif value and value not in outputs:
                outputs.update(self._computed[value].output)
                pending.extend(self._computed[value].input)
        nodes = [node for node in self._model.graph.node if outputs.intersection(node.output)]
        result = onnx.helper.make_empty_tensor_value_info(name)
        graph = onnx.helper.make_graph(nodes, name, [], [result], [self._stored[value] for value in sorted(stored)])
        model = onnx.helper.make_model(
            graph, opset_imports=self._model.opset_import, functions=self._model.functions,
            ir_version=self._model.ir_version,
        )  # fmt: skip
        computed: Any = ReferenceEvaluator(model).run(None, {})  # a list, which its annotation leaves open
        return np.asarray(computed[0])
