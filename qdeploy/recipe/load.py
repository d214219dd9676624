"""From a recipe file to a checked Recipe, or one error that says everything that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdeploy.core.errors import QDeployError, nearest
from qdeploy.recipe import text, trials
from qdeploy.recipe.find import base_of
from qdeploy.recipe.outline import check_profiles, checked, with_baseline
from qdeploy.recipe.overrides import apply, of_checkpoint, of_options, of_profile
from qdeploy.recipe.problems import Problem, raise_problems
from qdeploy.recipe.schema import DataRecipe, ModelRecipe, Recipe, TrainRecipe, VariantRecipe
from qdeploy.train.reference import find_file

# Keyword arguments of qdeploy.train.reference.load_model, which a model cannot have as well.
RESERVED = {"base", "seed"}


def load(
    path: Path,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    *,
    profile: str = "",
    pretrained: Path | None = None,
) -> Recipe:
    """The recipe at ``path``, checked as a whole before any work starts.

    ``profile`` is one of the recipe's own, ``pretrained`` a checkpoint that takes the place of training, and
    ``overrides`` are "a.b=c" with YAML values: later ones win. ``only`` names the variants to keep; float32 is always
    kept, because the others are compared with it. Raises one QDeployError with file, line, key and the nearest valid
    name.
    """
    _require_file(path)
    data, origins = text.read(path)
    if profile:
        apply(data, origins, of_profile(data, origins, profile, path))
    if pretrained is not None:
        apply(data, origins, of_checkpoint(pretrained))
    apply(data, origins, of_options(overrides))
    base = base_of(path)
    recipe, problems = _look_outside(checked(path, data, origins), base)
    raise_problems(path, problems, origins)
    check_profiles(path, recipe)
    chosen = _chosen(recipe, only)
    contrasts = tuple(pair for pair in recipe.contrasts if set(pair) <= set(chosen))
    recipe = recipe.model_copy(update={"variants": chosen, "contrasts": contrasts})
    recipe._base = base
    recipe._profile = profile
    return recipe


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    folder = path if path.is_dir() else path.parent
    beside = [str(found) for pattern in ("[!.]*.yaml", "[!.]*.yml") for found in folder.glob(pattern)]
    hint = nearest(str(path), beside) if beside else "Recipes are YAML files; `qdeploy list recipes` shows some."
    raise QDeployError(f"There is no recipe file {path}.", hint)


def _look_outside(recipe: Recipe, base: Path) -> tuple[Recipe, list[Problem]]:
    """Try what the recipe names: the model, the data set, plugins, and the checkpoint's place. Reads no data."""
    model, problems = _check_model(recipe.model, base)
    data, found = _check_data(recipe.data, base)
    dataset, more = trials.dataset(data) if not found else (None, [])
    problems += found + more
    variants = with_baseline(recipe.variants, problems)
    for name, variant in variants.items():
        problems += trials.plugins_of(name, variant)
    problems += _check_contrasts(recipe, variants)
    if dataset is not None:
        _check_input(recipe, dataset, problems)
        _check_also_evaluate(recipe, dataset, problems)
        _check_augment(recipe, trials.input_shape(dataset), problems)
        variants = {name: _with_samples(name, v, dataset, problems) for name, v in variants.items()}
    return recipe.model_copy(update={"model": model, "data": data, "variants": variants}), problems


def _check_data(data: DataRecipe, base: Path) -> tuple[DataRecipe, list[Problem]]:
    """The data's section with the place of its one file found, where it names one: data.path of csv."""
    named = data.options.get("path")
    if not isinstance(named, str):
        return data, []
    path, problems = trials.attempt(("data", "path"), lambda: find_file(named, base))
    return data.model_copy(update={"path": str(path or named)}), problems


def _check_model(model: ModelRecipe, base: Path) -> tuple[ModelRecipe, list[Problem]]:
    """The model's section with the checkpoint's place found."""
    problems = []
    for name in RESERVED & set(model.arguments):
        hint = "Wrap the factory in a function of your own that calls it something else."
        problems.append(Problem(("model", name), "qdeploy itself uses this name", hint))
    problems = problems or trials.model(model, base)
    if model.checkpoint is not None:
        path, found = trials.attempt(("model", "checkpoint"), lambda: find_file(str(model.checkpoint), base))
        if path is not None and not problems:
            found = trials.checkpoint(model, path, base)
        problems += found
        model = model.model_copy(update={"checkpoint": path or model.checkpoint})
    return model, problems


def _check_contrasts(recipe: Recipe, variants: dict[str, VariantRecipe]) -> list[Problem]:
    """A contrast is of two different variants that there are."""
    problems = []
    for i, pair in enumerate(recipe.contrasts):
        at = ("contrasts", f"[{i}]")
        problems += [Problem(at, f"there is no variant {n!r}", nearest(n, variants)) for n in pair if n not in variants]
        if pair[0] == pair[1]:
            problems.append(Problem(at, f"{pair[0]} cannot be compared with itself", "Name two variants."))
        elif any(set(pair) == set(other) for other in recipe.contrasts[:i]):
            problems.append(Problem(at, f"{pair[0]} and {pair[1]} are compared already", "Remove it."))
    return problems


def _check_also_evaluate(recipe: Recipe, dataset: Any, problems: list[Problem]) -> None:
    if recipe.also_evaluate and dataset.training_shapes is not None:
        message = f"data set {recipe.data.name} trains on samples of another shape than the deployed model reads"
        problems.append(Problem(("also_evaluate",), message, "Remove it."))


def _check_input(recipe: Recipe, dataset: Any, problems: list[Problem]) -> None:
    if recipe.input is None:
        return
    made = trials.input_shape(dataset)
    if made != recipe.input.shape:
        message = f"data set {recipe.data.name} makes inputs of shape {list(made)}, not {list(recipe.input.shape)}"
        problems.append(Problem(("input", "shape"), message, "Change it, or remove it: it is only a check."))


def _check_augment(recipe: Recipe, shape: tuple[int, ...], problems: list[Problem]) -> None:
    """Images can be cropped and flipped, and nothing else."""
    trains: dict[tuple[str, ...], TrainRecipe | None] = {("train",): recipe.train}
    trains |= {("variants", name, "train"): v.train for name, v in recipe.variants.items() if v.method == "qat"}
    for at, train in trains.items():
        if train is not None and train.augment and len(shape) != 3:
            message = f"samples of shape {list(shape)} cannot be cropped or flipped"
            problems.append(Problem((*at, "augment"), message, "Remove it."))


def _with_samples(name: str, variant: VariantRecipe, dataset: Any, problems: list[Problem]) -> VariantRecipe:
    """The variant with its number of calibration samples written out."""
    drawn, asked = dataset.calibration, variant.calibration.samples
    if asked is not None and asked > drawn:
        message = f"it asks for {asked} samples, but data.calibration draws {drawn}"
        problems.append(
            Problem(("variants", name, "calibration", "samples"), message, f"Set data.calibration: {asked}.")
        )
    calibration = variant.calibration.model_copy(update={"samples": asked or drawn})
    return variant.model_copy(update={"calibration": calibration})


def _chosen(recipe: Recipe, only: Sequence[str]) -> dict[str, VariantRecipe]:
    for name in only:
        if name not in recipe.variants:
            raise QDeployError(
                f"--only {name}: recipe {recipe.name} has no such variant.", nearest(name, recipe.variants)
            )
    if not only:
        return recipe.variants
    return {name: v for name, v in recipe.variants.items() if name in only or v.method == "float32"}
