"""What Linux says of its CPUs' clocks, and of who else uses them: read, never set."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
BUSY_SECONDS = 0.2  # 20 ticks of the kernel's accounting


@dataclass(frozen=True, slots=True)
class Clock:
    """How the clock of some CPUs is set. Frequencies are in kHz, 0 where the system does not say."""

    cpus: int
    driver: str  # "intel_pstate", "acpi-cpufreq", "cppc_cpufreq" ...
    governor: str
    preference: str  # between energy and performance, where the CPU sets its own clock: "power", "balance_power" ...
    limit: int  # that a setting, or the kernel when the CPU is hot, puts on it
    highest: int  # that the hardware has


@dataclass(frozen=True, slots=True)
class Load:
    """What others use of the cores that this process may run on."""

    busy: float  # cores, of
    cores: int  # so many
    average: float | None  # the system's load average of the last minute; None where it has none


def clocks(folder: Path = CPUS) -> list[Clock]:
    """The clocks of all CPUs that are on, one entry for those that are alike; none where the system scales none."""
    found: Counter[Clock] = Counter()
    for policy in sorted(folder.glob("cpufreq/policy*")):
        names = ("scaling_driver", "scaling_governor", "energy_performance_preference")
        driver, governor, preference = (_read(policy / name) for name in names)
        limits = (_read(policy / f"{name}_max_freq") for name in ("scaling", "cpuinfo"))
        limit, highest = (int(text) if text.isdigit() else 0 for text in limits)
        found[Clock(0, driver, governor, preference, limit, highest)] += len(_read(policy / "affected_cpus").split())
    return [replace(clock, cpus=cpus) for clock, cpus in found.items() if cpus]


def turbo(folder: Path = CPUS) -> bool | None:
    """Whether clocks above the nominal one are allowed; None where the system does not say."""
    allowed = {"0": True, "1": False}.get(_read(folder / "intel_pstate" / "no_turbo"))
    return {"0": False, "1": True}.get(_read(folder / "cpufreq" / "boost")) if allowed is None else allowed


def load(seconds: float = BUSY_SECONDS) -> Load | None:
    """Who else uses the cores that this process may run on, looked at for ``seconds``, in which this process sleeps.

    Where the kernel does not count each core's time (macOS), the load average stands for it; None: there is neither.
    """
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    before = _times()
    if not before:
        cores = os.cpu_count() or 1
        return None if average is None else Load(min(average, float(cores)), cores, average)
    time.sleep(seconds)
    after = _times()
    busy = 0.0
    for cpu in before.keys() & after.keys():
        idle, total = (now - then for now, then in zip(after[cpu], before[cpu], strict=True))
        busy += 1 - idle / total if total > 0 else 0.0
    return Load(busy, len(before), average)


def _times(stat: Path = Path("/proc/stat")) -> dict[int, tuple[int, int]]:
    """(idle, all) ticks of each CPU that this process may run on. A hypervisor's own use counts as busy."""
    found = {}
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    for line in _read(stat).splitlines():
        name, *ticks = line.split()
        # user nice system idle iowait irq softirq steal; what guests use is in user already
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in allowed and len(ticks) >= 5:
            counts = [int(tick) for tick in ticks[:8]]
            found[int(name[3:])] = (counts[3] + counts[4], sum(counts))
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
