"""docs/recipes.md has every key of a recipe with its default and its values, and shows nothing that is refused."""

from __future__ import annotations

import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from qdeploy.datasets._base import ArrayDataset, CommonOptions
from qdeploy.recipe import schema
from qdeploy.recipe.outline import outline
from tests.commands import commands, options

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS = {
    "The recipe": schema.Recipe,
    "model": schema.ModelRecipe,
    "data": schema.DataRecipe,
    "train": schema.TrainRecipe,
    "variants": schema.VariantRecipe,
    "weights": schema.WeightsRecipe,
    "activations": schema.ActivationsRecipe,
    "calibration": schema.CalibrationRecipe,
    "rules": schema.RuleRecipe,
    "training on": schema.QatTrainRecipe,
    "bench": schema.BenchRecipe,
}
BASE = {"name": "a", "model": {"factory": "x"}, "data": {"name": "digits"}, "train": {"epochs": 1}}


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    (found,) = re.findall(rf"^#+ {title}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return found


def rows(title: str, head: str = "Key") -> dict[str, tuple[str, str]]:
    """The default and the whole row of every key in a section's table that starts with the column ``head``."""
    (table,) = re.findall(rf"^\| {head} \|.*?(?=\n\n|\Z)", section(title), re.MULTILINE | re.DOTALL)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0].strip("`"): (row[1], " ".join(row[2:])) for row in cells}


def default(value: Any) -> str:
    """How the page writes a default."""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, schema.RoundingRecipe):
        return f"`{value.name}`"
    if isinstance(value, BaseModel):
        return "the defaults"
    if isinstance(value, str) and value:
        return f"`{value}`"
    plain = list(value) if isinstance(value, tuple) else value
    return (
        f"`{yaml.safe_dump(plain, default_flow_style=True).removesuffix(chr(10)).removesuffix('...').strip()}`".replace(
            "''", '""'
        )
    )


def defaults(model: type[BaseModel]) -> dict[str, str]:
    """What a section takes, with the defaults as the page writes them."""
    return {
        name: default({} if field.default_factory is dict else field.default)
        for name, field in model.model_fields.items()
    }


def values(kind: Any) -> set[str]:
    """The words that an annotation allows."""
    if typing.get_origin(kind) is Literal:
        return set(typing.get_args(kind))
    inner = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType, tuple) else ()
    return set().union(*map(values, inner))


@pytest.mark.parametrize("title", SECTIONS)
def test_every_key_is_there_with_its_default(title: str) -> None:
    expected = defaults(SECTIONS[title])
    if title == "The recipe":
        expected["grid"] = "`{}`"  # expanded before the schema sees it
    if title == "training on":
        same = defaults(schema.TrainRecipe)
        expected = {key: value for key, value in expected.items() if same.get(key) != value}
    assert {key: row[0] for key, row in rows(title).items()} == expected


@pytest.mark.parametrize("title", [title for title in SECTIONS if title != "training on"])
def test_every_word_that_a_key_takes_is_there(title: str) -> None:
    for key, (_, text) in rows(title).items():
        field = SECTIONS[title].model_fields.get(key)
        missing = {word for word in values(field.annotation) if f"`{word}`" not in text} if field else set()
        assert not missing, key


def test_every_option_that_data_sets_share_is_there() -> None:
    signature = inspect.signature(ArrayDataset.__init__).parameters
    expected = {name: default(signature[name].default) for name in typing.get_type_hints(CommonOptions)}
    assert {key: row[0] for key, row in rows("data", "Option").items()} == expected


def test_the_methods_of_a_key_are_those_that_take_it() -> None:
    for key, (_, text) in rows("variants").items():
        takers = [method for method, keys in schema._KEYS.items() if key in keys]
        assert text.startswith("all" if key == "method" else ", ".join(takers) + " "), key


def test_every_option_of_build_is_there() -> None:
    shown = {re.match(r"--[a-z-]+", key)[0] for key in rows("Changes for one build", "Option")}  # type: ignore[index]
    assert {option.replace("--no-bench", "--bench") for option in shown} == options(commands()["build"]) - {
        "--help", "--no-bench",
    }  # fmt: skip


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
def test_what_it_shows_is_accepted(block: str, tmp_path: Path) -> None:
    path = tmp_path / "recipes" / "shown.yaml"
    path.parent.mkdir()
    own = yaml.safe_load(block)
    others = {key: value for key, value in BASE.items() if key not in own}
    path.write_text((yaml.safe_dump(others) if others else "") + block)
    recipe = outline(path)
    assert set(own) - {"grid"} <= recipe.model_fields_set
