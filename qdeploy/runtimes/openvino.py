"""OpenVINO: Intel's runtime, on its CPU device."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError
from qdeploy.runtimes import _calls

Arrays = Mapping[str, NDArray[Any]]


class Runtime:
    """A model loaded in OpenVINO's CPU device, for the shortest time of one call.

    ``model`` is an ONNX file or its bytes, ``threads`` None means the cores that this process is allowed, ``options``
    are OpenVINO's properties ("ENABLE_CPU_PINNING": "NO"); the only ``provider`` is "CPU". What is float in the model
    is computed in float32: left alone, OpenVINO takes bfloat16 where the CPU has it. A model whose shapes are not fixed
    is compiled again for the shapes that it is first called with, as one does who deploys it. QDeployError: OpenVINO is
    not installed, or refuses the model.
    """

    packages: ClassVar[tuple[str, ...]] = ("numpy", "openvino")
    # What there is to say where its answers are compared with those that a bundle was built with.
    note: ClassVar[str] = "OpenVINO rounds ties between codes in its own way: integer models may be off by a few steps"

    def __init__(
        self,
        model: bytes | Path,
        *,
        threads: int | None = None,
        provider: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        if provider not in (None, "CPU"):
            raise QDeployError(f"{provider!r} is no OpenVINO device that qdeploy runs.", 'The only one is "CPU".')
        data = _calls.model_bytes(model)
        self._properties = {
            "INFERENCE_NUM_THREADS": _calls.chosen_threads(threads),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            # Activations that the model does not quantize stay float, also before weights of few bits.
            "EXECUTION_MODE_HINT": "ACCURACY",
            **(options or {}),
        }
        openvino = _import()
        self._version: str = openvino.__version__.partition("-")[0]
        self._core = openvino.Core()
        start = time.perf_counter()
        try:
            self._model = self._core.read_model(data)
            compiled = self._core.compile_model(self._model, "CPU", self._properties)
        except RuntimeError as error:
            raise _load_error(error, self._version) from error
        self.load_ms = (time.perf_counter() - start) * 1e3  # without importing OpenVINO
        self._request = compiled.create_infer_request()
        self._fixed_for: dict[str, tuple[Any, ...]] = {}
        self.inputs: tuple[str, ...] = tuple(port.any_name for port in self._model.inputs)
        self.outputs: tuple[str, ...] = tuple(port.any_name for port in self._model.outputs)

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """The named ``outputs`` (all by default) for ``feeds``, one array [N, ...] an input."""
        wanted = _calls.wanted_outputs(self.inputs, self.outputs, feeds, outputs)
        ready = {name: np.asarray(value, order="C") for name, value in feeds.items()}
        if self._fixed_for != (forms := {name: (value.dtype, value.shape) for name, value in ready.items()}):
            self._fix(ready)
            self._fixed_for = forms
        try:
            # Shared: OpenVINO's own copies in Python take longer than a small model.
            results = self._request.infer(ready, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise QDeployError(f"OpenVINO failed to run the model: {_reason(error)}") from error
        return {name: results[name].copy() for name in wanted}

    @staticmethod
    def require() -> None:
        """QDeployError: OpenVINO is not installed here. Looks for it without importing it."""
        if importlib.util.find_spec("openvino") is None:
            raise QDeployError("OpenVINO is not installed here.", 'Run pip install "qdeploy[openvino]".')

    def describe(self) -> str:
        """The runtime, its version and the device: "openvino 2026.4.1 (CPU)"."""
        return f"openvino {self._version} (CPU)"

    def _fix(self, feeds: Arrays) -> None:
        """Check ``feeds``, and compile a model that takes several shapes for theirs."""
        for port in self._model.inputs:
            value, dtype, shape = feeds[port.any_name], port.element_type.to_dtype(), port.partial_shape
            # OpenVINO would convert the values, and give a model of fixed shapes others, without a word.
            if value.dtype != dtype or not shape.compatible(type(shape)(list(value.shape))):
                given = f"{value.dtype} {list(value.shape)}"
                raise QDeployError(f"The input {port.any_name!r} is {given}, and the model takes {dtype} {shape}.")
        if not self._model.is_dynamic():
            return
        model = self._model.clone()
        try:
            model.reshape({name: list(value.shape) for name, value in feeds.items()})
            self._request = self._core.compile_model(model, "CPU", self._properties).create_infer_request()
        except RuntimeError as error:
            raise QDeployError(f"OpenVINO cannot run the model with these shapes: {_reason(error)}") from error


def _import() -> Any:
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise QDeployError(
            f"The runtime 'openvino' is not installed here ({error}).", 'Run pip install "qdeploy[openvino]".'
        ) from error


def _load_error(error: RuntimeError, version: str) -> QDeployError:
    reason = _reason(error)
    # Weights of 1 to 3 and 5 to 7 bits are unpacked by a function of the model's own (export/passes/pack_weights.py).
    packed = "operations: qdeploy." in reason
    hint = "Build the bundle with packing: none; OpenVINO knows no functions that a model defines." if packed else ""
    return QDeployError(f"OpenVINO {version} cannot load the model: {reason.rstrip('.')}.", hint)


def _reason(error: RuntimeError) -> str:
    """The one line of an OpenVINO error that says what is wrong, without where in its source that was found."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()] or [""]
    return next((line for line in lines if line.startswith("No conversion rule")), lines[-1])
