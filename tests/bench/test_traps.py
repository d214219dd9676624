from __future__ import annotations

import dataclasses
import math
import sysconfig

import pytest

from qdeploy.bench.probe import Slowdown
from qdeploy.bench.system import Clock, Load
from qdeploy.bench.traps import (
    build_traps,
    clock_traps,
    core_traps,
    cpu_traps,
    machine_traps,
    measured_traps,
    variable_traps,
)
from qdeploy.core.records import Environment

GOOD = Environment(
    cpu="Test",
    architecture="x86_64",
    isa=("avx2", "avx512_vnni"),
    cores_present=8,
    cores_allowed=4,
    cores_reason="cgroup quota",
    memory_bytes=1 << 30,
    governor="performance",
    emulator=None,
    system="Linux",
    python="3.11",
    onnxruntime="1.31.1",
    numpy="2.0",
)


def test_a_good_machine_has_none():
    assert machine_traps(GOOD) == []
    assert machine_traps(dataclasses.replace(GOOD, governor=None, isa=("avx2", "avx_vnni"))) == []
    assert machine_traps(dataclasses.replace(GOOD, architecture="arm64", isa=("asimd", "asimddp"))) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"emulator": "qemu"}, "emulated (qemu)"),
        ({"isa": ("avx2",)}, "no VNNI"),
        ({"isa": ("avx2", "avx512bw")}, "no VNNI"),
        ({"architecture": "aarch64", "isa": ("asimd",)}, "no dot-product instructions"),
        ({"isa": ("sse4_1",)}, "no VNNI"),
        ({"governor": "powersave"}, "governor is 'powersave', which keeps the lowest clock"),
        ({"governor": "conservative"}, "governor is 'conservative', which raises the clock slowly"),
    ],
)
def test_each_trap_says_what_it_is_and_what_to_do(change, words):
    (trap,) = machine_traps(dataclasses.replace(GOOD, **change))
    assert words in trap.what
    assert trap.remedy
    assert str(trap) == f"{trap.what} {trap.remedy}"


@pytest.mark.parametrize("governor", ["schedutil", "ondemand", "powersave (intel_pstate)"])
def test_governors_that_are_not_slow(governor):
    assert machine_traps(dataclasses.replace(GOOD, governor=governor)) == []


def test_the_governor_of_a_record_is_no_trap_of_the_cpu():
    """Doctor sees the clocks of all CPUs, with their drivers, in the place of the record's one."""
    assert cpu_traps(dataclasses.replace(GOOD, governor="powersave")) == []


def test_unknown_flags_are_not_missing_flags():
    assert machine_traps(dataclasses.replace(GOOD, isa=())) == []


@pytest.mark.parametrize(
    ("value", "found"),
    [("", 0), ("4", 0), ("4,8", 0), ("5,1", 1), ("1", 0), ("5", 1), ("0", 1), ("-1", 1), ("many", 1)],
)
def test_omp_num_threads(value, found):
    assert len(variable_traps(GOOD, {"OMP_NUM_THREADS": value})) == found
    assert variable_traps(GOOD, {}) == []


# -------------------------------------------------------------------------------------------------- clocks and cores

FULL = Clock(8, "acpi-cpufreq", "schedutil", "", 3400000, 3400000)


def test_clocks_that_are_not_kept_low_are_no_trap():
    usual = dataclasses.replace(FULL, driver="intel_pstate", governor="powersave", preference="balance_power")
    fast = dataclasses.replace(FULL, driver="amd-pstate-epp", governor="powersave", preference="performance")
    unknown = Clock(8, "", "", "", 0, 0)
    assert clock_traps([]) == clock_traps([FULL]) == clock_traps([usual, fast]) == clock_traps([unknown]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"governor": "powersave"}, "The CPUs' frequency governor is 'powersave', which keeps the lowest clock"),
        ({"driver": "intel_cpufreq", "governor": "powersave"}, "is 'powersave'"),  # intel_pstate's passive mode
        ({"driver": "amd-pstate", "governor": "powersave"}, "is 'powersave'"),
        ({"governor": "conservative"}, "is 'conservative'"),
        ({"driver": "intel_pstate", "governor": "powersave", "preference": "power"}, "preference is 'power'"),
        ({"limit": 1200000}, "The CPUs' clock is limited to 1.2 GHz of 3.4 GHz"),
    ],
)
def test_each_clock_that_is_kept_low_is_one_trap(change, words):
    (trap,) = clock_traps([dataclasses.replace(FULL, **change)])
    assert words in trap.what
    assert trap.remedy


def test_a_trap_of_some_cpus_says_of_how_many():
    (trap,) = clock_traps([FULL, dataclasses.replace(FULL, cpus=4, governor="powersave")])
    assert trap.what.startswith("4 of 12 CPUs' frequency governor")


@pytest.mark.parametrize(
    ("quota", "words"), [(3.5, "4 threads are stopped for 12%"), (0.5, "1 thread is stopped for 50%")]
)
def test_a_quota_that_is_no_whole_number_stops_threads(quota, words):
    (trap,) = core_traps(dataclasses.replace(GOOD, cores_allowed=math.ceil(quota)), quota=quota, load=None)
    assert f"quota is {quota:g} cores: {words} of the time" in trap.what


@pytest.mark.parametrize("quota", [None, 4.0, 6.5])  # 6.5: an affinity mask allows fewer
def test_whole_cores_are_no_trap(quota):
    assert core_traps(GOOD, quota=quota, load=None) == []


@pytest.mark.parametrize(
    ("busy", "cores", "found"),
    [(0.2, 4, 0), (1.6, 4, 1), (3.9, 8, 0), (4.6, 8, 1), (8.0, 8, 1)],
)
def test_programs_that_leave_fewer_cores_than_are_allowed(busy, cores, found):
    """GOOD is allowed 4 cores: of the 4 that its affinity mask names, or any 4 of 8 under a quota."""
    traps = core_traps(GOOD, quota=None, load=Load(busy, cores, 6.25))
    assert len(traps) == found
    assert all(f"Other programs keep {busy:.1f} of {cores} cores busy (load average 6.2)" in t.what for t in traps)


# ------------------------------------------------------------------------------------------------ measured and built


def test_threads_beyond_the_allowed_cores_and_their_cost():
    slow = Slowdown(8, 1.4, 4, 0.35)
    (trap,) = measured_traps(GOOD, default_threads=8, saturates=False, slowdown=slow)
    assert "starts 8 threads, but 4 of 8 cores are allowed (cgroup quota)" in trap.what
    assert "1.4 ms a call with 8 threads and 0.35 ms with 4: 4.0 times slower here" in trap.what
    assert "intra_op_num_threads=4" in trap.remedy
    same = dataclasses.replace(slow, default_ms=0.3)
    (trap,) = measured_traps(GOOD, default_threads=8, saturates=False, slowdown=same)
    assert "0.3 ms a call with 8 threads and 0.35 ms with 4: no slower here just now" in trap.what
    (trap,) = measured_traps(GOOD, default_threads=8, saturates=False)
    assert "ms" not in trap.what.split()


@pytest.mark.parametrize("threads", [None, 1, 4])
def test_threads_within_the_allowed_cores_are_no_trap(threads):
    assert measured_traps(GOOD, default_threads=threads, saturates=False) == []


def test_saturation_names_what_qdeploy_does_about_it():
    (trap,) = measured_traps(GOOD, default_threads=None, saturates=True)
    assert "saturate here" in trap.what
    assert "portable: true" in trap.remedy
    assert "session.x64quantprecision=1" in trap.remedy


def test_build_traps():
    release = "git-branch=HEAD, build type=Release"
    assert build_traps(release, ["onnxruntime"]) == []
    assert build_traps(release.replace("Release", "RelWithDebInfo"), ["onnxruntime"]) == []
    (trap,) = build_traps("git-branch=HEAD, build type=Debug", ["onnxruntime"])
    assert "no release build" in trap.what
    (trap,) = build_traps(release, ["onnxruntime", "onnxruntime-gpu"])
    assert "overwrite each other" in trap.what


def test_a_debug_build_of_python_is_one(monkeypatch):
    monkeypatch.setattr(sysconfig, "get_config_var", {"Py_DEBUG": 1}.get)
    (trap,) = build_traps("build type=Release", ["onnxruntime"])
    assert "debug build" in trap.what
