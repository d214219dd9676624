"""``qdeploy verify``: every bundle is checked, and the exit code is that of the worst."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from qdeploy.cli import main
from qdeploy.core import records
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
    ok, where, rest = result.output.splitlines()
    assert ok == f"ok   {good}  80 golden values agree (close)"
    assert where.startswith("local: ")
    assert rest == "Checked: files and golden answers. `qdeploy accuracy` measures the accuracy that a bundle records."


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


def test_the_record_has_one_row_a_bundle_that_answered(broken: Path, good: Path, wrong: Path, tmp_path: Path):
    result = verify(good.parent, "--json", tmp_path / "answers.json")
    assert result.exit_code == 2
    answers = records.load(records.Answers, tmp_path / "answers.json")
    assert {Path(row.bundle): row.golden.passed for row in answers.rows} == {good: True, wrong: False}
    assert answers.target == "local"
    assert "its end is not" in result.output


def test_several_targets_have_a_record_each_and_one_that_fails_stops_no_other(good: Path, tmp_path: Path):
    targets = ("--target", "nowhere", "--target", "local", "--target", "local:there")
    result = verify(good, *targets, "--json", tmp_path / "answers.json")
    assert result.exit_code == 2
    assert "nowhere: There is no target named 'nowhere'" in result.output
    assert "takes no address" in result.output
    assert f"ok   {good}" in result.output
    assert [path.name for path in tmp_path.glob("*.json")] == ["answers.local.json"]


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


def test_a_bundle_that_is_named_twice_is_checked_once(good: Path):
    result = verify(good, good.parent)
    assert result.output.count("golden values agree") == 1


def test_a_failure_says_on_which_of_several_targets(good: Path):
    """No bundle answers there, so no line about the machine follows."""
    result = verify(good, "--target", "local", "--target", "ssh://127.0.0.1:1", "--provider", "nonsense")
    assert result.exit_code == 2
    local, ssh = [line for line in result.output.splitlines() if line.startswith("BAD")]
    assert local.startswith(f"BAD  local: {good.name}: ")
    assert ssh.count("ssh://127.0.0.1:1") == 1
    assert ". Is sshd running there?" in ssh or "ssh, which is not installed" in ssh
