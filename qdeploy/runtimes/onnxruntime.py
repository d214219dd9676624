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
from qdeploy.core.errors import QDeployError
from qdeploy.runtimes._calls import wanted_outputs
from qdeploy.runtimes._errors import qdeploy_errors


class Runtime:
    """A model loaded in onnxruntime; an adapter over ``runner.make_session``.

    ``model`` is an ONNX file or its bytes, ``threads`` None means the cores that this process is allowed,
    ``provider`` is "CPU" (None), "CUDA", "CoreML" ..., ``options`` are onnxruntime's configuration entries. A provider
    that is not there, or that onnxruntime gave up for the CPU, is a QDeployError.
    """

    # What answers the requests of runner.Worker for this runtime: a script that needs no qdeploy beside it.
    worker: ClassVar[Path] = Path(runner.__file__)
    packages: ClassVar[tuple[str, ...]] = ("numpy", "onnxruntime")

    def __init__(
        self,
        model: bytes | Path,
        *,
        threads: int | None = None,
        provider: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        if isinstance(model, Path) and not model.is_file():
            raise QDeployError(f"There is no model {model}.")
        source = model if isinstance(model, bytes) else str(model)  # a file may have its weights beside it
        with qdeploy_errors():
            self._session = runner.make_session(source, threads, options=options, provider=provider)
            self._provider = runner.provider_name(provider)
        self.inputs: tuple[str, ...] = tuple(value.name for value in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(value.name for value in self._session.get_outputs())

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """The named ``outputs`` (all by default) for ``feeds``, one array [N, ...] an input."""
        wanted = wanted_outputs(self.inputs, self.outputs, feeds, outputs)
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
