"""What about a machine makes its times mislead, or its int8 slow or wrong, each with the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qdeploy.core.records import Environment

X86 = ("x86_64", "amd64", "AMD64", "i386", "i686")
DOT_PRODUCT = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
POWER_SAVING = ("powersave", "conservative")


@dataclass(frozen=True, slots=True)
class Trap:
    """A fact about a machine that costs speed or trust, and what to do about it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}"


def machine_traps(environment: Environment) -> list[Trap]:
    """The traps that the environment record shows, worst first."""
    traps = []
    if environment.emulator:
        traps.append(
            Trap(
                f"This CPU is emulated ({environment.emulator}): its answers count, its times would mean nothing.",
                "qdeploy withholds them; measure on the real device.",
            )
        )
    if no_dot_product(environment) and environment.architecture in X86:
        traps.append(
            Trap(
                "This CPU has no VNNI: int8 gains little over float32, and full-range int8 weights can saturate.",
                "Trust a bundle here only if its self-test passes; weights of 7 bits never saturate.",
            )
        )
    elif no_dot_product(environment):
        traps.append(
            Trap(
                "This CPU has no dot-product instructions (asimddp): int8 kernels run at a fraction of their speed.",
                "Measure before you choose int8 for speed; it still saves memory.",
            )
        )
    if environment.governor in POWER_SAVING:
        traps.append(
            Trap(
                f"The CPU frequency governor is {environment.governor!r}: short runs are timed at a low clock.",
                "Run `sudo cpupower frequency-set -g performance` for the measurement.",
            )
        )
    return traps


def no_dot_product(environment: Environment) -> bool:
    """Whether the CPU is known to lack instructions for int8 dot products (not: its flags are unknown)."""
    return bool(environment.isa) and not set(environment.isa) & set(DOT_PRODUCT)


def variable_traps(environment: Environment, variables: Mapping[str, str]) -> list[Trap]:
    """The traps that environment variables set: ``variables`` is os.environ."""
    value = variables.get("OMP_NUM_THREADS", "").strip()
    if not value:
        return []
    if not value.isdigit() or int(value) < 1:
        what = f"OMP_NUM_THREADS is {value!r}, which is no number of threads."
    elif int(value) > environment.cores_allowed:
        what = f"OMP_NUM_THREADS is {value}, but {environment.cores_allowed} cores are allowed."
    else:
        return []
    return [Trap(what, f"Training heeds it, onnxruntime does not: set it to {environment.cores_allowed} or unset it.")]
