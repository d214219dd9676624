"""A recipe as far as its own text goes: nothing that it names is imported or tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qdeploy.recipe import grid, text
from qdeploy.recipe.find import base_of
from qdeploy.recipe.overrides import apply, of_profile
from qdeploy.recipe.problems import Problem, problems_of, raise_problems
from qdeploy.recipe.schema import Recipe, VariantRecipe
from qdeploy.recipe.text import Origins


def outline(path: Path) -> Recipe:
    """The recipe at ``path`` with its grid expanded and its baseline added; its profiles are checked as well.

    One QDeployError says all that is wrong.
    """
    data, origins = text.read(path)
    recipe = checked(path, data, origins)
    problems: list[Problem] = []
    recipe = recipe.model_copy(update={"variants": with_baseline(recipe.variants, problems)})
    raise_problems(path, problems, origins)
    check_profiles(path, recipe)
    return recipe


def check_profiles(path: Path, recipe: Recipe) -> None:
    """One QDeployError of the first profile of the recipe at ``path`` that is wrong, chosen or not."""
    for name in recipe.profiles:
        data, origins = text.read(path)
        apply(data, origins, of_profile(data, origins, name, path))
        checked(path, data, origins)


def checked(path: Path, data: dict[str, Any], origins: Origins) -> Recipe:
    """The recipe that the plain ``data`` is, its grid expanded. One QDeployError says all that is wrong."""
    problems = grid.expand(data, origins)
    recipe = None
    try:
        recipe = Recipe.model_validate(data, context={"base": base_of(path)})
    except ValidationError as error:
        problems += problems_of(error, Recipe, also=("grid",))
    raise_problems(path, problems, origins)
    assert recipe is not None
    return recipe


def with_baseline(variants: dict[str, VariantRecipe], problems: list[Problem]) -> dict[str, VariantRecipe]:
    """The variants, with a float32 one named fp32 in front where the recipe has none."""
    if any(variant.method == "float32" for variant in variants.values()):
        return variants
    if "fp32" in variants:
        hint = "Rename it, or add a variant that is float32: NAME: {}."
        problems.append(Problem(("variants", "fp32"), "the float32 baseline is to get this name", hint))
    return {"fp32": VariantRecipe(), **variants}
