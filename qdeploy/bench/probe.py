"""What onnxruntime really does on this machine, found out by running it."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from qdeploy import runner


def default_threads() -> int | None:
    """How many threads a session gets when nobody says how many; None where the system does not tell."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        return None
    before = len(list(tasks.iterdir()))
    # Default options on purpose: this is what code that sets none gets.
    session = ort.InferenceSession(runner.PRODUCT, providers=["CPUExecutionProvider"])
    added = len(list(tasks.iterdir())) - before
    del session
    return added + 1  # the calling thread works, too
