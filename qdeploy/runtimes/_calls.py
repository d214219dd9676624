"""What every runtime refuses, in the same words: models that are not there, wrong names in a call, absurd threads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from qdeploy import runner
from qdeploy.core.errors import QDeployError, nearest


def model_bytes(model: bytes | Path) -> bytes:
    """The ONNX bytes of a model that is an ONNX file or its bytes. QDeployError: there is no such file."""
    if isinstance(model, bytes):
        return model
    if not model.is_file():
        raise QDeployError(f"There is no model {model}.")
    return model.read_bytes()


def chosen_threads(threads: int | None) -> int:
    """The threads to run with: None means the cores that this process is allowed. QDeployError: not a sane number."""
    allowed, reason = runner.allowed_cores()
    if threads is None:
        return allowed
    # Tens of thousands of threads stop a whole machine.
    if not 1 <= threads <= max(runner.THREAD_LIMIT, os.cpu_count() or 1):
        raise QDeployError(f"A model cannot run with {threads} threads.", f"Use 1 to {allowed} ({reason}).")
    return threads


def wanted_outputs(
    inputs: Sequence[str], outputs: Sequence[str], fed: Iterable[str], wanted: Sequence[str] | None
) -> list[str]:
    """The outputs that a call gives: those ``wanted``, or all. QDeployError: the model has other inputs or outputs."""
    fed = list(fed)
    missing = [name for name in inputs if name not in fed]
    unknown = [name for name in fed if name not in inputs]
    if missing or unknown:
        problem = f"lacks the input {missing[0]!r}" if missing else f"has no input {unknown[0]!r} to feed"
        raise QDeployError(f"The call {problem}.", f"The model's inputs are {', '.join(inputs)}.")
    unknown = [name for name in wanted or () if name not in outputs]
    if unknown:
        raise QDeployError(f"The model has no output {unknown[0]!r}.", nearest(unknown[0], outputs))
    return list(wanted or outputs)
