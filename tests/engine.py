"""A real container engine, with an image made of this machine's own Python, for tests of what runs in containers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.system import program

IMAGE, BARE, FOREIGN = (f"localhost/qdeploy-test:{tag}" for tag in ("full", "bare", "foreign"))
PACKAGES = "/opt/packages"  # numpy and onnxruntime; IMAGE has it on PYTHONPATH, BARE has not
# A machine of a CI may forbid raising limits, or mix the versions of cgroups, which crun refuses.
SETTINGS = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "{runtime}"
"""


@contextmanager
def podman() -> Iterator[Path]:
    """A Podman with a storage of its own, holding IMAGE and BARE, as one program for QDEPLOY_CONTAINER."""
    engine, runtime = program("podman", "podman", "runc"), program("runc", "runc")
    if engine is None or runtime is None or os.getuid() != 0:
        pytest.skip("there is no Podman here that this test can use (Debian, as root: apt install podman runc)")
    with tempfile.TemporaryDirectory(prefix="podman-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "containers.conf").write_text(SETTINGS.format(runtime=Path(runtime).name))
        wrapper = folder / "podman"
        storage = f"--root {folder}/root --runroot {folder}/run --tmpdir {folder}/tmp"
        wrapper.write_text(f'#!/bin/sh\nCONTAINERS_CONF={folder}/containers.conf exec {engine} {storage} "$@"\n')
        wrapper.chmod(0o755)
        write_root(folder / "root.tar")
        path = ["--change", f"ENV PYTHONPATH={PACKAGES}"]
        for image, change in ((IMAGE, path), (BARE, []), (FOREIGN, [*path, "--arch", "s390x"])):
            subprocess.run([wrapper, "import", *change, folder / "root.tar", image], check=True, capture_output=True)
        done = subprocess.run(
            [wrapper, "run", "--rm", "--network", "none", BARE, "python3", "-c", ""], capture_output=True, text=True
        )
        try:
            if done.returncode != 0:
                pytest.skip(f"Podman cannot start a container on this machine: {done.stderr.strip()}")
            yield wrapper
        finally:
            subprocess.run([wrapper, "system", "reset", "--force"], capture_output=True)


def write_root(path: Path) -> None:
    """A root file system: this Python with its libraries in their own places, numpy and onnxruntime in PACKAGES."""
    python = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    packages = [Path(module.__file__ or "").parent for module in (np, ort)]
    native = [python, *library.glob("lib-dynload/*.so"), *(so for p in packages for so in p.rglob("*.so*"))]
    with tarfile.open(path, "w") as tar:
        tar.add(python, str(python))
        tar.add(library, str(library), filter=_needed)
        for package in packages:
            tar.add(package, f"{PACKAGES}/{package.name}", filter=_needed)
            bundled = package.with_name(f"{package.name}.libs")
            if bundled.is_dir():
                tar.add(bundled, f"{PACKAGES}/{bundled.name}")
        for shared in _shared_libraries(native):
            tar.add(shared.resolve(), str(shared))
        link = tarfile.TarInfo("usr/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, str(python)
        tar.addfile(link)
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)


def _needed(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    unneeded = {"site-packages", "test", "tests", "idlelib", "ensurepip", "tkinter", "__pycache__", "transformers"}
    return None if unneeded & set(Path(entry.name).parts) or entry.name.endswith(".a") else entry


def _shared_libraries(native: list[Path]) -> list[Path]:
    """What the dynamic linker loads for these files from elsewhere than PACKAGES, the linker itself with it."""
    listed = subprocess.run(["ldd", *native], capture_output=True, text=True).stdout
    found = {Path(match) for match in re.findall(r"(?:=> |^\t)(/\S+) \(0x", listed, re.MULTILINE)}
    return sorted(path for path in found if "site-packages" not in path.parts)
