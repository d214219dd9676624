"""A runner process on the other side of two pipes: what every target hands out, wherever the process runs."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from qdeploy import runner
from qdeploy.core.errors import QDeployError

START_SECONDS = 120.0  # starting Python, importing, sending the bundle's data and creating the session
PREDICT_SECONDS = 600.0  # a batch of samples, on an emulated CPU too
GRACE_SECONDS = 60.0  # on top of what a request asks the worker to measure


class WorkerProcess:
    """One bundle in one process that runs ``command`` (runner.py's ``worker``), asked over JSON lines.

    ``bundle`` is the bundle's path as the process sees it, ``name`` what errors call it, ``start_seconds`` how long
    it may take to start and load. Between requests the process
    blocks on its stdin and uses no CPU. A death, a timeout or an error on the other side is a QDeployError; the
    process is then gone. Use as a context manager: leaving it ends the process.
    """

    def __init__(
        self, command: Sequence[str], *, bundle: str, name: str, environment: Mapping[str, str] | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:  # fmt: skip
        self.name, self._bundle, self._start_seconds = name, bundle, start_seconds
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self._process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, env=environment
            )
        except OSError as error:
            self._stderr.close()
            raise QDeployError(f"{name}: {command[0]} cannot be started: {error}.") from error
        self._replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def load(
        self, *, threads: int | None = None, batch: int | None = None, options: Mapping[str, str] | None = None,
        provider: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Create the session and check one call's answers; with ``batch`` None, the answers to all golden samples.

        Returns {"load_ms", "threads", "runtime", "note", "golden": {"passed", ...}, "environment": {...}}.
        """
        return self._ask(
            self._start_seconds, "load", bundle=self._bundle, threads=threads, batch=batch,
            options=None if options is None else dict(options), provider=provider,
        )  # fmt: skip

    def predict(self, raw: Mapping[str, NDArray[Any]], limit_seconds: float = PREDICT_SECONDS) -> dict[str, Any]:
        """The outputs by name for raw samples [N, ...] by input name."""
        inputs = {name: runner.encode_array(array) for name, array in raw.items()}
        outputs = self._ask(limit_seconds, "predict", inputs=inputs)["outputs"]
        return {name: runner.decode_array(value) for name, value in outputs.items()}

    def warm_up(self, limit_seconds: float) -> dict[str, Any]:
        """Call the model until its times are steady. Returns {"call_seconds": median, "steady": bool}."""
        return self._ask(limit_seconds + GRACE_SECONDS, "warm_up", limit_seconds=limit_seconds)

    def block(self, seconds: float) -> list[int]:
        """Times of back-to-back calls for about ``seconds``, in nanoseconds."""
        times: list[int] = self._ask(seconds + GRACE_SECONDS, "block", seconds=seconds)["times_ns"]
        return times

    def finish(self) -> int:
        """End the process in order. Returns its peak resident set in bytes."""
        peak: int = self._ask(GRACE_SECONDS, "finish")["peak_rss_bytes"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self.close()
        return peak

    def close(self) -> None:
        """End the process, whatever it is doing. Harmless when it has ended."""
        for end in (self._process.terminate, self._process.kill):
            if self._process.poll() is None:
                end()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=2)
        self._reader.join(timeout=2)
        # A stream that another thread reads must not be closed: a grandchild may still hold the other end.
        stdout = None if self._reader.is_alive() else self._process.stdout
        for stream in (self._process.stdin, stdout, self._stderr):
            with contextlib.suppress(OSError):  # what was still to be sent to a dead process
                if stream is not None:
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, timeout: float, do: str, **arguments: Any) -> dict[str, Any]:
        request = json.dumps({"do": do, **arguments}) + "\n"
        stdin = self._process.stdin
        if stdin is None or stdin.closed:
            raise QDeployError(f"{self.name}: its worker has ended; it cannot {do} any more.")
        try:
            stdin.write(request.encode())
            stdin.flush()
            line = self._replies.get(timeout=timeout)
        except queue.Empty:
            self.close()
            raise QDeployError(
                f"{self.name}: no answer to {do!r} within {timeout:.0f} seconds.",
                "The model is too slow or too large for this machine; try a smaller batch.",
            ) from None
        except OSError:
            line = b""
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict) or "ok" not in reply:
            raise self._death(do, line)
        if not reply["ok"]:
            self.close()
            raise QDeployError(f"{self.name}: {reply['error']}", reply["hint"])
        return {key: value for key, value in reply.items() if key != "ok"}

    def _read(self) -> None:
        stdout = self._process.stdout
        for line in stdout or ():
            self._replies.put(line)
        self._replies.put(b"")  # the end of the stream

    def _death(self, do: str, line: bytes) -> QDeployError:
        """The error for a process that ended, or talks something else, instead of answering."""
        if not line:  # the stream has ended, so the process is about to
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2)
        code = self._process.returncode
        self._stderr.seek(0)
        said = self._stderr.read().strip() or line.strip()
        last = said.decode(errors="replace").rpartition("\n")[2]
        self.close()
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}" if code is not None else "does not speak the runner's protocol"
        hint = "Most likely memory ran out; try a smaller batch." if code == -signal.SIGKILL else ""
        return QDeployError(f"{self.name}: its worker {how} during {do!r}. {last}".strip(), hint)
