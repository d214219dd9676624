"""``--log``: what loggers are given when, and that one that fails loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qdeploy.cli.main import app
from qdeploy.core.records import Bench, Results, from_json, load
from tests.cli.test_bench import QUICK, make_build

# Loggers of a user's: one that writes what it is given to the file that its address names, and one that fails.
WRITING = """
import dataclasses, json
from pathlib import Path
from qdeploy.core.errors import QDeployError
from qdeploy.loggers._base import Log


class Logger(Log):
    def __init__(self, address=""):
        if not address:
            raise QDeployError("Nobody is there.", "Give an address.")
        self.file = Path(address)

    def write(self, project, run):
        self.file.write_text(json.dumps([project, dataclasses.asdict(run)], default=str))
        return str(self.file)
"""
FAILING = (
    WRITING.partition("        self.file.write")[0] + '        raise QDeployError("It was not taken.", "Try again.")\n'
)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a build, writing.py and failing.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "writing.py").write_text(WRITING)
    (tmp_path / "failing.py").write_text(FAILING)
    make_build(tmp_path / "digits")
    return tmp_path


def bench(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", "digits", *QUICK, *arguments], env={"COLUMNS": "200"})


def test_a_bench_is_handed_to_a_logger_of_the_users_under_its_recipe(work: Path) -> None:
    done = bench("--log", "./writing.py:kept.json")
    assert done.exit_code == 0, done.output
    assert "log: kept.json" in done.output
    project, run = json.loads((work / "kept.json").read_text())
    assert (project, run["name"]) == ("digits", "bench local")
    results = load(Results, work / "digits" / "results.json")
    kept = {child["name"].split()[0]: child["metrics"]["p50_ms"] for child in run["children"]}
    assert kept == {variant.name: variant.latency.p50_ms.value for variant in results.variants if variant.latency}
    assert len(kept) == 2
    from_json(Bench, json.loads(run["texts"]["bench.json"]))


def test_one_that_fails_is_told_after_all_else_is_written(work: Path) -> None:
    done = bench("--json", "bench.json", "--log", "failing.py:x", "--log", "writing.py:kept.json")
    assert done.exit_code == 2
    assert "It was not taken." in done.output
    assert "What was built or measured is complete without it." in done.output
    assert (work / "kept.json").is_file()  # the others go on
    assert load(Bench, work / "bench.json").rows
    assert all(variant.latency for variant in load(Results, work / "digits" / "results.json").variants)


@pytest.mark.parametrize(("log", "said"), [("writing.py", "Nobody is there."), ("mlfow:x", "Did you mean 'mlflow'?")])
def test_one_that_is_not_there_is_told_before_any_work(work: Path, log: str, said: str) -> None:
    done = bench("--json", "bench.json", "--log", log)
    assert done.exit_code == 2
    assert said in done.output
    assert not (work / "bench.json").exists()
