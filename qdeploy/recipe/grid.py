"""``grid:`` expands into variants: the cross product of lists over dotted keys of a variant."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

from qdeploy.recipe.problems import Problem
from qdeploy.recipe.text import Origins

MOST_VARIANTS = 256  # each is a bundle, and a row of one table

# How a value shows in a variant's name: "w4" for weights.bits: 4; words such as "mse" speak for themselves.
SHORT = {"weights.bits": "w", "activations.bits": "a", "calibration.samples": "n", "calibration.batch": "b"}


def expand(data: dict[str, Any], origins: Origins) -> list[Problem]:
    """Replace ``data["grid"]`` by the variants that it stands for, named like "ptq-w4-mse". Returns what is wrong.

    Where a combination is not a valid variant, the schema says so under the variant's name, with the grid's line.
    """
    if "grid" not in data:
        return []
    grid = data.pop("grid")
    if grid is None or grid == {}:
        return []
    if not isinstance(grid, dict):
        return [Problem(("grid",), f"expected keys and values, found {grid!r}", "Write grid: {weights.bits: [8, 4]}.")]
    axes = {key: values if isinstance(values, list) else [values] for key, values in grid.items()}
    problems = _check(axes)
    count = math.prod(len(values) for values in axes.values())
    if count > MOST_VARIANTS:
        hint = f"Give fewer values: a grid makes at most {MOST_VARIANTS}."
        problems.append(Problem(("grid",), f"it makes {count:,} variants", hint))
    variants = data.get("variants")
    variants = {} if variants is None else variants
    if problems or not isinstance(variants, dict):
        return problems
    data["variants"] = variants = dict(variants)
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        name = "-".join(_word(key, value) for key, value in settings.items())
        if name in variants:
            problems.append(
                Problem(("grid",), f"it makes a variant {name}, which exists", "Rename or remove that one.")
            )
            continue
        variants[name] = _nested(settings)
        _trace(name, axes, origins)
    return problems


def _check(axes: dict[str, list[Any]]) -> list[Problem]:
    problems = []
    if axes and "method" not in axes:
        problems.append(Problem(("grid",), "it has no method", "Add method: ptq to the grid."))
    for key, values in axes.items():
        if not values:
            problems.append(Problem(("grid", key), "the list is empty", "Give at least one value."))
        for value in values:
            if isinstance(value, dict | list) or value is None:
                hint = f"Use dotted keys for what lies deeper: {key}.KEY: [VALUE, ...]."
                problems.append(Problem(("grid", key), f"{value!r} is not a single value", hint))
        for other in axes:
            if other.startswith(f"{key}."):
                problems.append(Problem(("grid", key), f"it contains {other}", "Keep one of them."))
    return problems


def _word(key: str, value: Any) -> str:
    word = str(value).lower() if isinstance(value, bool) else re.sub(r"[^A-Za-z0-9._]+", "_", str(value))
    if isinstance(value, str):
        return word
    return SHORT.get(key, key.rpartition(".")[2].replace("_", "")) + word


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    variant: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, last = key.split(".")
        inner = variant
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return variant


def _trace(name: str, axes: dict[str, list[Any]], origins: Origins) -> None:
    """Errors in a generated variant point at the grid's lines."""
    whole = origins.get(("grid",), "")
    origins[("variants", name)] = f"grid, {whole}" if whole else "grid"
    for key in axes:
        where = origins.get(("grid", key), whole)
        origins[("variants", name, *key.split("."))] = f"grid, {where}" if where else "grid"
