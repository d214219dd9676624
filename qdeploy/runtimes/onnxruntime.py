"""onnxruntime: the reference runtime, on every platform."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qdeploy import runner
from qdeploy.core.errors import QDeployError, nearest
from qdeploy.runtimes._errors import qdeploy_errors


class Runtime:
    """A model loaded in onnxruntime; an adapter over ``runner.make_session``.

    ``model`` is an ONNX file or its bytes, ``threads`` None means the cores that this process is allowed,
    ``options`` are onnxruntime's configuration entries. A provider that is not there, or that onnxruntime gave up
    for the CPU, is a QDeployError.
    """

    # The script that a target starts to time bundles in this runtime; it answers the requests of runner.Worker.
    worker: ClassVar[Path] = Path(runner.__file__)

    def __init__(
        self,
        model: bytes | Path,
        *,
        threads: int | None = None,
        provider: str = "CPUExecutionProvider",
        options: dict[str, str] | None = None,
    ) -> None:
        available = ort.get_available_providers()
        if provider not in available:
            raise QDeployError(
                f"onnxruntime has no provider {provider!r} here.",
                f"{nearest(provider, available)} Others need another onnxruntime package, such as onnxruntime-gpu.",
            )
        if isinstance(model, Path) and not model.is_file():
            raise QDeployError(f"There is no model {model}.")
        source = model if isinstance(model, bytes) else str(model)
        with qdeploy_errors():
            self._session = runner.make_session(source, threads, options=options, providers=[provider])
        active = self._session.get_providers()[0]
        if active != provider:
            raise QDeployError(
                f"onnxruntime could not start {provider} and fell back to {active}.",
                "Its drivers or libraries are missing; `qdeploy doctor` shows what is there.",
            )
        self._provider = provider
        self.inputs: tuple[str, ...] = tuple(value.name for value in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(value.name for value in self._session.get_outputs())

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """The named ``outputs`` (all by default) for ``feeds``, one array [N, ...] an input."""
        missing = [name for name in self.inputs if name not in feeds]
        unknown = [name for name in feeds if name not in self.inputs]
        if missing or unknown:
            problem = f"lacks the input {missing[0]!r}" if missing else f"has no input {unknown[0]!r} to feed"
            raise QDeployError(f"The call {problem}.", f"The model's inputs are {', '.join(self.inputs)}.")
        wanted = list(outputs or self.outputs)
        unknown = [name for name in wanted if name not in self.outputs]
        if unknown:
            raise QDeployError(f"The model has no output {unknown[0]!r}.", nearest(unknown[0], self.outputs))
        try:
            values = self._session.run(wanted, {name: np.ascontiguousarray(value) for name, value in feeds.items()})
        except runner.ORT_ERRORS as error:
            raise QDeployError(f"onnxruntime failed to run the model: {str(error).splitlines()[0]}") from error
        return dict(zip(wanted, values, strict=True))

    def describe(self) -> str:
        """The runtime, its version and the provider: "onnxruntime 1.31.1 (CPUExecutionProvider)"."""
        return f"onnxruntime {ort.__version__} ({self._provider})"


def optimized_graph(model: bytes) -> bytes:
    """The ONNX bytes of the graph that onnxruntime really runs for ``model`` on this CPU."""
    with tempfile.TemporaryDirectory() as folder, qdeploy_errors():
        path = Path(folder) / "optimized.onnx"
        runner.make_session(model, 1, optimized_path=str(path))
        return path.read_bytes()
