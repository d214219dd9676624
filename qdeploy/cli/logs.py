"""``--log``: where a build or a bench is kept beside its own files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from qdeploy.loggers._base import Log, Run

Logs = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="LOGGER[:ADDRESS]",
        help="Also keep it there, for example mlflow:http://host:5000; `qdeploy list loggers`. Repeatable.",
    ),
]


def open_all(named: Sequence[str] | None) -> list[Log]:
    """The loggers, reached before work is done for them. QDeployError: one is not there."""
    if not named:
        return []
    from qdeploy.loggers._base import open_log

    return [open_log(text) for text in dict.fromkeys(named)]


def write(logs: Sequence[Log], project: str, run: Run, console: Console) -> bool:
    """Hand ``run`` to every logger. One that fails is shown and the others go on; returns whether all took it."""
    from qdeploy.cli.errors import show
    from qdeploy.core.errors import QDeployError

    whole = True
    for log in logs:
        try:
            console.print(f"log: {log.write(project, run)}", soft_wrap=True, highlight=False, markup=False)
        except QDeployError as error:
            show(
                QDeployError(error.message, f"{error.hint} What was built or measured is complete without it.".lstrip())
            )
            whole = False
    return whole
