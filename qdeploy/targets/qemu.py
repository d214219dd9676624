"""Another CPU, emulated: qemu:cortex-a72, qemu:Haswell. For its answers; its times would say nothing.

The record of a bench names the emulator, and holds no times.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from qdeploy.core.errors import QDeployError, nearest
from qdeploy.targets import _emulators
from qdeploy.targets._base import Place, stand_alone_worker
from qdeploy.targets._worker import WorkerProcess

START_SECONDS = 600.0  # an emulated CPU starts Python and creates a session tens of times slower than a real one


class Target(Place):
    """``qemu:CPU``: one of the models that qemu knows, such as cortex-a72, cortex-a76, Haswell or Skylake-Client.

    ARM64 models run an ARM64 Python, x86-64 ones this very Python. ``max``, which both have, is ARM64's;
    ``x86_64/max`` is the other. An x86-64 model with vector instructions that qemu lacks (AVX-512, AMX) is an error:
    without them it would run the kernels of another. ``python`` is the command that starts Python on the CPU.
    """

    def __init__(self, address: str = "") -> None:
        if not address:
            raise QDeployError("The target 'qemu' needs a CPU.", "For example: --target qemu:cortex-a72.")
        self.require()
        self.name = f"qemu:{address}"
        emulators = _emulators.find()
        architecture, self._cpu = _model(address, emulators)
        emulated = [str(emulators.qemu(architecture)), "-cpu", self._cpu]
        if architecture == "aarch64":
            # -I: variables such as PYTHONPATH are meant for this Python and not for that one.
            self.python = [*emulated, "-L", str(emulators.root), str(emulators.python), "-I"]
        else:
            self.python = [*emulated, sys.executable, "-P"]
            self._check_x86()

    @staticmethod
    def require() -> None:
        """QDeployError: the emulators are not here, or cannot be."""
        if sys.platform != "linux":
            raise QDeployError("CPUs are emulated on Linux only.", "Use a machine that has one: --target ssh://HOST.")
        _emulators.find()

    def open(self, bundle: Path, *, name: str, runtime: str = "onnxruntime") -> WorkerProcess:
        """Start the process that will run ``bundle``, called ``name`` in errors."""
        command = [*self.python, str(stand_alone_worker(runtime, self.name)), "worker"]
        environment = {**os.environ, "QDEPLOY_EMULATOR": f"qemu {self._cpu}"}
        return WorkerProcess(
            command, bundle=str(bundle.resolve()), name=name, environment=environment, start_seconds=START_SECONDS
        )

    def _check_x86(self) -> None:
        """QDeployError: this Python does not start on the model, or vector instructions of it are not emulated."""
        if platform.machine() != "x86_64":
            raise QDeployError(
                f"{self.name} runs the Python that runs qdeploy, which is one for {platform.machine()}.",
                "Use a machine whose CPU is x86-64, or an ARM64 model such as qemu:cortex-a76.",
            )
        started = subprocess.run([*self.python, "-S", "-c", ""], capture_output=True, text=True, check=False)
        if started.returncode:
            why = (started.stderr.splitlines() or ["it says nothing."])[-1]
            raise QDeployError(f"Python does not start on {self.name}: {why}", "Take a later model, such as Haswell.")
        missing = re.findall(r"feature: \S+\.((?:avx|amx|fma)[\w-]*) ", started.stderr)
        if missing:
            raise QDeployError(
                f"qemu does not emulate {missing[0]}, which {self._cpu} has: it would run another CPU's kernels.",
                "Take a model without it, such as Haswell or Skylake-Client, or a real one: --target ssh://HOST.",
            )


def _model(address: str, emulators: _emulators.Emulators) -> tuple[str, str]:
    """The architecture and the CPU that "cortex-a72" or "x86_64/max" names. QDeployError: there is none."""
    models = {architecture: _models(emulators.qemu(architecture)) for architecture in _emulators.ARCHITECTURES}
    for architecture, names in models.items():
        cpu = address.removeprefix(f"{architecture}/")
        if cpu in names:
            return architecture, cpu
    # Not those that differ in what mends a flaw of the CPU, and in no result: "Haswell-v2", "Haswell-noTSX".
    x86 = [name for name in models["x86_64"] if not re.search(r"-(v\d+|noTSX|IBRS|IBPB)", name)]
    known = [*models["aarch64"], *x86]
    raise QDeployError(f"qemu emulates no CPU named {address!r}.", nearest(address.rpartition("/")[2], known))


def _models(qemu: Path) -> list[str]:
    """The models that ``qemu`` lists, from "Available CPUs:" to the next empty line."""
    try:
        told = subprocess.run(
            [str(qemu), "-cpu", "help"], capture_output=True, text=True, check=False
        )  # it exits with 1
    except OSError as error:
        raise QDeployError(
            f"{qemu} does not run: {error.strerror}.", "Remove its folder, and fetch it again."
        ) from error
    listed = told.stdout.partition("Available CPUs:")[2].strip("\n").partition("\n\n")[0]
    return [line.split()[0] for line in listed.splitlines()]
