"""Find or make a Python with numpy and onnxruntime: sent to a place and run there. It stands alone, on Python 3.7 too.

    python3 find_python.py check          what this very Python has
    python3 find_python.py find NUMPY ONNXRUNTIME
                                          this Python if it has these versions, else a virtual environment with them

The last line of stdout is JSON: {"python", "numpy", "onnxruntime"}, or {"error"}.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

VERSIONS = """
import json, numpy, onnxruntime
print(json.dumps({module.__name__: module.__version__ for module in (numpy, onnxruntime)}))
"""


ENDED: dict[int, str] = {
    signal.SIGKILL: "it was killed, most likely for its memory",
    signal.SIGILL: "they were built for another CPU",
}


class MissingError(Exception):
    """What a Python there lacks, in one line."""


def main(arguments: list[str]) -> None:
    """Print what was found."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # on by default in onnxruntime: importing it would write files
    # Ended with the connection: what was half made is removed on the way out.
    signal.signal(signal.SIGTERM, _end)
    try:
        python = sys.executable if arguments[0] == "check" else find(*arguments[1:])
        found = {"python": python, **versions(python)}
    except MissingError as error:
        found = {"error": str(error)}
    sys.stdout.write(json.dumps(found) + "\n")


def find(numpy: str, onnxruntime: str) -> str:
    """The path of a Python that has these versions: this one, or that of an environment which is made once."""
    try:
        if versions(sys.executable) == {"numpy": numpy, "onnxruntime": onnxruntime}:
            return sys.executable
    except MissingError:
        pass
    # A home folder can be shared by machines of several kinds, and a 64 bit kernel can carry a 32 bit Python.
    kind = f"{sys.version_info[:2]} {sysconfig.get_platform()} {struct.calcsize('P')}"
    digest = hashlib.sha256(f"{kind} numpy {numpy} onnxruntime {onnxruntime}".encode()).hexdigest()[:16]
    folder = cache() / f"venv-{digest}"
    if not works(folder):  # nor does one whose Python was uninstalled
        make(folder, numpy, onnxruntime)
    return str(folder / "bin" / "python3")


def cache() -> Path:
    """The folder that environments are kept in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qdeploy"


def versions(python: str) -> dict[str, str]:
    """{"numpy", "onnxruntime"}: what ``python`` imports. MissingError with the reason why it does not."""
    # A process of its own, because an import can end it.
    done = subprocess.run([python, "-c", VERSIONS], capture_output=True)
    said = (done.stdout if done.returncode == 0 else done.stderr).decode(errors="replace").strip()
    last = said.rpartition("\n")[2]
    if done.returncode != 0:
        reason = ENDED.get(-done.returncode, last or f"it ended with exit code {done.returncode}")
        raise MissingError(f"{python} cannot import numpy and onnxruntime: {reason}")
    found: dict[str, str] = json.loads(last)
    return found


def works(folder: Path) -> bool:
    """Whether ``folder`` is a whole environment."""
    try:
        versions(str(folder / "bin" / "python3"))
    except (MissingError, OSError):
        return False
    return True


def make(folder: Path, numpy: str, onnxruntime: str) -> None:
    """Make ``folder``, in one step for everyone who looks: a virtual environment with these versions or the nearest."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=str(folder.parent)))
    except OSError as error:
        raise MissingError(f"no environment can be made in {folder.parent}: {error.strerror}") from None
    try:
        code, said = _run([sys.executable, "-m", "venv", str(part)])
        if code != 0:
            without = "venv" in said and ("ensurepip" in said or "No module" in said)
            why = "it lacks venv (Debian: apt install python3-venv)" if without else said.rpartition("\n")[2]
            raise MissingError(f"{sys.executable} makes no virtual environment: {why}")
        install(part, numpy, onnxruntime)
        versions(str(part / "bin" / "python3"))
        if folder.exists() and not works(folder):
            shutil.rmtree(str(folder), ignore_errors=True)
        try:
            part.rename(folder)  # python3 in it is a link and finds its environment by its own place
        except OSError:
            if not works(folder):  # or else another process was faster
                raise
    finally:
        shutil.rmtree(str(part), ignore_errors=True)


def install(environment: Path, numpy: str, onnxruntime: str) -> None:
    """Put both into ``environment``: these versions, else the newest before them, else any that there are."""
    pip = [str(environment / "bin" / "python3"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    # Wheels only: building numpy takes a small device an hour. Few retries: a device without a network gets none later.
    pip += ["--quiet", "--only-binary", ":all:", "--retries", "1", "--timeout", "30"]
    choices = (
        [f"numpy=={numpy}", f"onnxruntime=={onnxruntime}"],
        [f"numpy<={numpy}", f"onnxruntime<={onnxruntime}"],
        ["numpy", "onnxruntime"],
    )
    for wanted in choices:
        code, said = _run([*pip, *wanted])
        if code == 0:
            return
        if "No matching distribution" not in said or "from versions: none" in said:
            break  # what is missing is not the version
    lines = said.splitlines() or ["it says nothing"]
    error = next((line for line in lines if line.startswith("ERROR")), lines[-1])
    raise MissingError(f"pip installs no numpy and onnxruntime for Python {platform.python_version()}: {error}")


def _run(command: list[str]) -> tuple[int, str]:
    """The exit code of ``command`` and all that it said."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout.strip()


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.getpgrp() == os.getpid():  # as ssh starts it: pip and what pip started are in this group
        os.killpg(0, signal.SIGTERM)
    sys.exit(143)


if __name__ == "__main__":
    main(sys.argv[1:])
