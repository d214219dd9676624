"""What the commands that run bundles elsewhere share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qdeploy.cli import main, places
from qdeploy.core.errors import QDeployError
from tests import bundles


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return bundles.write_bundle(tmp_path / "build", "fp32", "float32")


@pytest.mark.parametrize("command", [["verify"], ["accuracy", "--samples", "1"], ["bench", "--seconds", "0.05"]])
def test_a_record_that_cannot_be_written_is_told_before_anything_runs(command: list[str], bundle: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    for file, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "a.json", "cannot be written in"),
        (bundle, "is what is read"),
        (bundle.parent / "results.json", "is what is read"),
    ):
        arguments = [*command, str(bundle), str(bundle.parent), "--json", str(file)]
        result = CliRunner().invoke(main.app, arguments, env={"COLUMNS": "400"})
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert "golden" not in result.output
    assert not (bundle.parent / "results.json").exists()


def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path):
    """Files are written through a rename, which would put a file where /dev/null was."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(QDeployError, match="is no regular file"):
        places.check_output("--json", pipe)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_ours_to_write_is_told(tmp_path: Path):
    tmp_path.chmod(0o555)
    with pytest.raises(QDeployError, match="cannot be written in"):
        places.check_output("--json", tmp_path / "a" / "b.json")


def test_a_folder_that_is_missing_is_made(bundle: Path, tmp_path: Path):
    file = tmp_path / "new" / "folder" / "a.json"
    assert CliRunner().invoke(main.app, ["verify", str(bundle), "--json", str(file)]).exit_code == 0
    assert file.is_file()


def test_the_target_that_failed_is_named_once(capsys: pytest.CaptureFixture[str]):
    def fail(target: str) -> None:
        raise QDeployError("ssh://a: no host has this name." if target == "ssh://a" else "It failed.")

    assert len(places.each(["ssh://a", "local"], fail)) == 2
    said = capsys.readouterr().err
    assert said.count("ssh://a") == 1
    assert "local: It failed." in said
