"""One core on a machine with more: what is allowed is what is used, and doctor says what ignoring it costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qdeploy import runner
from qdeploy.core.records import Environment, from_json
from qdeploy.targets._base import local_command
from qdeploy.targets._worker import WorkerProcess
from tests.bundles import write_bundle

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc"),
    pytest.mark.skipif(runner.allowed_cores()[0] < 2, reason="no more than one core is allowed here already"),
]
PIN = "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); os.execv(sys.argv[1], sys.argv[1:])"
ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
MOUNT = Path("/sys/fs/cgroup")


@contextmanager
def cgroup(cores: float) -> Iterator[Path]:
    """A cgroup of the kernel, of version 2 or 1, with a quota of ``cores``. Skips where none can be made."""
    roots = [root for root in (MOUNT, MOUNT / "unified") if "cpu" in _words(root / "cgroup.controllers")]
    roots += [root for root in (MOUNT / "cpu", MOUNT / "cpu,cpuacct") if (root / "cpu.cfs_quota_us").is_file()]
    if not roots:
        pytest.skip("no controller of CPU quotas is mounted in /sys/fs/cgroup")
    folder = roots[0] / f"qdeploy-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made in {roots[0]}: {error.strerror}")
    try:
        _set_quota(folder, round(cores * 100_000))
        yield folder
    finally:
        folder.rmdir()


def _set_quota(folder: Path, quota: int) -> None:
    """Microseconds of each 100 ms."""
    if (folder / "cpu.cfs_quota_us").is_file():
        (folder / "cpu.cfs_quota_us").write_text(str(quota))
        return
    try:
        if not (folder / "cpu.max").is_file():
            (folder.parent / "cgroup.subtree_control").write_text("+cpu")
        (folder / "cpu.max").write_text(f"{quota} 100000")
    except OSError as error:
        pytest.skip(f"CPU quotas cannot be set in {folder.parent}: {error.strerror}")


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.is_file() else []


@pytest.fixture(params=["affinity mask", "cgroup quota", "SLURM_CPUS_PER_TASK"])
def confined(request: pytest.FixtureRequest) -> Iterator[tuple[list[str], str]]:
    """What starts a command on one core only, and what the runner is to name as the reason."""
    if request.param == "cgroup quota":
        with cgroup(1) as folder:
            yield ["/bin/sh", "-c", ENTER, str(folder)], request.param
    elif request.param == "affinity mask":
        yield [sys.executable, "-c", PIN], request.param
    else:
        yield ["/usr/bin/env", "SLURM_CPUS_PER_TASK=1"], request.param


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


def load(prefix: list[str], bundle: Path, threads: int | None) -> tuple[dict[str, Any], int]:
    """What a worker answers to load, and how many threads its process then has."""
    command = [*prefix, *local_command("onnxruntime")]
    with WorkerProcess(command, bundle=str(bundle), name="int8") as worker:
        loaded = worker.load(threads=threads, batch=4)
        return loaded, len(list(Path(f"/proc/{worker._process.pid}/task").iterdir()))


def doctor(prefix: list[str]) -> dict[str, Any]:
    command = [*prefix, sys.executable, "-m", "qdeploy", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_a_worker_takes_the_one_core_and_starts_no_pool(confined, bundle):
    prefix, reason = confined
    loaded, tasks = load(prefix, bundle, None)
    environment = from_json(Environment, loaded["environment"])
    assert loaded["threads"] == 1
    assert (environment.cores_allowed, environment.cores_reason) == (1, reason)
    assert environment.cores_present == os.cpu_count()
    # Other libraries have threads of their own; a pool would be one more than the session of one thread has.
    assert tasks == load(prefix, bundle, 1)[1]
    assert tasks == load(prefix, bundle, 2)[1] - 1


def test_doctor_times_what_the_default_threads_cost(confined):
    prefix, reason = confined
    facts = doctor(prefix)
    threads = facts["default_threads"]
    if threads == 1:
        pytest.skip("onnxruntime's default is one thread here")
    timed = facts["slowdown"]
    assert (timed["default_threads"], timed["allowed_threads"]) == (threads, 1)
    assert timed["default_ms"] > 0
    assert timed["allowed_ms"] > 0
    (what,) = (trap["what"] for trap in facts["traps"] if "onnxruntime by itself" in trap["what"])
    assert f"starts {threads} threads, but 1 of {os.cpu_count()} cores is allowed ({reason})" in what
    assert f"{timed['default_ms']:.3g} ms a call with {threads} threads and {timed['allowed_ms']:.3g} ms with 1" in what
    assert "slower here" in what


def test_half_a_core_is_one_thread_that_is_stopped_half_of_the_time(bundle):
    with cgroup(0.5) as folder:
        prefix = ["/bin/sh", "-c", ENTER, str(folder)]
        assert load(prefix, bundle, None)[0]["threads"] == 1
        facts = doctor(prefix)
    assert facts["quota"] == 0.5
    assert any("quota is 0.5 cores: 1 thread is stopped for 50% of the time" in t["what"] for t in facts["traps"])


def test_where_all_cores_are_allowed_nothing_is_timed():
    facts = doctor(["/usr/bin/env", "-u", "SLURM_CPUS_PER_TASK"])
    if facts["default_threads"] > facts["environment"]["cores_allowed"]:
        pytest.skip(f"these tests run in {facts['environment']['cores_reason']}")
    assert facts["slowdown"] is None
    assert not any("onnxruntime by itself" in trap["what"] for trap in facts["traps"])
