"""Programs of the system that some tests need: installed where that may be done, so that new machines run the tests."""

from __future__ import annotations

import os
import shutil
import subprocess


def program(name: str, *packages: str) -> str | None:
    """The path of a program; Debian's ``packages`` are installed if it is missing. None where that cannot be done."""
    for _ in range(2):
        found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        if found is not None or os.getuid() != 0 or shutil.which("apt-get") is None:
            return found
        apt = ["apt-get", "-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]
        # Runlevel 1: nothing is started, tests start what they need themselves.
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        for task in (["update"], ["install", *packages]):
            subprocess.run([*apt, *task], env=environment, capture_output=True, timeout=300)
    return None
