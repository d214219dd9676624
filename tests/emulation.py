"""Emulated CPUs for tests: fetched when they are missing, and asked many things by one process, which takes seconds."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from qdeploy.core.errors import QDeployError
from qdeploy.targets import _emulators

ARM64 = ("cortex-a72", "cortex-a76", "max")  # no dot product, dot product, i8mm and SVE
X86 = ("Nehalem", "Haswell")  # SSE4, AVX2
# Runs on the emulated CPU: every FOLDER/NAME.onnx with the arrays of NAME.npz and the session options of options.json.
SCRIPT = """
import json, pathlib, sys
import numpy, onnxruntime
folder = pathlib.Path(sys.argv[1])
answers = {}
for name, chosen in json.loads((folder / "options.json").read_text()).items():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    for key, value in chosen.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
    with numpy.load(folder / f"{name}.npz") as feeds:
        answers[name] = session.run(None, dict(feeds))[0]
numpy.savez(sys.argv[2], **answers)
"""


@pytest.fixture(scope="session")
def emulators() -> _emulators.Emulators:
    """qemu and the ARM64 Python. Fetches them the first time (half a minute); skips where they cannot be had."""
    try:
        return _emulators.fetch()
    except QDeployError as error:
        pytest.skip(f"emulated CPUs cannot be had here: {error.message}")


@dataclass(frozen=True)
class Question:
    """A model of one operator with constants, what it is fed by input name, and session options."""

    operator: str
    inputs: Sequence[str]
    feeds: Mapping[str, np.ndarray]
    constants: Mapping[str, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    def model(self) -> bytes:
        """The model, in onnxruntime's own domain where the operator is none of ONNX's."""
        standard = self.operator in ("QLinearConv", "QLinearMatMul", "QuantizeLinear", "DequantizeLinear")
        node = helper.make_node(
            self.operator, self.inputs, ["y"], domain="" if standard else "com.microsoft", **self.attributes
        )
        code = self.constants.get("y_zero", np.float32(0))
        values = {name: np.asarray(value) for name, value in self.constants.items()}
        graph = helper.make_graph(
            [node],
            self.operator,
            [_info(name, value) for name, value in self.feeds.items()],
            [_info("y", np.asarray(code), shaped=False)],
            [numpy_helper.from_array(value, name) for name, value in values.items()],
        )
        # Not of opset 21, whose QLinearMatMul session.x64quantprecision does not reach when it is written out.
        domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        return bytes(helper.make_model(graph, opset_imports=domains, ir_version=10).SerializeToString())


def ask(python: Sequence[str], questions: Mapping[str, Question], folder: Path) -> dict[str, np.ndarray]:
    """The answers by name, from one process that ``python`` starts. ``folder`` is there, and is for this alone."""
    for name, question in questions.items():
        (folder / f"{name}.onnx").write_bytes(question.model())
        np.savez(folder / f"{name}.npz", **question.feeds)
    options = {name: dict(question.options) for name, question in questions.items()}
    (folder / "options.json").write_text(json.dumps(options))
    (folder / "script.py").write_text(SCRIPT)
    command = [*python, str(folder / "script.py"), str(folder), str(folder / "answers.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "answers.npz") as answers:
        return dict(answers)


def _info(name: str, value: np.ndarray, shaped: bool = True) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, kind, value.shape if shaped else None)
