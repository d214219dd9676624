"""Try what a recipe names before any work: what fails after hours of training could have been known before.

Models, data sets and plugins may be a user's own files. They are imported, called and made here, once, as a build will
do it; no data is read. What fails is a problem with its key, not a traceback.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from qdeploy import runner
from qdeploy.core import plugins, scheme
from qdeploy.core.errors import QDeployError
from qdeploy.recipe.problems import Problem
from qdeploy.recipe.schema import DataRecipe, ModelRecipe, VariantRecipe
from qdeploy.recipe.signature import check_arguments
from qdeploy.recipe.text import Location
from qdeploy.train.reference import USER_ERRORS, find_factory, load_model

# What a build uses of a data set; qdeploy/datasets/_base.py has all of it but the first four.
DATASET = (
    *("name", "classes", "raw_shape", "preprocessing"),
    *("raw_dtype", "task", "metric", "calibration", "split", "fingerprint"),
)  # fmt: skip
OBSERVER = ("observe", "merge", "range")
FAKE_QUANT = ("Weight", "Activation")

Made = TypeVar("Made")


def attempt(at: Location, call: Callable[[], Made]) -> tuple[Made | None, list[Problem]]:
    """What ``call`` returns, or None and the problem at the key ``at`` that it raised."""
    try:
        return call(), []
    except (QDeployError, runner.RunnerError) as error:
        return None, [Problem(at, error.message.rstrip("."), error.hint)]
    except (*USER_ERRORS, NameError, OSError) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = str(error).rstrip(".")
        return None, [Problem(at, f"{type(error).__name__}: {said}", f"See {frame.filename}, line {frame.lineno}.")]


def model(recipe: ModelRecipe, base: Path) -> list[Problem]:
    """What is wrong with the factory, its arguments, or what it returns."""
    at = ("model", "factory")
    factory, problems = attempt(at, lambda: find_factory(recipe.factory, base))
    if factory is not None:
        problems += check_arguments(factory, recipe.arguments, ("model",), also=("checkpoint",))
    return problems or attempt(at, lambda: load_model(recipe.factory, base=base, **recipe.arguments))[1]


def checkpoint(recipe: ModelRecipe, path: Path, base: Path) -> list[Problem]:
    """What is wrong with the checkpoint at ``path``, as weights of the model."""
    from qdeploy.train.checkpoint import load

    at = ("model", "checkpoint")
    return attempt(at, lambda: load(path, load_model(recipe.factory, base=base, **recipe.arguments)))[1]


def dataset(recipe: DataRecipe) -> tuple[Any | None, list[Problem]]:
    """The data set, made with its options; None where something is wrong with it."""
    make, problems = attempt(("data", "name"), lambda: plugins.load("dataset", recipe.name))
    if make is None:
        return None, problems
    problems += check_arguments(make, recipe.options, ("data",), also=("name",))
    root = recipe.options.get("root")
    if isinstance(root, str) and not Path(root).expanduser().is_dir() and recipe.options.get("download") is False:
        hint = "Give the folder that holds the data, or set data.download to true."
        problems.append(Problem(("data", "root"), f"there is no folder {root}", hint))
    if problems:
        return None, problems
    made, problems = attempt(("data",), lambda: make(**recipe.options))
    problems = problems or _interface(recipe.name, made)
    return (None, problems) if problems else (made, [])


def input_shape(made: Any) -> tuple[int, ...]:
    """The shape of one sample as the data set's preprocessing makes it."""
    raw = np.zeros((1, *made.raw_shape), dtype=made.raw_dtype)
    return runner.preprocess(raw, made.preprocessing).shape[1:]


def _interface(name: str, made: Any) -> list[Problem]:
    """What a build would miss in a data set, or could not use."""
    at = ("data", "name")
    # Not hasattr: "preprocessing" is a property, which may fail for a reason of its own.
    missing = [key for key in DATASET if key not in dir(made)]
    if missing:
        hint = "Derive it from qdeploy.datasets._base.ArrayDataset; qdeploy/datasets/digits.py shows how."
        return [Problem(at, f"the Dataset of {name} has no {', no '.join(missing)}", hint)]
    for check in (
        lambda: runner.check_preprocessing(made.preprocessing),
        lambda: input_shape(made),
        lambda: plugins.load("metric", made.metric),
    ):
        _, problems = attempt(at, check)
        if problems:
            return problems
    return []


def plugins_of(name: str, variant: VariantRecipe) -> list[Problem]:
    """What is wrong with the plugins that a variant uses, and with their options."""
    at = ("variants", name)
    if not variant.quantizes:
        return []
    problems = _observer((*at, "activations"), variant)
    if variant.method == "qat":
        return problems + _fake_quant((*at, "fake_quant"), variant)
    return problems + _rounding((*at, "rounding"), variant)


# What every rounding is called with, which a recipe cannot set.
GIVEN_TO_ROUNDING = {"weight", "scale", "scheme", "second_moment", "seed"}


def _observer(at: Location, variant: VariantRecipe) -> list[Problem]:
    activations = variant.activations
    make, problems = attempt((*at, "observer"), lambda: plugins.load("observer", activations.observer))
    if make is None:
        return problems
    problems = check_arguments(make, {"scheme": None, **activations.options}, at, also=("bits", "observer"))
    if problems:
        return problems
    made, problems = attempt(at, lambda: make(scheme.activation(activations.bits), **activations.options))
    missing = [key for key in OBSERVER if made is not None and not callable(getattr(made, key, None))]
    if missing:
        what = f"the Observer of {activations.observer} has no {missing[0]}()"
        problems.append(Problem((*at, "observer"), what, "Any file in qdeploy/quant/observers/ shows how."))
    return problems


def _rounding(at: Location, variant: VariantRecipe) -> list[Problem]:
    solve, problems = attempt(at, lambda: plugins.load("rounding", variant.rounding.name))
    if solve is None:
        return problems
    for name in sorted(GIVEN_TO_ROUNDING & set(variant.rounding.options)):
        problems.append(Problem((*at, name), "qdeploy itself gives this to a rounding", "Remove it."))
    given = {"weight": None, "scale": None, "scheme": None, **variant.rounding.options}
    problems += check_arguments(solve, given, at, also=("name",))
    if problems:
        return problems
    one = np.ones((1, 1), np.float32)
    _, problems = attempt(at, lambda: solve(one, one[0], scheme.weight(8), **variant.rounding.options))
    return problems


def _fake_quant(at: Location, variant: VariantRecipe) -> list[Problem]:
    """Not whether it has levels for the bits: a variant without an exact form is refused by the build, and reported."""
    method, problems = attempt(at, lambda: plugins.load("fake quant", variant.fake_quant))
    missing = [kind for kind in FAKE_QUANT if method is not None and not callable(getattr(method, kind, None))]
    if missing:
        what = f"the FakeQuant of {variant.fake_quant} has no {missing[0]}"
        problems.append(Problem(at, what, "Any file in qdeploy/quant/fake_quant/ shows how."))
    return problems
