"""The script that finds a Python on a device, run here as it runs there, with an index of made-up packages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from qdeploy.targets import _find_python

SCRIPT = _find_python.__file__
# The Python that this virtual environment was made with: one without numpy and onnxruntime, most likely.
BASE = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
can_install = pytest.mark.skipif(not BASE.exists(), reason=f"there is no {BASE} to make environments with")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder of wheels that pip is told to look in, and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


def wheel(folder: Path, name: str, version: str) -> None:
    """A package that is nothing but its version."""
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"__version__ = {version!r}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{about}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{about}/RECORD"]))


def variables(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path / "cache"), "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels"),
    }  # fmt: skip


def find(tmp_path: Path, *arguments: str, python: str = "") -> dict[str, Any]:
    command = [python or str(BASE), SCRIPT, *arguments]
    done = subprocess.run(command, env=variables(tmp_path), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def environments(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "qdeploy").iterdir())


def test_a_python_with_these_versions_is_used_as_it_is(tmp_path):
    found = find(tmp_path, "find", np.__version__, ort.__version__, python=sys.executable)
    assert found == {"python": sys.executable, "numpy": np.__version__, "onnxruntime": ort.__version__}
    assert not (tmp_path / "cache").exists()


def test_check_takes_what_is_there_and_makes_nothing(tmp_path):
    assert find(tmp_path, "check", python=sys.executable)["onnxruntime"] == ort.__version__
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    missing = find(tmp_path, "check", python=str(tmp_path / "venv" / "bin" / "python3"))
    assert "No module named 'numpy'" in missing["error"]
    assert not (tmp_path / "cache").exists()


@can_install
def test_an_environment_is_made_once_and_mended_when_it_is_broken(tmp_path, packages):
    for name, version in (("numpy", "9.1"), ("onnxruntime", "9.2"), ("onnxruntime", "9.9")):
        wheel(packages, name, version)
    first = find(tmp_path, "find", "9.1", "9.2")
    assert (first["numpy"], first["onnxruntime"]) == ("9.1", "9.2")
    (made,) = environments(tmp_path)
    assert first["python"] == str(tmp_path / "cache" / "qdeploy" / made / "bin" / "python3")
    mark = Path(first["python"]).parent.parent / "mark"
    mark.touch()
    assert find(tmp_path, "find", "9.1", "9.2") == first
    assert mark.exists()
    Path(first["python"]).unlink()  # the system's Python was replaced
    assert find(tmp_path, "find", "9.1", "9.2") == first
    assert not mark.exists()
    assert environments(tmp_path) == [made]


@can_install
def test_the_nearest_version_before_is_taken_where_the_right_one_is_not_to_be_had(tmp_path, packages):
    for name, version in (("numpy", "8.0"), ("onnxruntime", "8.1"), ("onnxruntime", "9.0"), ("onnxruntime", "9.9")):
        wheel(packages, name, version)
    found = find(tmp_path, "find", "9.1", "9.5")
    assert (found["numpy"], found["onnxruntime"]) == ("8.0", "9.0")


@can_install
def test_what_pip_cannot_find_is_told_and_leaves_nothing(tmp_path, packages):
    wheel(packages, "numpy", "9.1")
    missing = find(tmp_path, "find", "9.1", "9.2")
    assert "pip installs no numpy and onnxruntime" in missing["error"]
    assert "onnxruntime" in missing["error"]
    assert environments(tmp_path) == []


@can_install
def test_ended_in_the_middle_it_leaves_nothing(tmp_path, packages):
    process = subprocess.Popen(
        [str(BASE), SCRIPT, "find", "9.1", "9.2"], env=variables(tmp_path), start_new_session=True
    )
    cache = tmp_path / "cache" / "qdeploy"
    deadline = time.monotonic() + 60
    while not list(cache.glob("*.part-*/bin")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert environments(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    missing = find(tmp_path, "find", "9.1", "9.2", python=str(tmp_path / "venv" / "bin" / "python3"))
    assert "no environment can be made in" in missing["error"]
