"""What targets share that send the runner elsewhere: options behind an address, what is sent, which Python is there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import onnxruntime as ort

from qdeploy import runner
from qdeploy.bundle.archive import archive
from qdeploy.core.errors import QDeployError, nearest
from qdeploy.runtimes._errors import qdeploy_errors
from qdeploy.targets import _find_python

RUNNER, FIND_PYTHON = "runner.py", "find_python.py"  # what these two files are called there
QUIET = "ORT_DISABLE_TELEMETRY=1"  # onnxruntime's own, on by default: it leaves files, and disturbs what is timed
KILLED = 137  # the exit code of what SIGKILL ended, as shells and container engines tell it
PYTHON = (r"(?!-)[^\x00-\x1f\x7f]+", "/opt/venv/bin/python3")


def split_options(target: str, address: str, known: Mapping[str, tuple[str, str]]) -> tuple[str, dict[str, str]]:
    """The parts before and behind the "?" of ADDRESS?NAME=VALUE&NAME=VALUE, values percent-decoded.

    ``known`` maps the name of an option to the pattern of its values and an example. QDeployError: anything else.
    """
    place, _, rest = address.partition("?")
    options: dict[str, str] = {}
    for part in rest.split("&") if rest else ():
        name, _, value = part.partition("=")
        if name not in known:
            raise QDeployError(f"The target {target!r} has no option {name!r}.", nearest(name, known))
        pattern, example = known[name]
        if name in options or not re.fullmatch(pattern, unquote(value)):
            problem = "is given twice" if name in options else f"cannot be {unquote(value)!r}"
            what = f"The option {name!r} of the target {target!r}"
            raise QDeployError(f"{what} {problem}.", f"For example ?{name}={example}.")
        options[name] = unquote(value)
    return place, options


def bundle_file(bundle: Path) -> tuple[str, bytes]:
    """What is sent for a bundle, be it a zip or a folder: a name that is ours, from its digest, and the zip's bytes."""
    with qdeploy_errors():
        data = archive(runner.read_members(bundle)[0])
    return f"{hashlib.sha256(data).hexdigest()}.qdeploy.zip", data


def last_line(said: bytes) -> str:
    """The last line of what a command printed."""
    return said.decode(errors="replace").strip().rpartition("\n")[2].strip()


def find_python_source() -> bytes:
    """The script that looks for a Python there."""
    return Path(_find_python.__file__).read_bytes()


def wanted_versions() -> tuple[str, str]:
    """Numpy's and onnxruntime's versions here, which are wanted there too."""
    return np.__version__, ort.__version__


def found_python(said: bytes, place: str, hint: str) -> str:
    """The Python that find_python.py names in ``said``. QDeployError, with ``hint``: it found none."""
    try:
        found = json.loads(last_line(said))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise QDeployError(f"{place}: its Python does not run qdeploy's script. {last_line(said)}".strip(), hint)
    if "python" not in found:
        raise QDeployError(f"{place}: {found['error'].rstrip('.')}.", hint)
    return str(found["python"])
