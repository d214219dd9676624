"""Serve a bundle in any runtime where qdeploy is installed: ``python -m qdeploy.runtimes._worker NAME``.

onnxruntime needs none of this: runner.py serves it by itself, on machines without qdeploy too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from qdeploy import runner
from qdeploy.core import plugins
from qdeploy.core.errors import QDeployError


class Engine:
    """A runtime plugin as ``runner.Worker`` uses an engine."""

    def __init__(
        self, name: str, bundle: Mapping[str, Any], threads: int, options: Mapping[str, str] | None,
        provider: str | None,
    ) -> None:  # fmt: skip
        self._runtime = plugins.load("runtime", name)(
            bundle["model"], threads=threads, provider=provider, options=options
        )
        self.name: str = self._runtime.describe()
        self.note: str | None = getattr(self._runtime, "note", None)
        # Where loading is not all that the constructor does: it starts Node, or imports the runtime.
        self.load_ms: float | None = getattr(self._runtime, "load_ms", None)

    def check(self, feeds: dict[str, NDArray[Any]]) -> None:
        """Nothing: these runtimes run what they load, or refuse it."""

    def run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name."""
        outputs: dict[str, NDArray[Any]] = self._runtime.run(feeds)
        return outputs

    def block(self, feeds: dict[str, NDArray[Any]], seconds: float) -> list[int]:
        """Times of back-to-back calls, in nanoseconds; by the runtime's own clock where it runs elsewhere."""
        if hasattr(self._runtime, "block"):
            times: list[int] = self._runtime.block(feeds, seconds)
            return times
        return runner.time_block(lambda: self._runtime.run(feeds), seconds)

    def peak_rss_bytes(self) -> int:
        """The largest resident set of the process that the model is in."""
        measure = getattr(self._runtime, "peak_rss_bytes", runner.peak_rss_bytes)
        peak: int = measure()
        return peak


class Worker(runner.Worker):
    """``runner.Worker`` with another runtime's engine; its errors are told as the runner's own."""

    def __init__(self, name: str) -> None:
        self._name = name

    def engine(self, *arguments: Any) -> Engine:
        """The engine of a bundle."""
        return Engine(self._name, *arguments)

    def load(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """``runner.Worker.load``, with the time that the runtime itself took where it knows it."""
        loaded = super().load(*arguments, **named)
        return {**loaded, "load_ms": self.running.load_ms or loaded["load_ms"]}

    def finish(self) -> dict[str, Any]:
        """The last request."""
        return {"peak_rss_bytes": self.running.peak_rss_bytes()}

    def answer(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks for."""
        try:
            return super().answer(method, arguments)
        except QDeployError as error:
            raise runner.RunnerError(error.message, error.hint) from error


if __name__ == "__main__":
    runner.serve_process(Worker(sys.argv[1]))
