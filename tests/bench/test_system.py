from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qdeploy.bench import system
from qdeploy.bench.system import Clock


def policy(folder: Path, number: int, cpus: str, **files: str) -> None:
    """A cpufreq policy as Linux shows it in /sys."""
    made = folder / "cpufreq" / f"policy{number}"
    made.mkdir(parents=True)
    (made / "affected_cpus").write_text(f"{cpus}\n")
    for name, text in files.items():
        (made / name).write_text(f"{text}\n")


def test_clocks_that_are_alike_are_one_and_those_of_cpus_that_are_off_none(tmp_path):
    little = {"scaling_driver": "cpufreq-dt", "scaling_governor": "schedutil", "scaling_max_freq": "1800000"}
    big = {**little, "scaling_governor": "powersave", "cpuinfo_max_freq": "2400000"}
    policy(tmp_path, 0, "0 1", **little)
    policy(tmp_path, 2, "2 3", **little)
    policy(tmp_path, 4, "4", **big)
    policy(tmp_path, 5, "", **big)
    assert system.clocks(tmp_path) == [
        Clock(4, "cpufreq-dt", "schedutil", "", 1800000, 0),
        Clock(1, "cpufreq-dt", "powersave", "", 1800000, 2400000),
    ]


def test_a_preference_and_what_cannot_be_read(tmp_path):
    odd = {"scaling_driver": "intel_pstate", "energy_performance_preference": "power", "scaling_max_freq": "<unknown>"}
    policy(tmp_path, 0, "0", **odd)
    assert system.clocks(tmp_path) == [Clock(1, "intel_pstate", "", "power", 0, 0)]
    assert system.clocks(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("intel_pstate/no_turbo", "1", False),
        ("intel_pstate/no_turbo", "0", True),
        ("cpufreq/boost", "0", False),
        ("cpufreq/boost", "1", True),
        ("cpufreq/other", "1", None),
    ],
)
def test_turbo(tmp_path, file, text, expected):
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(f"{text}\n")
    assert system.turbo(tmp_path) is expected


def test_this_machine_can_be_asked():
    assert all(clock.cpus > 0 for clock in system.clocks())
    load = system.load(0.05)
    assert load is None or 0 <= load.busy <= load.cores


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="cores in use are counted in /proc/stat")
def test_a_busy_core_is_seen_where_this_process_may_run_and_only_there():
    """A program that never rests, on the one core that is looked at. Who else is busy on the others is not known."""
    core = min(os.sched_getaffinity(0))
    spin = f"import os; os.sched_setaffinity(0, {{{core}}}); print(flush=True)\nwhile True: pass"
    look = (
        f"import os; os.sched_setaffinity(0, {{{core}}}); from qdeploy.bench import system; "
        "load = system.load(0.3); print(load.busy, load.cores)"
    )
    with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        seen = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.split()
        busy.kill()
    assert float(seen[0]) > 0.7
    assert seen[1] == "1"
