"""onnxruntime-web for tests: fetched by npm once, into the user's cache and never into the checkout."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import tempfile
from pathlib import Path

import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.runtimes import ort_web
from tests.system import program


@functools.cache
def require_onnxruntime_web() -> Path:
    """The package's folder. Skips where there is no Node, or npm cannot fetch it."""
    if program("node", "nodejs") is None:
        pytest.skip("there is no Node here (Debian, as root: apt install nodejs npm)")
    with contextlib.suppress(QDeployError):
        return ort_web.find_package()
    npm = program("npm", "npm")
    if npm is None:
        pytest.skip("there is no npm here to fetch onnxruntime-web (Debian, as root: apt install npm)")
    cache = ort_web.cache()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        package = f"{ort_web.PACKAGE}@{ort_web.TESTED}"
        done = subprocess.run([npm, "install", *quiet, "--prefix", folder, package], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"npm cannot fetch {package}: {(done.stderr.strip().splitlines() or ['it says nothing'])[0]}")
        with contextlib.suppress(OSError):  # another run of the tests was faster
            Path(folder, "node_modules").rename(cache / "node_modules")
    return ort_web.find_package()
