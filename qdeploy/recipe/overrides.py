"""Changes to a recipe's data before it is checked: a profile of the recipe's own, ``--from-pretrained``, ``--set``."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qdeploy.core.errors import QDeployError, nearest
from qdeploy.recipe.text import Location, Origins, value


@dataclass(frozen=True, slots=True)
class Setting:
    """A new value for the dotted ``key``; ``said`` names in errors where it was written."""

    key: str
    value: Any
    said: str


def of_options(overrides: Sequence[str]) -> list[Setting]:
    """What each ``--set KEY=VALUE`` says, VALUE being YAML. QDeployError: it has another form."""
    settings = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise QDeployError(f"--set {override} is not KEY=VALUE.", "Write --set train.epochs=5.")
        settings.append(Setting(key, value(text, f"--set {override}"), f"--set {override}"))
    return settings


def of_profile(data: dict[str, Any], origins: Origins, name: str, path: Path) -> list[Setting]:
    """What ``profiles: {NAME: {train.epochs: 1}}`` of the recipe at ``path`` says. QDeployError: there is no such."""
    profiles = data.get("profiles")
    known = profiles if isinstance(profiles, dict) else {}
    if name not in known:
        hint = nearest(name, known) if known else "Write profiles: {fast: {train.epochs: 1}} into it."
        raise QDeployError(f"{path} has no profile {name!r}.", hint)
    settings = []
    for key, new in known[name].items() if isinstance(known[name], dict) else ():  # else the schema refuses it
        said = ", ".join(filter(None, (f"profile {name}", origins.get(("profiles", name, key), ""))))
        if not all(key.split(".")):
            raise QDeployError(f"{path}: {said}: {key!r} is no dotted key.", "Write train.epochs: 5.")
        settings.append(Setting(key, new, said))
    return settings


def of_checkpoint(path: Path) -> list[Setting]:
    """Weights from ``path`` in place of training."""
    said = f"--from-pretrained {path}"
    return [Setting("train", None, said), Setting("model.checkpoint", str(path), said)]


def apply(data: dict[str, Any], origins: Origins, settings: Iterable[Setting]) -> None:
    """Make each of ``settings`` in ``data``, in order, and note in ``origins`` where it came from.

    Keys are dotted (train.epochs, variants.ptq-int8.weights.bits). A key that does not exist in ``data`` is added, and
    left to the schema to accept or refuse; a variant is never added. variants.lsq-*.train.epochs is a key of every
    variant that is written out (not in the grid) under such a name. Raises QDeployError for one that has no place.
    """
    for setting in settings:
        for each in _of_every_variant(data, setting):
            _set(data, origins, each)


def _of_every_variant(data: dict[str, Any], setting: Setting) -> list[Setting]:
    """The setting itself, or where its variant is a pattern one for each that matches."""
    section, _, rest = setting.key.partition(".")
    pattern, dot, inner = rest.partition(".")
    if section != "variants" or "*" not in pattern:
        return [setting]
    variants = data.get("variants")
    known = list(variants) if isinstance(variants, dict) else []
    matching = fnmatch.filter(known, pattern)
    if not matching:
        raise QDeployError(f"{setting.said}: there is no variant like {pattern!r}.", nearest(pattern, known))
    return [replace(setting, key=f"variants.{name}{dot}{inner}") for name in matching]


def _set(data: dict[str, Any], origins: Origins, setting: Setting) -> None:
    at: Location = ()
    here, parts, said = data, setting.key.split("."), setting.said
    while True:
        name, parts = _next(here, parts, at)
        at = (*at, name)
        if at[:-1] == ("variants",) and name not in here:
            raise QDeployError(f"{said}: there is no variant {name!r}.", nearest(name, here))
        if not parts:
            break
        inner = here.get(name)
        if inner is None:  # "train: null", or a section that the file leaves out
            inner = here[name] = {}
            origins.setdefault(at, said)
        if not isinstance(inner, dict):
            raise QDeployError(f"{said}: {'.'.join(at)} is {inner!r} and has no keys.", f"Set {'.'.join(at)} itself.")
        # Values may be shared through a YAML alias; only this one is meant.
        here[name] = here = dict(inner)
    for known in [known for known in origins if known[: len(at)] == at]:
        del origins[known]
    here[name] = setting.value
    origins[at] = said


def _next(here: dict[str, Any], parts: list[str], at: Location) -> tuple[str, list[str]]:
    """The key that ``parts`` begin with, and what is left. Keys may contain dots: the longest that exists is meant."""
    if at == ("grid",):
        return ".".join(parts), []
    for length in range(len(parts), 1, -1):
        if ".".join(parts[:length]) in here:
            return ".".join(parts[:length]), parts[length:]
    return parts[0], parts[1:]


def key_values(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """The values, read as YAML, of KEY=VALUE pairs that were given with ``option``. QDeployError: another form."""
    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise QDeployError(f"{option} {pair} is not KEY=VALUE.", f"For example {option} root=data.")
        found[key] = value(text, f"{option} {pair}")
    return found
