from __future__ import annotations

import dataclasses

import pytest

from qdeploy.bench.traps import machine_traps, variable_traps
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
        ({"governor": "powersave"}, "governor is 'powersave'"),
    ],
)
def test_each_trap_says_what_it_is_and_what_to_do(change, words):
    (trap,) = machine_traps(dataclasses.replace(GOOD, **change))
    assert words in trap.what
    assert trap.remedy
    assert str(trap) == f"{trap.what} {trap.remedy}"


def test_unknown_flags_are_not_missing_flags():
    assert machine_traps(dataclasses.replace(GOOD, isa=())) == []


@pytest.mark.parametrize(("value", "found"), [("", 0), ("4", 0), ("1", 0), ("5", 1), ("0", 1), ("-1", 1), ("many", 1)])
def test_omp_num_threads(value, found):
    assert len(variable_traps(GOOD, {"OMP_NUM_THREADS": value})) == found
    assert variable_traps(GOOD, {}) == []
