from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qdeploy.cli.list import entries
from qdeploy.cli.main import app
from qdeploy.core import plugins


def run(*arguments: str):
    return CliRunner().invoke(app, ["list", *arguments], env={"COLUMNS": "160"})


def names(*arguments: str) -> dict[str, dict[str, str]]:
    return json.loads(run(*arguments, "--json").output)


def test_everything_is_every_kind_and_the_recipes(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(repository)
    found = names()
    assert len(found) == len(plugins.KINDS) + 1
    for label in plugins.KINDS:
        assert list(found[label.replace(" ", "-") + "s"]) == plugins.names(label)
    assert "recipes/digits.yaml" in found["recipes"]
    assert names("plugins") == {kind: entries for kind, entries in found.items() if kind != "recipes"}


def test_every_plugin_says_in_a_line_what_it_is():
    for kind, lines in names("plugins").items():
        for name, line in lines.items():
            assert len(line) > 10, f"{kind}: {name}"


def test_one_kind_by_its_plural_or_singular():
    assert names("observers") == names("observer") == {"observers": entries("observers")}
    output = run("datasets").output
    assert "digits" in output
    assert "observers" not in output


def test_an_unknown_kind_suggests_the_nearest():
    result = run("obsrevers")
    assert result.exit_code == 2
    assert "'observers'" in result.output


def test_recipes_show_their_description_or_first_comment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    for name, text in (
        ("a.yaml", "# comment\nname: a\ndescription: what [a] is\n"),
        ("b.yaml", "# what b is\nname: b\n"),
        ("c.yml", "name: c\n"),
        ("d.yaml", "name: d\nname: d\n"),
    ):
        (tmp_path / "recipes" / name).write_text(text)
    assert names("recipes")["recipes"] == {
        "recipes/a.yaml": "what [a] is",
        "recipes/b.yaml": "what b is",
        "recipes/c.yml": "",
        "recipes/d.yaml": "(broken: recipes/d.yaml, line 2: the key 'name' is written twice.)",
    }
    assert "what [a] is" in run("recipes").output


def test_no_recipes_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "none" in run("recipes").output


def test_listing_imports_no_plugin():
    code = """
import sys
from typer.testing import CliRunner
from qdeploy.cli.main import app
assert CliRunner().invoke(app, ["list"]).exit_code == 0
sys.exit(", ".join(sorted({"torch", "onnxruntime", "numpy", "sklearn"} & set(sys.modules))) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"imported: {done.stderr}"
