"""A host reached by ssh: ssh://user@host:port, with the keys and the configuration of the system's own ssh."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

from qdeploy.core.errors import QDeployError
from qdeploy.targets import _remote
from qdeploy.targets._base import Place, stand_alone_worker
from qdeploy.targets._ssh import LOST, Connection
from qdeploy.targets._worker import WorkerProcess

# Names that no shell and no option of ssh could take for anything else: ssh hands them to programs that a user's
# configuration names.
_ADDRESS = re.compile(
    r"(?:(?P<user>[\w.][\w.+-]*)@)?"
    r"(?:(?P<host>\w[\w.-]*)|\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\])"
    r"(?::(?P<port>\d{1,5}))?/?",
    re.ASCII,
)


class Target(Place):
    """A host with sh, Python 3 and an ssh server. Nothing of qdeploy has to be there, and none of its files stay.

    ``address`` is [USER@]HOST[:PORT][?python=PATH]; HOST may be a name out of the user's ssh configuration, and an IPv6
    address stands in brackets. Without ``python`` the host's python3 runs the bundles if it has the versions of numpy
    and onnxruntime that are installed here, else a virtual environment that is made there once, in ~/.cache/qdeploy.
    """

    def __init__(self, address: str = "") -> None:
        place, options = _remote.split_options("ssh", address, {"python": _remote.PYTHON})
        match = _ADDRESS.fullmatch(place)
        if match is None:
            raise QDeployError(
                f"{place!r} is no address of the target 'ssh'.",
                "For example ssh://pi@raspberrypi, ssh://host:2222, ssh://[fe80::1%eth0]. Other names of hosts and "
                "users belong into ~/.ssh/config, under a plain one.",
            )
        user, port = match["user"], match["port"]
        self.name = f"ssh://{place.removesuffix('/')}"
        self._python = options.get("python")
        self._destination = [*(["-l", user] if user else []), *(["-p", port] if port else [])]
        self._destination += ["--", match["host"] or match["ipv6"]]
        self._connection: Connection | None = None
        self._sent: dict[str, str] = {}  # the files there: path by name
        self._found = ""  # the Python there
        self._refused: QDeployError | None = None

    @staticmethod
    def require() -> None:
        """QDeployError: there is no ssh here."""
        if shutil.which("ssh") is None:
            raise QDeployError("OpenSSH's client, ssh, is not installed here.", "Install openssh.")

    def open(self, bundle: Path, *, name: str, runtime: str = "onnxruntime") -> WorkerProcess:
        """Start a process there that will run ``bundle``, called ``name`` in errors. QDeployError: it cannot.

        After a connection was lost, this connects again; a host that refused once is not asked twice.
        """
        script = stand_alone_worker(runtime, self.name)
        file, data = _remote.bundle_file(bundle)
        connection = self._connected()
        runner = self._send(connection, _remote.RUNNER, script.read_bytes(), "the runner")
        there = self._send(connection, file, data, name)
        return _Worker(connection, self._found, runner, bundle=there, name=name)

    def close(self) -> None:
        """Remove the folder there and log out."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> Connection:
        if self._refused is not None:
            raise self._refused
        if self._connection is None or not self._connection.alive:
            self.close()
            self._sent.clear()
            try:
                self._connection = Connection(self._destination, self.name)
                self._found = self._find_python(self._connection)
            except QDeployError as error:
                self._refused = error
                raise
        return self._connection

    def _send(self, connection: Connection, file: str, data: bytes, what: str) -> str:
        if file not in self._sent:
            self._sent[file] = connection.put(file, data, what)
        return self._sent[file]

    def _find_python(self, connection: Connection) -> str:
        """The Python there that will run bundles."""
        script = self._send(connection, _remote.FIND_PYTHON, _remote.find_python_source(), "a script")
        task = ["check"] if self._python else ["find", *_remote.wanted_versions()]
        # ssh starts in the home folder, so what follows ~/ is relative to it.
        python = re.sub("^~/", "./", self._python or "python3")
        # exec, so that what this starts is one group of processes with it.
        done = connection.run(f"exec {shlex.join([python, script, *task])}", step="looking for a Python")
        hint = "Name a Python there that has numpy and onnxruntime: ?python=/path/to/python3."
        if done.returncode in (126, 127):
            told = f"{self.name}: it has no {self._python or 'python3'}. {_remote.last_line(done.stderr)}"
            raise QDeployError(told, hint)
        found = _remote.found_python(done.stdout if done.returncode == 0 else done.stderr, self.name, hint)
        return python if self._python else found  # one that was named may be a script around the Python that it starts


class _Worker(WorkerProcess):
    """A worker behind a connection, which can be lost."""

    def __init__(self, connection: Connection, python: str, runner: str, *, bundle: str, name: str) -> None:
        self._connection, self._subject = connection, name
        # Not exec: with a shell around it, a worker that was killed is told from a connection that was lost.
        command = connection.command(f"export {_remote.QUIET}; {shlex.join([python, runner, 'worker'])}; exit $?")
        super().__init__(command, bundle=bundle, name=f"{name} on {connection.name}")

    def _death(self, do: str, line: bytes) -> QDeployError:
        error = super()._death(do, line)
        if self._process.returncode == LOST:
            return self._connection.lost(f"{do!r} of {self._subject}")
        if self._process.returncode == _remote.KILLED:
            return QDeployError(error.message, "Most likely memory ran out there; try a smaller batch.")
        return error
