"""``qdeploy verify``: every bundle is checked, and the exit code is that of the worst."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qdeploy.cli import main
from tests import bundles


def verify(*arguments: object):
    return CliRunner().invoke(main.app, ["verify", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return bundles.write_bundle(tmp_path / "build", "fp32", "float32")


@pytest.fixture
def wrong(good: Path) -> Path:
    """A bundle that gives other answers than it promises."""
    manifest, files = bundles.read_members(good)
    return bundles.write_members(good.with_name("wrong.qdeploy.zip"), manifest, bundles.shift_golden(files, 1.0))


@pytest.fixture
def broken(good: Path) -> Path:
    path = good.with_name("broken.qdeploy.zip")
    path.write_bytes(good.read_bytes()[:-1])
    return path


def test_a_right_bundle_is_ok_and_its_accuracy_is_not_vouched_for(good: Path):
    result = verify(good)
    assert result.exit_code == 0
    ok, rest = result.output.splitlines()
    assert ok == f"ok   {good}  80 golden values agree (close)"
    assert rest == "Checked: files and golden answers. The accuracy that a bundle records was not measured again."


def test_other_answers_are_exit_code_1(good: Path, wrong: Path):
    result = verify(good, wrong)
    assert result.exit_code == 1
    assert f"FAIL {wrong}  80 of 80 golden values differ, by up to 1" in result.output


def test_a_folder_is_checked_to_its_end(broken: Path, good: Path, wrong: Path):
    result = verify(good.parent)
    assert result.exit_code == 2
    lines = result.output.splitlines()
    assert [line[:4] for line in lines[:3]] == ["BAD ", "ok  ", "FAIL"]
    assert "broken.qdeploy.zip is not a valid bundle: its end is not" in lines[0]
    assert "Traceback" not in result.output


def test_json_has_one_entry_a_bundle(broken: Path, good: Path, wrong: Path):
    result = verify(good.parent, "--json")
    assert result.exit_code == 2
    outcomes = {Path(outcome["bundle"]): outcome for outcome in json.loads(result.output)}
    assert {path: outcome["passed"] for path, outcome in outcomes.items()} == {broken: False, good: True, wrong: False}
    assert "its end is not" in outcomes[broken]["error"]
    assert "error" not in outcomes[wrong]


def test_a_bundle_that_the_results_list_and_that_is_gone_is_one_of_them(tmp_path: Path):
    from tests.cli.test_bench import make_build

    build = make_build(tmp_path / "digits")
    (build / "bundles" / "fp32.qdeploy.zip").unlink()
    result = verify(build)
    assert result.exit_code == 2
    assert "BAD  There is no bundle" in result.output
    assert "ok   " in result.output


def test_what_does_not_exist_is_an_error_before_any_check(good: Path):
    result = verify(good, good.with_name("none"))
    assert result.exit_code == 2
    assert "There is no" in result.output
    assert "ok  " not in result.output
