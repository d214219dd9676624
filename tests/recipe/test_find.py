"""Recipes by name, and what paths in them are relative to."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.recipe import find
from qdeploy.recipe.load import load
from tests.recipe.test_load import GOOD


def test_a_path_is_itself_and_a_name_is_the_file_below_recipes(project: Path):
    (project / "recipes" / "deep").mkdir()
    for name in ("recipes/mine.yaml", "recipes/deep/er.yml"):
        (project / name).write_text(GOOD)
    assert find.find("recipes/mine.yaml") == find.find("mine") == Path("recipes/mine.yaml")
    assert find.find("deep/er") == Path("recipes/deep/er.yml")


def test_a_wrong_name_suggests_the_nearest(project: Path):
    (project / "recipes" / "mine.yaml").write_text(GOOD)
    with pytest.raises(QDeployError, match="no recipe 'mnie'") as caught:
        find.find("mnie")
    assert "'mine'" in caught.value.hint


def test_what_ships_is_found_anywhere(project: Path, repository: Path):
    assert find.find("digits") == repository / "recipes" / "digits.yaml"
    assert load(find.find("digits")).base == repository


def test_paths_are_relative_to_what_holds_recipes_however_deep(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    deep = project / "recipes" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "mine.yaml").write_text(GOOD)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load(deep / "mine.yaml").base == project
    assert find.base_of(project / "other" / "mine.yaml") == project
