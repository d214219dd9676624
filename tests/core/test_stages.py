"""Stages are all or nothing, run once, and not again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.core.stages import Stage, execute, folder_of, is_done, key_of


def write(text: str, log: list[str] | None = None, name: str = ""):
    def run(folder: Path, inputs) -> None:
        if log is not None:
            log.append(name or text)
        (folder / "result").write_text(text + "".join((path / "result").read_text() for path in inputs.values()))

    return run


def contents(store: Path) -> list[str]:
    """Every file and folder of a store, but the locks and the digests."""
    paths = [path for path in store.rglob("*") if path.suffix != ".lock" and path.name != "digests.json"]
    return sorted(str(path.relative_to(store)) for path in paths)


def test_results_flow_from_stage_to_stage(tmp_path):
    plan = [
        Stage("a", "1", (), write("a")),
        Stage("b", "2", ("a",), write("b")),
        Stage("c", "3", ("a", "b"), write("c")),
    ]
    folders = execute(plan, tmp_path)
    assert (folders["c"] / "result").read_text() == "caba"
    assert folders == {stage.name: folder_of(stage, tmp_path) for stage in plan}
    assert all(is_done(stage, tmp_path) for stage in plan)


def test_an_unchanged_plan_runs_nothing(tmp_path):
    log: list[str] = []
    started: list[str] = []
    plan = [Stage("a", "1", (), write("a", log)), Stage("b", "2", ("a",), write("b", log))]
    for _ in range(3):
        execute(plan, tmp_path, on_start=lambda stage: started.append(stage.name))
    assert log == started == ["a", "b"]


def test_a_changed_key_runs_that_stage_and_no_other(tmp_path):
    log: list[str] = []
    execute([Stage("a", "1", (), write("a", log)), Stage("b", "2", (), write("b", log))], tmp_path)
    before = contents(tmp_path)
    execute([Stage("a", "1", (), write("a", log)), Stage("b", "3", (), write("b", log))], tmp_path)
    assert log == ["a", "b", "b"]
    assert set(before) < set(contents(tmp_path))  # what an older recipe made stays


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_stage_that_raises_leaves_nothing_and_the_next_run_resumes(tmp_path, error):
    log: list[str] = []

    def fail(folder: Path, inputs) -> None:
        (folder / "half").write_text("half")
        raise error

    first = Stage("a", "1", (), write("a", log))
    with pytest.raises(error):
        execute([first, Stage("b", "2", ("a",), fail)], tmp_path)
    assert [name for name in contents(tmp_path) if name.startswith("b/")] == []
    execute([first, Stage("b", "2", ("a",), write("b", log))], tmp_path)
    assert log == ["a", "b"]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from qdeploy.core.stages import Stage, execute

    def good(folder, inputs):
        (folder / "result").write_text("a")

    def dies(folder, inputs):
        (folder / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    execute([Stage("a", "1", (), good), Stage("b", "2", ("a",), dies)], Path(sys.argv[1]))
"""


def test_a_killed_process_leaves_no_result_and_the_next_run_resumes(tmp_path):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    log: list[str] = []
    plan = [Stage("a", "1", (), write("a", log)), Stage("b", "2", ("a",), write("b", log))]
    assert [is_done(stage, tmp_path) for stage in plan] == [True, False]
    folders = execute(plan, tmp_path)
    assert log == ["b"]
    assert (folders["b"] / "result").read_text() == "ba"
    # What the killed process had begun is gone as well.
    assert contents(tmp_path) == ["a", "a/1", "a/1/result", "b", "b/2", "b/2/result"]


def _count(store: str, barrier) -> None:
    def run(folder: Path, inputs) -> None:
        with (Path(store) / "runs").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        (folder / "result").write_text("done")

    barrier.wait(30)
    folders = execute([Stage("a", "1", (), run)], Path(store))
    assert (folders["a"] / "result").read_text() == "done"


def test_two_processes_at_once_run_a_stage_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_count, args=(str(tmp_path), barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((tmp_path / "runs").read_text().splitlines()) == 1


def test_a_result_is_as_readable_as_other_files(tmp_path):
    folders = execute([Stage("a", "1", (), write("a"))], tmp_path)
    assert folders["a"].stat().st_mode & 0o777 == 0o755


def test_a_stage_name_may_hold_a_folder(tmp_path):
    folders = execute([Stage("ptq/verify", "1", (), write("a"))], tmp_path)
    assert folders["ptq/verify"] == tmp_path / "ptq" / "verify" / "1"


def test_a_store_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QDeployError, match="cannot be written") as caught:
        execute([Stage("a", "1", (), write("a"))], tmp_path / "file" / "store")
    assert "--out" in caught.value.hint


def test_keys_depend_on_every_part_and_on_nothing_else():
    parts = ({"lr": 0.1, "epochs": 3}, ["a", None, True], "digest")
    assert key_of(*parts) == key_of({"epochs": 3, "lr": 0.1}, ["a", None, True], "digest")
    others = [
        ({"lr": 0.2, "epochs": 3}, ["a", None, True], "digest"),
        ({"lr": 0.1, "epochs": 3}, [None, "a", True], "digest"),
        ({"lr": 0.1, "epochs": 3}, ["a", None, 1], "digest"),
        ({"lr": 0.1, "epochs": 3}, ["a", None, True, "digest"]),
    ]
    assert len({key_of(*parts), *(key_of(*other) for other in others)}) == 5
    assert len(key_of(1)) == 32
    with pytest.raises(ValueError, match="JSON"):
        key_of(float("nan"))
    assert key_of(*json.loads(json.dumps(parts))) == key_of(*parts)
