from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import pytest

from qdeploy.recipe.signature import check_arguments

if TYPE_CHECKING:
    from somewhere import Unknown


class Maker:
    def __init__(
        self,
        width: int,
        *,
        rate: float = 0.1,
        mean: Sequence[float] = (0.5,),
        size: tuple[int, int] = (1, 1),
        mode: Literal["a", "b"] = "a",
        root: str | None = None,
        model_config: int = 0,
        thing: dict[str, object] | None = None,
    ) -> None: ...


def open_ended(width: int = 1, **kwargs: Any) -> None: ...


def later(width: int, thing: Unknown = None) -> None: ...


def problems(call: Any, **arguments: Any) -> list[tuple[str, str]]:
    return [
        (".".join(p.location), f"{p.message} {p.hint}") for p in check_arguments(call, arguments, ("at",), ("name",))
    ]


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (Maker, {"width": 1}),
        (Maker, {"width": 1, "rate": 2, "mean": [0.1, 0.2], "size": [3, 4], "mode": "b", "root": None}),
        (Maker, {"width": 1, "model_config": 3, "thing": "what it likes", "name": "x"}),
        (open_ended, {"anything": [1]}),
        (later, {"width": "x"}),
        (max, {"anything": 1}),
    ],
)
def test_what_may_be_called(call, arguments):
    assert problems(call, **arguments) == []


@pytest.mark.parametrize(
    ("call", "arguments", "where", "said"),
    [
        (Maker, {}, "at.width", "missing"),
        (Maker, {"width": "1"}, "at.width", "valid integer"),
        (Maker, {"width": 1, "rate": "x"}, "at.rate", "valid number"),
        (Maker, {"width": 1, "mean": [0.1, "x"]}, "at.mean.[1]", "valid number"),
        (Maker, {"width": 1, "size": [1]}, "at.size.[1]", "missing"),
        (Maker, {"width": 1, "mode": "c"}, "at.mode", "'c'"),
        (Maker, {"width": 1, "root": 3}, "at.root", "valid string"),
        (Maker, {"width": 1, "rat": 3}, "at.rat", "'rate'"),
        (Maker, {"width": 1, "nam": 3}, "at.nam", "'name'"),
        (open_ended, {"width": "x"}, "at.width", "valid integer"),
        (later, {"thing": 1}, "at.width", "missing"),
    ],
)
def test_what_may_not(call, arguments, where, said):
    ((found, message),) = problems(call, **arguments)
    assert found == where
    assert said in message
