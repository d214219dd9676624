"""Check keyword arguments against a callable's signature without calling it."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, create_model

from qdeploy.core.errors import QDeployError
from qdeploy.recipe.problems import Problem, problems_of
from qdeploy.recipe.text import Location

PLAIN = (bool, int, float, str, type(None), Any)
CONTAINERS = (list, tuple, Sequence)


def check_arguments(
    call: Callable[..., Any], arguments: Mapping[str, Any], at: Location, also: Sequence[str] = ()
) -> list[Problem]:
    """What is wrong with calling ``call(**arguments)``: unknown and missing names, and wrong types.

    Types are checked where the annotation is a plain one, such as ``int``, ``str | None`` or ``Sequence[float]``; of
    others only the name. ``**options: Unpack[A TypedDict]`` are so many optional arguments. Problems stand under the
    key ``at``; ``also`` are further valid keys there, for suggestions.
    """
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except ValueError:  # what is written in C may have no signature
        return []
    hints = _hints(call)
    fields: dict[str, Any] = {}
    for p in parameters:
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            kind = hints.get(p.name, Any)
            default = ... if p.default is p.empty else p.default
            # A parameter may have any name, a field of a pydantic model may not: the name is the alias.
            fields[f"p{len(fields)}"] = (kind if _is_plain(kind) else Any, Field(default, alias=p.name))
    further = _unpacked(parameters, hints)
    for name, kind in further.items():
        fields[f"p{len(fields)}"] = (kind if _is_plain(kind) else Any, Field(None, alias=name))
    for name in also:
        fields[f"p{len(fields)}"] = (Any, Field(None, alias=name))
    open_ended = not further and any(p.kind is p.VAR_KEYWORD for p in parameters)
    config = ConfigDict(strict=True, extra="allow" if open_ended else "forbid", arbitrary_types_allowed=True)
    model = create_model("Arguments", __config__=config, **fields)
    try:
        model.model_validate({name: _as_tuple(value, hints.get(name)) for name, value in arguments.items()})
    except ValidationError as error:
        return problems_of(error, model, at)
    return []


def require_arguments(call: Callable[..., Any], arguments: Mapping[str, Any], what: str, option: str) -> None:
    """QDeployError if ``what``, called with ``arguments`` that were given with ``option``, would refuse them."""
    for problem in check_arguments(call, arguments, (option,))[:1]:
        key = " ".join(problem.location)
        raise QDeployError(f"{what} cannot be had with {key}: {problem.message}.", problem.hint)


def _unpacked(parameters: Sequence[inspect.Parameter], hints: Mapping[str, Any]) -> dict[str, Any]:
    """The names and types behind ``**options: Unpack[SomeTypedDict]``; none where there is no such parameter."""
    for p in parameters:
        hint = hints.get(p.name)
        if p.kind is p.VAR_KEYWORD and typing.get_origin(hint) is typing.Unpack:
            return typing.get_type_hints(typing.get_args(hint)[0])
    return {}


def _hints(call: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(call.__init__ if inspect.isclass(call) else call)
    except (NameError, TypeError, AttributeError):  # annotations that name what is imported for type checkers only
        return {}


def _is_plain(kind: Any) -> bool:
    if kind in PLAIN:
        return True
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return True
    if origin in CONTAINERS or origin in (typing.Union, types.UnionType):
        return all(option is Ellipsis or _is_plain(option) for option in options)
    return False


def _as_tuple(value: Any, kind: Any) -> Any:
    """A recipe's list, where the annotation says tuple."""
    return tuple(value) if isinstance(value, list) and typing.get_origin(kind) is tuple else value
