"""One login that lasts: every command on a host shares it, and a private folder there goes when it goes."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from qdeploy.core.errors import QDeployError
from qdeploy.targets._remote import last_line

LOGIN_SECONDS = 60.0  # after the connection stands: keys, and the start-up files of the shell there
PATH_LIMIT = 60  # characters of the temporary folder: the path of a socket has room for about 100
LOST = 255  # ssh's exit code for errors of its own
LOSS_SECONDS = 5.0  # for the login to end after a command over it has lost its connection
FOLDER = "qdeploy "  # what the line begins with that tells the folder

# fmt: off
OPTIONS = (
    "BatchMode=yes",  # no prompt could be answered
    "LogLevel=ERROR", "ConnectTimeout=15",
    "ServerAliveInterval=15", "ServerAliveCountMax=4",  # a dead network is noticed within a minute
    # What the user's configuration may ask for, and what only disturbs here.
    "RequestTTY=no", "RemoteCommand=none", "PermitLocalCommand=no", "ClearAllForwardings=yes", "ForwardAgent=no",
    "ForwardX11=no", "ControlPersist=no",
)
# fmt: on

# Makes the folder, tells its name, and waits. However the connection ends, cat does, and then the folder goes and with
# it whoever works in it: pkill finds them by the folder's name in their command lines. One line, and quoted as every
# shell reads it, the C shell too.
KEEPER = (
    'umask 077; d=$(mktemp -d "${TMPDIR:-/tmp}/qdeploy.XXXXXXXX") || exit 73; '
    'end() { pkill -f "$d/" 2>/dev/null; rm -rf "$d"; }; trap end EXIT; trap "exit 143" HUP INT TERM; '
    'echo "qdeploy $d"; cat >/dev/null'
)

# What ssh says, what it means, and what helps.
REFUSALS = (
    ("IDENTIFICATION HAS CHANGED", "its host key is not the known one", "Somebody may listen in, or it was set up "
     "anew: find out which. `ssh-keygen -R` forgets the old key."),
    ("Host key verification failed", "its host key is not known here", "Connect once by hand with ssh and compare the "
     "key's fingerprint; qdeploy never accepts a key unseen."),
    ("Permission denied", "it refuses the login", "qdeploy cannot type a password: put a key there (ssh-copy-id), and "
     "unlock it (ssh-add)."),
    ("Too many authentication failures", "it refuses the login", "Name the key in ~/.ssh/config: IdentityFile and "
     "IdentitiesOnly yes."),
    ("Could not resolve hostname", "no host has this name", "Check the name; ~/.ssh/config may define short ones."),
    ("Connection refused", "nothing answers at its ssh port", "Is sshd running there? Another port is :PORT."),
    ("timed out", "it does not answer", "Is it switched on, and in this network?"),
    ("No route to host", "no route leads to it", "Is it switched on, and in this network?"),
    ("Network is unreachable", "no route leads to it", "Is this machine in its network?"),
)  # fmt: skip


class Connection:
    """A login on a host, through the system's own ``ssh``: its configuration, its keys, its known hosts.

    ``destination`` is what ssh is told (["-p", "22", "--", "host"]), ``name`` what errors call the host. QDeployError:
    no ssh here, an unknown host key, a refused login, no shell there.
    """

    def __init__(self, destination: Sequence[str], name: str) -> None:
        ssh = shutil.which("ssh")
        if ssh is None:
            raise QDeployError(f"{name} needs OpenSSH's client, ssh, which is not installed here.", "Install openssh.")
        self.name = name
        configuration = _configuration()
        base = tempfile.gettempdir()
        self._local = tempfile.mkdtemp(prefix="qdeploy-", dir=base if len(base) <= PATH_LIMIT else "/tmp")
        socket = f"{self._local}/s".replace("%", "%%")
        shared = [f"-o{option}" for option in OPTIONS]
        self._ssh = [ssh, *configuration, *shared, "-S", socket]
        self._destination = list(destination)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        # In a session of its own: Ctrl-C in the terminal must not end it before the folder there is gone.
        self._master = subprocess.Popen(
            [*self._ssh, "-oControlMaster=yes", *self._destination, posix_shell(KEEPER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, start_new_session=True,
        )  # fmt: skip
        try:
            self.folder = self._folder()
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether the login still stands."""
        return self._master.poll() is None

    def command(self, script: str) -> list[str]:
        """What to start here for ``script``, one line of POSIX shell, to run there."""
        return [*self._ssh, "-oControlMaster=no", *self._destination, posix_shell(script)]

    def run(self, script: str, *, step: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run ``script`` there with ``data`` as its stdin. QDeployError, naming ``step``: the connection is lost."""
        done = subprocess.run(self.command(script), input=data, capture_output=True)
        if done.returncode == LOST:
            raise self.lost(step, done.stderr)
        return done

    def put(self, file: str, data: bytes, what: str) -> str:
        """Write ``data`` to ``file`` in the folder there, whole or not at all. Returns its path there."""
        path = f"{self.folder}/{file}"
        part = shlex.quote(f"{path}.part")
        # A connection that breaks ends cat like the end of the data does, so the length tells.
        script = f"cat > {part} && [ $(($(wc -c < {part}))) -eq {len(data)} ] && mv {part} {shlex.quote(path)}"
        done = self.run(script, step=f"copying {what}", data=data)
        if done.returncode != 0:
            told = f"{self.name}: {what}, {len(data) >> 20} MiB, cannot be written there. {last_line(done.stderr)}"
            raise QDeployError(told.strip(), "Free some space in its temporary folder.")
        return path

    def lost(self, step: str, said: bytes = b"") -> QDeployError:
        """The error for a connection that broke during ``step``; by then `alive` says so as well."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # the command and the login hear of it one after the other
            self._master.wait(timeout=LOSS_SECONDS)
        told = f"{self.name}: the connection was lost during {step}. {last_line(said)}".strip()
        return QDeployError(told, "Is the host still there? Try again.")

    def close(self) -> None:
        """Remove the folder there and log out. Harmless when that is done."""
        for end in (self._leave, self._master.terminate, self._master.kill):
            if self._master.poll() is None:
                end()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._master.wait(timeout=10)
        self._leave()
        for stream in (self._master.stdout, self._stderr):
            if stream is not None:
                stream.close()
        shutil.rmtree(self._local, ignore_errors=True)

    def _leave(self) -> None:
        """End the stdin of what keeps the folder."""
        with contextlib.suppress(OSError):
            if self._master.stdin is not None:
                self._master.stdin.close()

    def _folder(self) -> str:
        """The folder that was made there, once the login stands."""
        line = _first_line(self._master, LOGIN_SECONDS)
        if line.startswith(f"{FOLDER}/"):
            return line.removeprefix(FOLDER)
        if line:
            raise QDeployError(
                f"{self.name}: its shell prints {line[:60]!r} before what a command prints.",
                "Its start-up files (~/.bashrc and the like) must be silent where no person logs in.",
            )
        code = self._master.poll()
        if code is None:
            raise QDeployError(f"{self.name}: the login took more than {LOGIN_SECONDS:.0f} seconds.")
        self._stderr.seek(0)
        raise _refusal(self.name, code, self._stderr.read())


def posix_shell(script: str) -> str:
    """The words that have ``script`` run by sh, whatever shell the user has there."""
    return f"exec sh -c {shlex.quote(script)}"


def _configuration() -> list[str]:
    """Ssh's -F for QDEPLOY_SSH_CONFIG, which takes the place of ~/.ssh/config."""
    named = os.environ.get("QDEPLOY_SSH_CONFIG")
    if not named:
        return []
    if not Path(named).is_file():
        raise QDeployError(f"QDEPLOY_SSH_CONFIG names {named}, which is no file.", "Unset it for ~/.ssh/config.")
    return ["-F", named]


def _first_line(process: subprocess.Popen[bytes], seconds: float) -> str:
    """The first line that ``process`` prints; empty if there is none within ``seconds``, or before it ends."""
    assert process.stdout is not None
    handle, line, end = process.stdout.fileno(), b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([handle], [], [], max(0.0, end - time.monotonic()))
        byte = os.read(handle, 1) if ready else b""
        if not byte:
            break
        line += byte
    if not line.endswith(b"\n"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        return ""
    return line.decode(errors="replace").strip()


def _refusal(name: str, code: int, said: bytes) -> QDeployError:
    """The error for a login that did not come to stand."""
    text = said.decode(errors="replace")
    for sign, meaning, hint in REFUSALS:
        if sign in text and code == LOST:
            return QDeployError(f"{name}: {meaning}. ssh says: {last_line(said)}", hint)
    if code == LOST:
        return QDeployError(f"{name}: ssh cannot connect. {last_line(said)}".strip(), "Try by hand: ssh -v.")
    if code == 73:
        return QDeployError(f"{name}: no temporary folder can be made there. {last_line(said)}".strip())
    return QDeployError(
        f"{name}: it runs no POSIX shell. {last_line(said)}".strip(),
        "A host needs sh and Python 3; Windows hosts do not have the former.",
    )
