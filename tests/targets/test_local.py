from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qdeploy import runner
from qdeploy.core.errors import QDeployError
from qdeploy.core.records import Environment, from_json
from qdeploy.targets._worker import WorkerProcess
from qdeploy.targets.local import Target
from tests.bundles import write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


def script(tmp_path: Path, code: str) -> WorkerProcess:
    """A process that misbehaves in the place of the runner."""
    path = tmp_path / "worker.py"
    path.write_text(code)
    return WorkerProcess([sys.executable, str(path)], bundle="x", name="x")


def test_a_worker_loads_warms_up_times_and_finishes(bundle):
    with Target().open(bundle, name="int8") as worker:
        loaded = worker.load(threads=1, batch=2)
        assert loaded["golden"]["passed"]
        assert loaded["golden"]["samples"] == 2
        assert (loaded["threads"], loaded["runtime"]) == (1, "onnxruntime (CPU)")
        assert from_json(Environment, loaded["environment"]).emulator is None
        assert worker.warm_up(0.2)["call_seconds"] > 0
        times = worker.block(0.02)
        assert times
        assert all(isinstance(t, int) and t > 0 for t in times)
        assert worker.finish() > 10 << 20
        with pytest.raises(QDeployError, match="int8: its worker has ended"):
            worker.block(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="CPU time of another process is read from /proc")
def test_between_requests_a_worker_uses_no_cpu(bundle):
    """onnxruntime's threads spin on for tens of milliseconds after a call: a reply waits for the end of that."""
    with Target().open(bundle, name="int8") as worker:
        worker.load(threads=2, batch=16)
        worker.warm_up(0.1)
        used = []
        for _ in range(5):
            worker.block(0.02)
            before = cpu_ticks(worker._process.pid)
            time.sleep(0.1)
            used.append(cpu_ticks(worker._process.pid) - before)
        # Two spinning threads would use 20 ticks; returning to the next read may end in another tick.
        assert max(used) <= 2, used


def cpu_ticks(pid: int) -> int:
    """User and system time of a process, in ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_no_file_of_a_bundle_is_executed(tmp_path):
    """The fixture's run.py ends Python with a message; the runner that works is the installed one."""
    with Target().open(write_bundle(tmp_path), name="int8") as worker:
        command = worker._process.args
        worker.load(threads=1, batch=1)
    assert str(tmp_path) not in " ".join(command)


def test_an_error_on_the_other_side_keeps_its_message_and_hint(tmp_path):
    with (
        Target().open(tmp_path / "missing.zip", name="int8") as worker,
        pytest.raises(QDeployError, match="int8: There is no bundle") as caught,
    ):
        worker.load(threads=1, batch=1)
    assert caught.value.hint


@pytest.mark.parametrize(("number", "text"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV")])
def test_a_worker_that_dies_says_of_what(bundle, number, text):
    with Target().open(bundle, name="int8") as worker:
        worker.load(threads=1, batch=1)
        os.kill(worker._process.pid, number)
        with pytest.raises(QDeployError, match=f"int8: its worker was killed by {text} during 'block'") as caught:
            worker.block(0.01)
        assert ("memory" in caught.value.hint) == (number == signal.SIGKILL)


def test_a_worker_that_fails_gives_the_last_line_of_its_stderr(tmp_path):
    with (
        script(tmp_path, "raise SystemExit('no onnxruntime here')") as worker,
        pytest.raises(QDeployError, match=r"ended with exit code 1 during 'load'\. no onnxruntime here"),
    ):
        worker.load(threads=1, batch=1)


def test_a_process_that_talks_something_else_is_an_error(tmp_path):
    with (
        script(tmp_path, "print('Welcome to this host!', flush=True); input(); input()") as worker,
        pytest.raises(QDeployError, match=r"does not speak the runner's protocol.*Welcome"),
    ):
        worker.load(threads=1, batch=1)


def test_a_worker_that_hangs_is_ended_after_its_time(tmp_path):
    path = tmp_path / "worker.py"
    path.write_text("import time; time.sleep(60)")
    with WorkerProcess([sys.executable, str(path)], bundle="x", name="x", start_seconds=0.2) as worker:
        with pytest.raises(QDeployError, match="no answer to 'load' within 0 seconds"):
            worker.load(threads=1, batch=1)
        assert worker._process.poll() is not None


def test_leaving_the_block_ends_the_process_in_the_middle_of_work(bundle):
    with Target().open(bundle, name="int8") as worker:
        worker.load(threads=1, batch=1)
    assert worker._process.poll() is not None


def test_what_cannot_be_opened_is_an_error(bundle, tmp_path):
    with pytest.raises(QDeployError, match="takes no address"):
        Target("host")
    with pytest.raises(QDeployError, match="no runtime named 'onnxruntme'"):
        Target().open(bundle, name="x", runtime="onnxruntme")
    with pytest.raises(QDeployError, match="cannot be started"):
        WorkerProcess([str(tmp_path / "no-python")], bundle="x", name="x")


def test_a_runtime_of_ones_own_is_served_and_its_errors_are_told(bundle, tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from qdeploy.core.errors import QDeployError\n"
        "from qdeploy.runtimes.onnxruntime import Runtime as Base\n"
        "class Runtime(Base):\n"
        "    worker = None\n"
        "    def describe(self): return 'mine'\n"
        "    def block(self, feeds, seconds): raise QDeployError('no clock', 'Buy one.')\n"
    )
    with Target().open(bundle, name="x", runtime=str(plugin)) as worker:
        loaded = worker.load(threads=1, batch=1)
        assert loaded["runtime"] == "mine"
        assert loaded["golden"]["passed"]
        with pytest.raises(QDeployError, match="x: no clock"):
            worker.block(0.01)


def test_predictions_are_those_of_the_model(bundle):
    raw = np.random.default_rng(0).integers(0, 17, (5, 8, 8), dtype=np.uint8)
    with Target().open(bundle, name="x") as worker:
        worker.load(threads=1)
        (found,) = worker.predict({"input": raw}).values()
    opened = runner.read_bundle(bundle)
    np.testing.assert_array_equal(found, runner.predict(opened, {"input": raw}, threads=1)["output"])


def test_golden_answers_that_differ_are_reported_and_not_hidden(tmp_path):
    from tests import bundles

    manifest, files = bundles.read_members(write_bundle(tmp_path))
    path = bundles.write_members(tmp_path / "other.zip", manifest, bundles.shift_golden(files, 1.0))
    with Target().open(path, name="int8") as worker:
        golden = worker.load(threads=1, batch=20)["golden"]
    assert not golden["passed"]
    assert golden["samples"] == 8
