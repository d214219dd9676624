"""``--set a.b=c``: a change to a recipe's data before it is checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdeploy.core.errors import QDeployError, nearest
from qdeploy.recipe.text import Location, Origins, value


def apply(data: dict[str, Any], origins: Origins, overrides: Sequence[str]) -> None:
    """Set each ``KEY=VALUE`` in ``data``, in order, and note in ``origins`` where it came from.

    KEY is dotted (train.epochs, variants.ptq-int8.weights.bits), VALUE is YAML. A key that does not exist in ``data``
    is added, and left to the schema to accept or refuse; a variant is never added. Raises QDeployError for an
    override that has no place.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise QDeployError(f"--set {override} is not KEY=VALUE.", "Write --set train.epochs=5.")
        _set(data, origins, key.split("."), value(text, f"--set {override}"), f"--set {override}")


def _set(data: dict[str, Any], origins: Origins, parts: list[str], new: Any, said: str) -> None:
    at: Location = ()
    here = data
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
            raise QDeployError(
                f"{said}: {'.'.join(at)} is {inner!r} and has no keys.", f"Write --set {'.'.join(at)}=VALUE."
            )
        # Values may be shared through a YAML alias; only this one is meant.
        here[name] = here = dict(inner)
    for known in [known for known in origins if known[: len(at)] == at]:
        del origins[known]
    here[name] = new
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
