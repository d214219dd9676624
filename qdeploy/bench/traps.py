"""What about a machine makes its times mislead, or its int8 slow or wrong, each with the remedy."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qdeploy.core.records import Environment

if TYPE_CHECKING:
    from qdeploy.bench.probe import Slowdown
    from qdeploy.bench.system import Clock, Load

X86 = ("x86_64", "amd64", "AMD64", "i386", "i686")
DOT_PRODUCT = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
SLOW_GOVERNORS = {
    "powersave": "keeps the lowest clock",
    "conservative": "raises the clock slowly: short runs are timed at a low one",
}
# In these drivers' active mode the CPU sets its own clock, and "powersave" is the usual governor, which is not slow.
OWN_CLOCK = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
SAVES_ENERGY = ("power", "255")  # energy_performance_preference; balance_power is what laptops ship with
NOTICEABLE = 0.3  # of a core: less is what any desktop does in the background


@dataclass(frozen=True, slots=True)
class Trap:
    """A fact about a machine that costs speed or trust, and what to do about it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}"


def machine_traps(environment: Environment) -> list[Trap]:
    """The traps that the environment record shows, worst first."""
    return [*cpu_traps(environment), *_governor_traps(environment.governor or "", "The CPU frequency")]


def cpu_traps(environment: Environment) -> list[Trap]:
    """The traps of the CPU itself, as the environment record shows it."""
    traps = []
    if environment.emulator:
        traps.append(
            Trap(
                f"This CPU is emulated ({environment.emulator}): its answers count, its times would mean nothing.",
                "qdeploy withholds them; measure on the real device.",
            )
        )
    if no_dot_product(environment):
        x86 = environment.architecture in X86
        lack = "no VNNI" if x86 else "no dot-product instructions (asimddp)"
        how = "gain less over float32 than on CPUs that have it" if x86 else "run at a fraction of their speed"
        traps.append(
            Trap(
                f"This CPU has {lack}: int8 kernels {how}.",
                "Measure before you choose int8 for speed; it still saves memory.",
            )
        )
    return traps


def no_dot_product(environment: Environment) -> bool:
    """Whether the CPU is known to lack instructions for int8 dot products (not: its flags are unknown)."""
    return bool(environment.isa) and not set(environment.isa) & set(DOT_PRODUCT)


def measured_traps(
    environment: Environment, *, default_threads: int | None, saturates: bool, slowdown: Slowdown | None = None
) -> list[Trap]:
    """The traps that running onnxruntime has shown."""
    traps = []
    allowed = environment.cores_allowed
    if default_threads is not None and default_threads > allowed:
        traps.append(
            Trap(
                f"onnxruntime by itself starts {default_threads} threads, but {allowed} of {environment.cores_present} "
                f"cores {'is' if allowed == 1 else 'are'} allowed ({environment.cores_reason}). {_cost(slowdown)}",
                f"qdeploy and run.py set {allowed}; in code of your own, set intra_op_num_threads={allowed}.",
            )
        )
    if saturates:
        traps.append(
            Trap(
                "Products of uint8 activations and int8 weights saturate here, as on every x86 CPU with AVX2 and "
                "without VNNI: a model with full-range int8 weights gives other answers than elsewhere.",
                "Bundles that are built with portable: true (the default) are exact here at full speed. For others "
                "qdeploy and run.py set session.x64quantprecision=1, which is exact and slower.",
            )
        )
    return traps


def _cost(slowdown: Slowdown | None) -> str:
    if slowdown is None:
        return "Threads that wait for each other make a model many times slower."
    how = f"{slowdown.ratio:.1f} times slower here" if slowdown.ratio >= 1.1 else "no slower here just now"
    return (
        f"A small int8 model took {slowdown.default_ms:.3g} ms a call with {slowdown.default_threads} threads and "
        f"{slowdown.allowed_ms:.3g} ms with {slowdown.allowed_threads}: {how}."
    )


def core_traps(environment: Environment, *, quota: float | None, load: Load | None) -> list[Trap]:
    """The traps of cores that are shared: the cgroup's ``quota`` in cores, and what others use."""
    traps = []
    allowed = environment.cores_allowed
    if quota is not None and quota < allowed:
        threads = "1 thread is" if allowed == 1 else f"{allowed} threads are"
        traps.append(
            Trap(
                f"The cgroup's quota is {quota:g} cores: {threads} stopped for {1 - quota / allowed:.0%} of the time, "
                "in the middle of calls.",
                "Give it whole cores (`docker run --cpus 1`); until then the time of a single call means little.",
            )
        )
    if load is not None and load.busy > load.cores - allowed + NOTICEABLE:
        average = "" if load.average is None else f" (load average {load.average:.1f})"
        cores = "1 core" if load.cores == 1 else f"{load.cores} cores"
        traps.append(
            Trap(
                f"Other programs keep {load.busy:.1f} of {cores} busy{average}: what is timed now waits for them.",
                "Stop them, or measure later. qdeploy interleaves bundles, so that all of them suffer alike.",
            )
        )
    return traps


def clock_traps(clocks: Sequence[Clock]) -> list[Trap]:
    """The traps of clocks that are kept low, for all CPUs and not for the first one alone."""
    traps, total = [], sum(clock.cpus for clock in clocks)
    for clock in clocks:
        which = "The CPUs'" if clock.cpus == total else f"{clock.cpus} of {total} CPUs'"
        if clock.driver not in OWN_CLOCK:
            traps += _governor_traps(clock.governor, f"{which} frequency")
        if clock.preference in SAVES_ENERGY:
            traps.append(
                Trap(
                    f"{which} energy_performance_preference is {clock.preference!r}: short runs are timed at a low "
                    "clock.",
                    "Write performance to /sys/devices/system/cpu/cpufreq/policy*/energy_performance_preference "
                    "for the measurement.",
                )
            )
        if 0 < clock.limit < 0.97 * clock.highest:
            traps.append(
                Trap(
                    f"{which} clock is limited to {gigahertz(clock.limit)} of {gigahertz(clock.highest)}.",
                    f"Cool the machine if it is hot, else run `sudo cpupower frequency-set -u {clock.highest}kHz`.",
                )
            )
    return traps


def gigahertz(kilohertz: int) -> str:
    """A frequency in words: "2.4 GHz"."""
    return f"{kilohertz / 1e6:.1f} GHz"


def _governor_traps(governor: str, whose: str) -> list[Trap]:
    if governor not in SLOW_GOVERNORS:
        return []
    return [
        Trap(
            f"{whose} governor is {governor!r}, which {SLOW_GOVERNORS[governor]}.",
            "Run `sudo cpupower frequency-set -g performance` for the measurement.",
        )
    ]


def variable_traps(environment: Environment, variables: Mapping[str, str]) -> list[Trap]:
    """The traps that environment variables set: ``variables`` is os.environ."""
    value = variables.get("OMP_NUM_THREADS", "").strip()
    if not value:
        return []
    first = value.partition(",")[0]  # "4,2" is four threads, and two in each of them
    if not first.isdigit() or int(first) < 1:
        what = f"OMP_NUM_THREADS is {value!r}, which is no number of threads."
    elif int(first) > environment.cores_allowed:
        what = f"OMP_NUM_THREADS is {value}, but {environment.cores_allowed} cores are allowed."
    else:
        return []
    return [Trap(what, f"Training heeds it, onnxruntime does not: set it to {environment.cores_allowed} or unset it.")]


def build_traps(build_info: str, distributions: Sequence[str]) -> list[Trap]:
    """The traps that lie in how Python and onnxruntime were built and installed.

    ``build_info`` is onnxruntime.get_build_info(), ``distributions`` the packages that provide the module onnxruntime.
    """
    traps = []
    if "build type=Release" not in build_info and "build type=RelWithDebInfo" not in build_info:
        traps.append(Trap(f"onnxruntime is no release build ({build_info}).", "Install the package from the registry."))
    if len(distributions) > 1:
        what = f"{' and '.join(distributions)} are installed together: they overwrite each other's files."
        traps.append(Trap(what, "Uninstall them all, then install one."))
    if sysconfig.get_config_var("Py_DEBUG"):
        traps.append(Trap("This Python is a debug build: small models are timed too slow.", "Use a release build."))
    if sys.maxsize < 2**32:
        traps.append(Trap("This Python is a 32-bit one: the fast int8 kernels are missing.", "Use a 64-bit system."))
    return traps
