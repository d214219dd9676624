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
    assert found["recipes"]["digits"].endswith("float32 and int8 (data digits; 2 variants)")
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


GOOD = "name: a\nmodel: {factory: x}\ndata: {name: digits}\ntrain: {epochs: 1}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of no recipes but its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qdeploy.recipe.find._CHECKOUT", tmp_path)
    return tmp_path


def write(folder: Path, **recipes: str) -> None:
    for name, text in recipes.items():
        path = folder / "recipes" / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_recipes_show_their_description_or_first_comment_data_and_variants(here: Path):
    write(
        here,
        a=f"# comment\n{GOOD}description: what [a] is\n",
        b=f"# what b is\n{GOOD}grid: {{method: ptq, weights.bits: [8, 4]}}\n",
        c=f"{GOOD}profiles: {{fast: {{train.epochs: 1}}, full:}}\n",
        deep__er__d=f"{GOOD}variants: {{base: {{}}}}\n",
    )
    (here / "recipes" / ".hidden.yaml").write_text(GOOD)
    assert names("recipes")["recipes"] == {
        "a": "what [a] is (data digits; 1 variant)",
        "b": "what b is (data digits; 3 variants)",
        "c": "(data digits; 1 variant; profiles fast, full)",
        "deep/er/d": "(data digits; 1 variant)",
    }
    assert "what [a] is" in run("recipes").output


def test_a_broken_recipe_says_why_and_breaks_no_other(here: Path):
    profile = "profiles: {fast: {train.epoch: 1}}"
    write(here, e=f"{GOOD}{profile}\n")
    assert "train.epoch (profile fast, line 5): unknown key" in names("recipes")["recipes"]["e"]
    write(here, a=GOOD, b="name: d\nname: d\n", c=f"{GOOD}train: {{epoch: 1}}\n", d=GOOD.replace("epochs", "epoch"))
    found = names("recipes")["recipes"]
    assert found["a"] == "(data digits; 1 variant)"
    assert found["b"] == "(broken: recipes/b.yaml, line 2: the key 'name' is written twice.)"
    assert found["c"].startswith("(broken: recipes/c.yaml, line 5: the key 'train' is written twice")
    assert found["d"].startswith("(broken: recipes/d.yaml has 2 errors. train.epochs (line 4): this key is missing")


def test_recipes_of_the_checkout_are_listed_anywhere_and_those_of_here_come_first(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, digits=f"{GOOD}description: mine\n")
    found = names("recipes")["recipes"]
    assert found["digits"].startswith("mine")
    assert {path.stem for path in (repository / "recipes").glob("*.yaml")} <= set(found)


def test_no_recipes_is_said(here: Path):
    assert "none" in run("recipes").output


def test_every_recipe_that_ships_is_whole(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(repository)
    assert not [line for line in names("recipes")["recipes"].values() if "broken" in line]


def test_listing_imports_no_plugin():
    code = """
import sys
from typer.testing import CliRunner
from qdeploy.cli.main import app
assert CliRunner().invoke(app, ["list"]).exit_code == 0
from qdeploy.core.plugins import KINDS
packages = {kind.package for kind in KINDS.values()}
plugins = {name for name in sys.modules if name.rpartition(".")[0] in packages} - packages
sys.exit(", ".join(sorted(plugins | {"torch", "onnxruntime", "sklearn", "mlflow"} & set(sys.modules))) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"imported: {done.stderr}"
