"""onnxruntime-web: the WebAssembly of browsers, run by Node."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError
from qdeploy.runtimes import _calls

TESTED = "1.30.0"  # npm's newest when this was written; it need not have the version that pip has
SCRIPT = Path(__file__).with_suffix(".mjs")
PACKAGE = "onnxruntime-web"

Arrays = Mapping[str, NDArray[Any]]


class Runtime:
    """A model loaded in onnxruntime-web in a Node process of its own, which ends with this object.

    ``model`` is an ONNX file or its bytes, ``threads`` None means the cores that this process is allowed, ``options``
    are onnxruntime's configuration entries; the only ``provider`` is "wasm". The calls run in Node, and ``block`` times
    them there: what the pipe between costs is in no time. QDeployError: no Node, no onnxruntime-web, or a model that
    it refuses.
    """

    packages: ClassVar[tuple[str, ...]] = ()  # nothing of pip's: Node, and onnxruntime-web of npm's

    def __init__(
        self,
        model: bytes | Path,
        *,
        threads: int | None = None,
        provider: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        if provider not in (None, "wasm"):
            raise QDeployError(f"onnxruntime-web has no provider {provider!r} in Node.", 'The only one is "wasm".')
        data, threads = np.frombuffer(_calls.model_bytes(model), np.uint8), _calls.chosen_threads(threads)
        request = {"package": str(find_package()), "threads": threads, "options": dict(options or {})}
        self._node = NodeProcess(find_node())
        loaded, _ = self._node.ask("load", {"model": data}, **request)
        self.inputs: tuple[str, ...] = tuple(loaded["inputs"])
        self.outputs: tuple[str, ...] = tuple(loaded["outputs"])
        self.load_ms: float = loaded["loadMs"]  # compiling WASM and making the session, without starting Node
        self._versions: dict[str, str] = loaded["versions"]

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """The named ``outputs`` (all by default) for ``feeds``, one array [N, ...] an input."""
        wanted = _calls.wanted_outputs(self.inputs, self.outputs, feeds, outputs)
        return self._node.ask("run", feeds, outputs=wanted)[1]

    def block(self, feeds: Arrays, seconds: float) -> list[int]:
        """Times of back-to-back calls for about ``seconds``, at least one, in nanoseconds, by Node's own clock.

        Calls of the first twentieth are not counted, as in ``runner.time_block``.
        """
        _calls.wanted_outputs(self.inputs, self.outputs, feeds, None)
        times: list[int] = self._node.ask("block", feeds, seconds=seconds)[0]["times"]
        return times

    def peak_rss_bytes(self) -> int:
        """The largest resident set that Node had: the model is there, and not in this process."""
        peak: int = self._node.ask("peak", {})[0]["bytes"]
        return peak

    @staticmethod
    def require() -> None:
        """QDeployError: there is no Node here, or no onnxruntime-web."""
        find_node()
        find_package()

    def describe(self) -> str:
        """The runtime, its version and where it runs: "onnxruntime-web 1.30.0 (WASM, Node 20.20.2)"."""
        return f"{PACKAGE} {self._versions['ort']} (WASM, Node {self._versions['node']})"

    def close(self) -> None:
        """End the Node process. Harmless when it has ended."""
        self._node.close()


class NodeProcess:
    """A Node process that runs ort_web.mjs, which says how messages look. It ends when this object goes."""

    def __init__(self, node: str) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self._process = subprocess.Popen(
                [node, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
            )
        except OSError as error:
            self._stderr.close()
            raise QDeployError(f"{node} cannot be started: {error}.", "QDEPLOY_NODE names another Node.") from error
        self.close = weakref.finalize(self, _end, self._process, self._stderr)

    def ask(self, do: str, arrays: Arrays, **arguments: Any) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Send a request with arrays by name; the reply and its arrays. QDeployError: what Node says went wrong."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        if stdin.closed:
            raise QDeployError("The Node process of this model has ended.", "Load the model again.")
        ready = {name: np.asarray(value, value.dtype.newbyteorder("=")) for name, value in arrays.items()}
        tensors = [
            {"name": name, "type": value.dtype.name, "dims": value.shape, "bytes": value.nbytes}
            for name, value in ready.items()
        ]
        text = json.dumps({"do": do, "tensors": tensors, **arguments}).encode()
        try:
            stdin.write(struct.pack("<I", len(text)) + text)
            for value in ready.values():
                stdin.write(value.tobytes())
            stdin.flush()
            reply = json.loads(_read(stdout, struct.unpack("<I", _read(stdout, 4))[0]))
            results = {tensor["name"]: _array(tensor, _read(stdout, tensor["bytes"])) for tensor in reply["tensors"]}
        except (EOFError, BrokenPipeError):
            raise self._death(do) from None
        except BaseException:  # the two no longer agree on where a message begins
            self.close()
            raise
        if "error" in reply:
            raise QDeployError(f"{PACKAGE} cannot {do} the model: {reply['error'].strip()}")
        return reply, results

    def _death(self, do: str) -> QDeployError:
        """The error for a process that ended instead of answering: with what it said last."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        code = self._process.poll()
        self._stderr.seek(0)
        said = [line.strip() for line in self._stderr.read().decode(errors="replace").splitlines() if line.strip()]
        self.close()
        told = next((line for line in said if "error" in line.lower()), said[-1] if said else "")
        how, hint = f"ended with exit code {code}", ""
        if code is not None and code < 0:
            how, hint = (
                f"was killed by {signal.Signals(-code).name}",
                "Most likely memory ran out: try a smaller batch.",
            )
        return QDeployError(f"Node {how} during {do!r}. {told}".strip(), hint)


def find_node() -> str:
    """Node's executable: $QDEPLOY_NODE, else the ``node`` of PATH. QDeployError: there is none."""
    named = os.environ.get("QDEPLOY_NODE")
    found = shutil.which(named or "node")
    if found is None:
        problem = f"QDEPLOY_NODE names {named}, which is no program" if named else "There is no Node on this machine"
        raise QDeployError(
            f"{problem}; {PACKAGE} runs in it.", "Install Node 18 or later and npm, from nodejs.org or your system."
        )
    return found


def find_package() -> Path:
    """The folder of npm's onnxruntime-web. QDeployError: there is none, and what would install it.

    It is looked for in $QDEPLOY_NODE_MODULES, and nowhere else where that is set; else in node_modules of the working
    directory and of those above it, and in that of ``cache()``.
    """
    named, here = os.environ.get("QDEPLOY_NODE_MODULES"), Path.cwd()
    usual = [folder / "node_modules" for folder in (here, *here.parents, cache())]
    for folder in [Path(named).resolve()] if named else usual:
        if (folder / PACKAGE / "package.json").is_file():
            return folder / PACKAGE
    install = f"npm install --prefix {cache()} {PACKAGE}@{TESTED}"
    if named:
        raise QDeployError(
            f"QDEPLOY_NODE_MODULES names {named}, which holds no {PACKAGE}.", f"Unset it and run {install}"
        )
    raise QDeployError(f"There is no {PACKAGE} in node_modules of {here}, above it, or of {cache()}.", f"Run {install}")


def cache() -> Path:
    """Where a user's Node packages lie that are no project's: $QDEPLOY_CACHE/node, else ~/.cache/qdeploy/node."""
    return Path(os.environ.get("QDEPLOY_CACHE") or "~/.cache/qdeploy").expanduser().resolve() / "node"


def _end(process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
    """Close what the process reads, which ends it; kill it where it does not listen."""
    with contextlib.suppress(OSError):  # what was still to be sent to a dead process
        assert process.stdin is not None
        process.stdin.close()
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdout, stderr):
        if stream is not None:
            stream.close()


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _array(tensor: Mapping[str, Any], data: bytes) -> NDArray[Any]:
    return np.frombuffer(data, tensor["type"]).reshape(tensor["dims"]).copy()
