"""``qdeploy compare``: records of any kind in, one comparison out, and one clear error for what is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qdeploy.cli import main
from qdeploy.core import records
from qdeploy.core.errors import QDeployError
from qdeploy.reports.compare import files
from tests.cli.test_bench import make_build
from tests.reports import sample


def qdeploy(*arguments: object, width: int = 200):
    return CliRunner().invoke(main.app, [*map(str, arguments)], env={"COLUMNS": str(width)})


def compare(*arguments: object, width: int = 200):
    return qdeploy("compare", *arguments, width=width)


@pytest.fixture
def fleet(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name, _ in sample.fleet()]
    for path, (_, record) in zip(paths, sample.fleet(), strict=True):
        records.save(record, path)
    return paths


def test_what_bench_and_verify_record_here_is_one_machine(tmp_path: Path):
    build = make_build(tmp_path / "digits")
    timed, verified = tmp_path / "bench.json", tmp_path / "verify.json"
    quick = ("--threads", "1", "--seconds", "0.05")
    assert qdeploy("bench", build, *quick, "--json", timed).exit_code == 0
    assert qdeploy("verify", build, "--json", verified).exit_code == 0
    result = compare(timed, verified, build, "--json", tmp_path / "all.json")
    assert result.exit_code == 0, result.output
    compared = json.loads((tmp_path / "all.json").read_text())
    assert compared["schema"] == "qdeploy.comparison/1"
    assert [machine["target"] for machine in compared["machines"]] == ["local"]
    assert [bundle["label"] for bundle in compared["bundles"]] == ["fp32", "ptq-int8"]
    assert [timing["source"] for timing in compared["timings"]] == [str(timed)] * 2
    assert [answer["golden"]["passed"] for answer in compared["answers"]] == [True, True]
    assert compared["alerts"] == []
    assert "Golden vectors hold for 2 bundles on 1 machine." in result.output


def test_tables_markdown_json_and_a_page(fleet: list[Path], tmp_path: Path):
    outputs = {option: tmp_path / "out" / f"a.{option}" for option in ("markdown", "json", "html")}
    result = compare(*fleet, *(part for option, path in outputs.items() for part in (f"--{option}", path)))
    assert result.exit_code == 0, result.output
    assert "Speed-up over fp32 on the same machine" in result.output
    assert "7 of 8 runs of the evaluation split are bit-identical" in result.output
    for option, path in outputs.items():
        assert f"{option}: {path}" in result.output
    assert "| fp32 | golden ok |" in outputs["markdown"].read_text()
    assert outputs["html"].read_text().startswith("<!DOCTYPE html>")
    assert len(json.loads(outputs["json"].read_text())["timings"]) == 16


def test_a_build_folder_and_a_file_that_is_named_twice(tmp_path: Path):
    records.save(sample.full(), tmp_path / "results.json")
    once, twice = compare(tmp_path), compare(tmp_path, tmp_path / "results.json")
    assert once.exit_code == 0
    assert once.output == twice.output


def test_wrong_answers_are_red_and_first(fleet: list[Path]):
    answers = json.loads(fleet[-1].read_text())
    answers["rows"][1]["golden"] |= {"passed": False, "differing": 37, "max_difference": 3.0}
    fleet[-1].write_text(json.dumps(answers))
    program = Path(sys.executable).with_name("qdeploy")
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "200", "TERM": "xterm-256color"}
    done = subprocess.run([program, "compare", *fleet], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("\x1b[1;31mptq-int8 gives other answers on qemu:Haswell than where it was built")


def test_the_first_file_with_answers_is_the_reference(fleet: list[Path]):
    assert "Answers beside qemu:Haswell" in compare(*reversed(fleet)).output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no file"),
        ("{", "cannot be read as JSON"),
        ("{}", "is no record: it has no schema"),
        ('{"schema": "qdeploy.bundle/1"}', "is of schema 'qdeploy.bundle/1'"),
        (
            '{"schema": "qdeploy.results/1", "name": "x", "baseline": "y", "variants": []}',
            "There is nothing to compare",
        ),
    ],
)
def test_what_is_no_record_is_one_panel_and_exit_code_2(tmp_path: Path, text: str | None, message: str):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    result = compare(tmp_path / "a.json")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert result.output.count("Error") == 1
    assert "Traceback" not in result.output


def test_no_file_at_all_is_an_error():
    assert compare().exit_code == 2


def test_an_output_never_takes_the_place_of_a_record_or_of_another(fleet: list[Path], tmp_path: Path):
    before = fleet[0].read_text()
    for arguments in (
        ("--json", fleet[0]),
        ("--html", tmp_path / "x", "--json", tmp_path / "x"),
        ("--markdown", tmp_path),
    ):
        result = compare(*fleet, *arguments)
        assert result.exit_code == 2, arguments
        assert not (tmp_path / "x").exists()
    assert fleet[0].read_text() == before


def test_a_comparison_is_no_record_to_compare(fleet: list[Path], tmp_path: Path):
    assert compare(*fleet, "--json", tmp_path / "all.json").exit_code == 0
    with pytest.raises(QDeployError, match=r"is of schema 'qdeploy\.comparison/1'"):
        files.read(tmp_path / "all.json")


def test_it_imports_neither_torch_nor_onnxruntime(fleet: list[Path]):
    """A page of measurements can be made where nothing can be measured."""
    code = """
import sys
from typer.testing import CliRunner
from qdeploy.cli.main import app
assert CliRunner().invoke(app, ["compare", *sys.argv[1:]]).exit_code == 0
sys.exit(", ".join(sorted({"torch", "onnx", "onnxruntime"} & set(sys.modules))) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code, *map(str, fleet)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
