"""Models are referenced, not registered: ``models/vgg.py:vgg11`` or ``torchvision.models:resnet18``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdeploy.core.errors import QDeployError, nearest
from qdeploy.core.plugins import import_file, is_path
from qdeploy.torchvision_remedy import make_importable

if TYPE_CHECKING:
    from torch import nn

# What a user's own code may raise for a reason that lies in it.
USER_ERRORS = (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, AttributeError, AssertionError)
FORMS = 'Write "models/vgg.py:vgg11" (a Python file) or "torchvision.models:resnet18" (an installed module).'


def split_factory(factory: str) -> tuple[str, str]:
    """``"place:name"`` in its two parts. Raises QDeployError for any other form."""
    place, colon, name = factory.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise QDeployError(f"{factory!r} does not name a model.", FORMS)
    return place, name


def find_file(path: str, base: Path | None = None) -> Path:
    """``path`` relative to the working directory, else to ``base``. Raises QDeployError where there is no file."""
    places = [Path(path).expanduser()]
    if base is not None:
        places.append(base / path)
    for place in places:
        if place.is_file():
            return place
    if folders := [place for place in places if place.is_dir()]:
        raise QDeployError(f"{folders[0]} is a folder, not a file.", "Name the file in it.")
    beside = {str(Path(path).with_name(f.name)) for place in places for f in place.parent.glob(f"*{place.suffix}")}
    raise QDeployError(f"There is no file {path}.", nearest(path, beside) if beside else _looked_in(places))


def _looked_in(places: list[Path]) -> str:
    return "Looked for " + " and ".join(dict.fromkeys(str(place.absolute()) for place in places)) + "."


def find_factory(factory: str, base: Path | None = None) -> Callable[..., Any]:
    """The callable that ``factory`` refers to; its module is imported. A wrong name suggests the nearest ones."""
    place, name = split_factory(factory)
    make_importable()  # the module may import torchvision
    module = import_file(find_file(place, base)) if is_path(place) else _import_module(place, factory)
    found: Callable[..., Any] | None = getattr(module, name, None)
    if found is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise QDeployError(f"{place} defines no {name!r}.", nearest(name, known))
    if not callable(found):
        raise QDeployError(f"{factory} is not callable: {type(found).__name__}.", FORMS)
    return found


def source_files(factory: str, base: Path | None = None) -> list[Path]:
    """The files that decide what ``factory`` makes, found without importing it: a build keeps results by their content.

    For a Python file that file, for an installed module all Python files of its top-level package.
    """
    place, _ = split_factory(factory)
    if is_path(place):
        return [find_file(place, base)]
    spec = _package(place, factory)
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    return sorted(files) if folders else [Path(spec.origin or "")]


def load_model(factory: str, *, base: Path | None = None, seed: int = 0, **kwargs: Any) -> nn.Module:
    """Call the factory with ``kwargs`` and return its model, whose initial weights depend on ``seed`` alone.

    Paths are relative to the working directory, then to ``base``. Raises QDeployError where the reference or an
    argument is wrong, or where the factory returns no torch module.
    """
    import torch

    make = find_factory(factory, base)
    _check_arguments(factory, make, kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = make(**kwargs)
        except (*USER_ERRORS, OSError) as error:
            raise QDeployError(f"{factory} with {kwargs or 'no arguments'} fails: {error}", _describe(make)) from error
    if not isinstance(model, torch.nn.Module):
        raise QDeployError(f"{factory} returns {type(model).__name__}, not a torch.nn.Module.", FORMS)
    return model


def _check_arguments(factory: str, make: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    """Refuse arguments that the factory does not take, before it is called."""
    signature = _signature(make)
    if signature is None:
        return
    parameters = signature.parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        known = set(kwargs)
    else:
        known = {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}
    for name in kwargs:
        if name not in known:
            raise QDeployError(f"{factory} has no argument {name!r}.", nearest(name, known))
    for p in parameters:
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in kwargs:
            raise QDeployError(f"{factory} needs the argument {p.name!r}.", f"Add it under model: {p.name}: ...")


def _describe(make: Callable[..., Any]) -> str:
    signature = _signature(make)
    return f"Its signature is {getattr(make, '__name__', '')}{signature}." if signature else FORMS


def _signature(make: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(make)
    except ValueError:  # what is written in C may have none
        return None


def _package(module: str, factory: str) -> ModuleSpec:
    """Where the top-level package of ``module`` lies. Raises QDeployError where it is not installed."""
    top = module.partition(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise QDeployError(f"{factory}: there is no installed package {top!r}.", FORMS)
    return spec


def _import_module(name: str, factory: str) -> Any:
    _package(name, factory)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # the module is there and something that it imports is not
        raise QDeployError(f"{factory}: there is no module {name!r}.", FORMS) from error
