"""One error for everything that is wrong with a recipe: file, line, dotted key, and the nearest valid name."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from qdeploy.core.errors import QDeployError, nearest
from qdeploy.recipe.text import Location, Origins


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong (``message``) at which key (``location``), and what to do about it (``hint``)."""

    location: Location
    message: str
    hint: str = ""


def refuse(message: str, hint: str = "") -> PydanticCustomError:
    """What a validator raises. Text with braces is safe: pydantic's templates are not used."""
    return PydanticCustomError("refused", "{message}", {"message": message, "hint": hint})


def problems_of(
    error: ValidationError, model: type[BaseModel], at: Location = (), also: Sequence[str] = ()
) -> list[Problem]:
    """The problems in a ValidationError of ``model``, whose data stands under the key ``at``.

    ``also`` are further valid keys there, for suggestions.
    """
    return [_problem(details, model, at, also) for details in error.errors(include_url=False)]


def raise_problems(path: Path, problems: Sequence[Problem], origins: Origins) -> None:
    """Raise one QDeployError that names every problem; do nothing where there is none."""
    unique = sorted(set(problems), key=problems.index)
    if not unique:
        return
    if len(unique) == 1:
        problem = unique[0]
        raise QDeployError(f"{path}: {_where(problem, origins)}: {problem.message}.", problem.hint)
    lines = [f"  {_where(p, origins)}: {p.message}. {p.hint}".rstrip() for p in unique]
    raise QDeployError(f"{path} has {len(unique)} errors.\n" + "\n".join(lines), "Nothing was started.")


def _where(problem: Problem, origins: Origins) -> str:
    dotted = ".".join(problem.location).replace(".[", "[") or "the recipe"
    plain = tuple(part.strip("[]") for part in problem.location)
    for length in range(len(plain), 0, -1):
        if plain[:length] in origins:
            return f"{dotted} ({origins[plain[:length]]})"
    return dotted


def _problem(details: ErrorDetails, model: type[BaseModel], at: Location, also: Sequence[str]) -> Problem:
    raw = tuple(part for part in details["loc"] if part != "[key]")  # pydantic's mark for a key of a mapping
    location = (*at, *(f"[{part}]" if isinstance(part, int) else part for part in raw))
    found, context = details.get("input"), details.get("ctx", {})
    match details["type"]:
        case "refused":
            return Problem(location, context["message"], context["hint"])
        case "extra_forbidden":
            known = [*_keys(model, raw[:-1]), *(also if len(raw) == 1 else ())]
            return Problem(location, "unknown key", nearest(str(raw[-1]), known))
        case "missing":
            return Problem(location, "this key is missing", f"Add {raw[-1]}: ...")
        case "literal_error":
            names = _names(context["expected"])
            return Problem(location, f"{found!r} is not one of its values", nearest(str(found), names))
        case "model_type" | "dict_type":
            hint = f"Write {location[-1]}: {{KEY: VALUE}}."
            return Problem(location, f"expected keys and values, found {found!r}", hint)
    said = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return Problem(location, f"{found!r} should be {said}" if details["msg"].startswith("Input should") else said)


def _names(expected: str) -> list[str]:
    """Pydantic's "'a', 'b' or 'c'" as a list."""
    return [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]


def _keys(model: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    """The valid keys of the model that lies at ``location`` below ``model``."""
    kind: Any = model
    for part in location:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = _bare(kind.model_fields[str(part)].annotation)
        else:  # the name of an entry in dict[str, kind], or an index of tuple[kind, ...]
            kind = _bare(next(k for k in reversed(typing.get_args(kind)) if k is not Ellipsis))
    return [field.alias or name for name, field in kind.model_fields.items()]


def _bare(kind: Any) -> Any:
    """``kind`` without Annotated and without "| None"."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = [option for option in typing.get_args(kind) if option is not type(None)]
    return kind
