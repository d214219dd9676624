"""A real ssh server on this machine, with keys of its own, for the tests of what works over ssh."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system import program


class Server:
    """sshd on 127.0.0.1. ``config`` is what ssh is told about it, for QDEPLOY_SSH_CONFIG; the host is called "device".

    A login's HOME and TMPDIR are folders of the test's own: ``home`` and ``temporary``.
    """

    def __init__(self, folder: Path, sshd: str, *settings: str) -> None:
        self.folder = folder
        self.home, self.temporary, self.config = folder / "home", folder / "tmp", folder / "config"
        self.known_hosts, self.key, self.log = folder / "known_hosts", folder / "key", folder / "log"
        for path in (self.home, self.temporary):
            path.mkdir()
        for key in ("host_key", "key", "other_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            subprocess.run(command, check=True, timeout=60)
        shutil.copy(folder / "key.pub", folder / "authorized_keys")
        self.port = free_port()
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.login_shell()
        (folder / "sshd_config").write_text("\n".join([
            "ListenAddress 127.0.0.1", f"Port {self.port}", f"HostKey {folder}/host_key", f"PidFile {folder}/pid",
            f"AuthorizedKeysFile {folder}/authorized_keys", "StrictModes no", "UsePAM no", "PasswordAuthentication no",
            "KbdInteractiveAuthentication no", "PermitRootLogin yes", "LogLevel VERBOSE",
            f"ForceCommand {folder}/login", *settings, "",
        ]))  # fmt: skip
        self.trust(folder / "host_key.pub")
        self.describe()
        self._sshd = sshd
        self.process = self.start()

    def login_shell(self, *lines: str) -> None:
        """What runs before each command, as a user's start-up files do. python3 is the one that runs the tests."""
        script = self.folder / "login"
        own = f"export HOME={self.home} TMPDIR={self.temporary} PATH={Path(sys.executable).parent}:$PATH; cd"
        script.write_text("\n".join(["#!/bin/sh", own, *lines, 'exec sh -c "$SSH_ORIGINAL_COMMAND"', ""]))
        script.chmod(0o755)

    def trust(self, public_key: Path) -> None:
        """Make ``public_key`` the one that is known for this host."""
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {public_key.read_text()}")

    def describe(self, **settings: object) -> None:
        """Write ``config``, with other settings than the right ones."""
        right = {
            "HostName": "127.0.0.1", "Port": self.port, "User": self.user, "IdentityFile": self.key,
            "IdentitiesOnly": "yes", "UserKnownHostsFile": self.known_hosts, "GlobalKnownHostsFile": "/dev/null",
        }  # fmt: skip
        lines = [f"  {name} {value}" for name, value in {**right, **settings}.items()]
        self.config.write_text("\n".join(["Host *", *lines, ""]))

    def start(self) -> subprocess.Popen[bytes]:
        """Start listening."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [self._sshd, "-D", "-e", "-f", str(self.folder / "sshd_config")], stdin=subprocess.DEVNULL, stderr=log
            )
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return process
            if process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"sshd does not listen: {self.log.read_text()}")

    def connections(self) -> list[int]:
        """The process ids of the logins that stand: the children of the listening sshd."""
        return children(self.process.pid)

    def drop(self) -> None:
        """Kill every login, as a network that breaks does."""
        for pid in self.connections():
            for child in (*children(pid), pid):  # the half that runs as the user, where there are two
                if Path(f"/proc/{child}/comm").read_text().startswith("sshd"):
                    os.kill(child, signal.SIGKILL)

    def left(self) -> list[str]:
        """What is in the temporary folder of logins."""
        return sorted(path.name for path in self.temporary.iterdir())

    def stop(self) -> None:
        """Stop listening, and end what is still logged in."""
        self.drop()
        self.process.terminate()
        self.process.wait(timeout=10)


def children(pid: int) -> list[int]:
    """The process ids of a process's children."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(*settings: str) -> Iterator[Server]:
    """A server, with more lines of sshd_config. Its folder's path is short: a socket's path has a limit."""
    sshd, ssh = program("sshd", "openssh-server"), program("ssh", "openssh-client")
    if sshd is None or ssh is None:
        pytest.skip("there is no ssh server here (Debian: apt install openssh-server)")
    if not Path("/proc/self/stat").is_file():
        pytest.skip("the tests find sshd's processes in /proc")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(parents=True, exist_ok=True)  # where sshd locks itself in until someone has logged in
    with tempfile.TemporaryDirectory(prefix="sshd-") as folder:
        server = Server(Path(folder), sshd, *settings)
        try:
            yield server
        finally:
            server.stop()
