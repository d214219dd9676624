"""A container of Docker or Podman: container:IMAGE, or container:IMAGE?cpus=1&memory=512m."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

from qdeploy.core.errors import QDeployError
from qdeploy.targets import _remote
from qdeploy.targets._base import Place, stand_alone_worker
from qdeploy.targets._worker import WorkerProcess

ENGINES = ("docker", "podman")
ENGINE_FAILED = 125  # the exit code of "run" where no container came to run
MOUNT = "/qdeploy"  # where the files are inside
# What an option becomes on the engine's command line, the pattern of its values, and an example.
OPTIONS = {
    "cpus": ("--cpus", r"(?=.*[1-9])\d+(\.\d+)?", "1"),
    "memory": ("--memory", r"[1-9]\d*[bkmg]?", "512m"),
    "platform": ("--platform", r"\w+/\w+(/\w+)?", "linux/arm64"),
}
_IMAGE = re.compile(r"\w[\w./:@-]*", re.ASCII)


class Target(Place):
    """A container for each process, without a network, which sees the runner and the bundles and cannot write to them.

    ``address`` is IMAGE[?cpus=N&memory=N&platform=OS/ARCH&python=PATH]. The image has to be here, with Python, numpy
    and onnxruntime in it; its entry point is not used. ``cpus`` and ``memory`` become limits of the container's cgroup,
    which the runner reads: threads default to the CPUs that are allowed.
    """

    def __init__(self, address: str = "") -> None:
        known = {name: (pattern, example) for name, (_, pattern, example) in OPTIONS.items()}
        self._image, options = _remote.split_options("container", address, {**known, "python": _remote.PYTHON})
        if not _IMAGE.fullmatch(self._image):
            raise QDeployError(
                f"{self._image!r} is no name of an image.",
                "For example container:qdeploy-runner, or container:registry.example/name:tag?cpus=1.",
            )
        self.name = f"container:{address}"
        self._python = options.pop("python", "python3")
        self._platform = options.get("platform", "")
        self._limits = [word for name, value in options.items() for word in (OPTIONS[name][0], value)]
        self._label = f"qdeploy={secrets.token_hex(8)}"  # what our containers are found by
        self._folder: Path | None = None
        self._engine = ""
        self._run: list[str] = []
        self._refused: QDeployError | None = None

    @staticmethod
    def require() -> None:
        """QDeployError: there is no Docker and no Podman here that works."""
        find_engine()

    def open(self, bundle: Path, *, name: str, runtime: str = "onnxruntime") -> WorkerProcess:
        """Start a container that will run ``bundle``, called ``name`` in errors. QDeployError: it cannot."""
        script = stand_alone_worker(runtime, self.name)
        file, data = _remote.bundle_file(bundle)
        folder = self._prepared()
        _put(folder / _remote.RUNNER, script.read_bytes())
        _put(folder / file, data)
        command = [*self._run, f"{MOUNT}/{_remote.RUNNER}", "worker"]
        return _Worker(command, bundle=f"{MOUNT}/{file}", name=f"{name} in {self.name}")

    def close(self) -> None:
        """Remove the containers that are left, and the files that they saw."""
        # Again: one whose client was ended while it started it may outlive the first attempt.
        for _ in range(5 if self._engine else 0):
            listed = _ask([self._engine, "ps", "--all", "--quiet", "--filter", f"label={self._label}"])
            left = listed.stdout.decode().split()
            if not left:
                break
            _ask([self._engine, "kill", *left])  # "rm --force" alone may ask them to leave, and wait
            _ask([self._engine, "rm", "--force", *left])
        self._engine = ""
        if self._folder is not None:
            shutil.rmtree(self._folder.parent, ignore_errors=True)
            self._folder = None

    def _prepared(self) -> Path:
        """The folder that containers see, once it is known that the image can run bundles."""
        if self._refused is not None:  # it will not be another answer for the next bundle
            raise self._refused
        if self._folder is None:
            # Private as a whole, and readable inside for whoever the image's user is.
            self._folder = Path(tempfile.mkdtemp(prefix="qdeploy-"), "files")
            self._folder.mkdir()
            self._folder.chmod(0o755)
            try:
                self._run = self._command(self._folder)
                self._check(self._folder)
            except QDeployError as error:
                self._refused = error
                raise
        return self._folder

    def _command(self, folder: Path) -> list[str]:
        """What starts Python in a container. QDeployError: no engine that works, or no such image."""
        self._engine, host = find_engine()
        seen = _ask([self._engine, "image", "inspect", "--format", "{{.Architecture}}", self._image])
        if seen.returncode != 0:
            called = Path(self._engine).name
            raise QDeployError(
                f"{self.name}: {called} has no such image. {_remote.last_line(seen.stderr)}",
                f"Run {called} pull {self._image}, or build it: docker/runner.Dockerfile.",
            )
        inside = self._platform.split("/")[1] if self._platform else _remote.last_line(seen.stdout)
        emulated = [] if runs_natively(inside, host) else ["--env", f"QDEPLOY_EMULATOR={inside} on {host}"]
        return [
            # Podman leaves a file "oom" in the working folder when it has killed for memory: let that be ours.
            "sh", "-c", 'cd "$0" && exec "$@"', str(folder.parent),
            self._engine, "run", "--rm", "--interactive", "--pull", "never", "--network", "none",
            "--label", self._label,
            # z: where SELinux guards files, these may be seen from a container. They are copies, made for it.
            "--volume", f"{folder}:{MOUNT}:ro,z", "--workdir", "/", "--env", _remote.QUIET, *emulated, *self._limits,
            # When the client here is ended it leaves at once; the runner inside then reads the end of its input.
            "--sig-proxy=false", "--entrypoint", self._python, self._image,
        ]  # fmt: skip

    def _check(self, folder: Path) -> None:
        """QDeployError unless a container starts, and Python in it has what the runner imports."""
        _put(folder / _remote.FIND_PYTHON, _remote.find_python_source())
        done = _ask([*self._run, f"{MOUNT}/{_remote.FIND_PYTHON}", "check"])
        told = f"{self.name}: {{}} {_remote.last_line(done.stderr)}"
        if done.returncode == ENGINE_FAILED:
            raise QDeployError(told.format("the container does not start."), "Try its limits and its image by hand.")
        hint = "docker/runner.Dockerfile builds an image that has all; ?python=PATH names another Python in this one."
        if done.returncode in (126, 127):
            raise QDeployError(told.format(f"it has no {self._python} that runs."), hint)
        if done.returncode == _remote.KILLED:
            raise QDeployError(told.format("Python was killed.").strip(), "Most likely ?memory=... is too little.")
        _remote.found_python(done.stdout if done.returncode == 0 else done.stderr, self.name, hint)


class _Worker(WorkerProcess):
    """A worker in a container, which can be killed when it takes more than it may."""

    def close(self) -> None:
        """End the process. The client of an engine may take no notice of a signal; the runner leaves without input."""
        if self._process.poll() is None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2)
        super().close()

    def _death(self, do: str, line: bytes) -> QDeployError:
        error = super()._death(do, line)
        if self._process.returncode == _remote.KILLED:
            return QDeployError(error.message, "Most likely memory ran out; try a smaller batch, or more: ?memory=2g.")
        return error


def find_engine() -> tuple[str, str]:
    """The container engine and the architecture that it runs on: QDEPLOY_CONTAINER's, else Docker or Podman.

    QDeployError: there is none, or none that answers.
    """
    named = os.environ.get("QDEPLOY_CONTAINER")
    found = [path for path in map(shutil.which, [named] if named else ENGINES) if path is not None]
    if not found:
        what = f"QDEPLOY_CONTAINER names {named}, which is no program here" if named else "There is no container engine"
        raise QDeployError(f"{what}.", "Install Docker or Podman.")
    refusals = []
    for engine in found:
        seen = _ask([engine, "version", "--format", "{{json .}}"])
        if seen.returncode == 0:
            return str(Path(engine).absolute()), _architecture(seen.stdout)
        refusals.append(f"{Path(engine).name} does not work: {_remote.last_line(seen.stderr)}")
    raise QDeployError(" ".join(refusals), "Is its service running, and may you use it?")


def runs_natively(inside: str, host: str) -> bool:
    """Whether a CPU of the architecture ``host`` runs programs for ``inside`` itself (both by Go's names)."""
    return not inside or not host or inside == host or (inside, host) in {("386", "amd64"), ("arm", "arm64")}


def _architecture(version: bytes) -> str:
    """The machine's in what an engine says about itself: its server's, which may be elsewhere, else the client's."""
    try:
        told = json.loads(version)
        part = told.get("Server") or told["Client"]
        return str(part.get("Arch") or part["OsArch"].rpartition("/")[2])
    except (ValueError, KeyError, AttributeError):
        return ""


def _put(file: Path, data: bytes) -> None:
    if not file.exists():
        file.write_bytes(data)
        file.chmod(0o644)


def _ask(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run an engine's command to its end."""
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    except OSError as error:
        raise QDeployError(f"{command[0]} cannot be started: {error.strerror}.", "Is it Docker or Podman?") from error
