"""``qdeploy verify``: whether this machine gives the answers that a bundle was built with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Bundles, or build folders such as runs/digits.", show_default=False),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line each.")] = False,
) -> None:
    """Check bundles: every file's digest, and the golden vectors bit for bit on this machine.

    Exits with code 1 if a bundle gives other answers here than where it was built.

    Example: qdeploy verify runs/digits/ptq-int8.qdeploy.zip
    """
    import json

    from rich.console import Console

    from qdeploy.cli.bench import find_bundles
    from qdeploy.verify.bundle import selftest

    console = Console()
    outcomes = []
    for bundle in [found for path in paths for found in find_bundles(path)]:
        outcome = {"bundle": str(bundle), **selftest(bundle)}
        outcomes.append(outcome)
        if not as_json:
            mark = "[green]ok  [/green]" if outcome["passed"] else "[red]FAIL[/red]"
            console.print(mark, end=" ")
            console.print(_line(outcome), highlight=False, markup=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(outcomes, indent=2))
    if not all(outcome["passed"] for outcome in outcomes):
        raise typer.Exit(1)


def _line(outcome: dict[str, object]) -> str:
    if outcome["passed"]:
        return f"{outcome['bundle']}  {outcome['values']} golden values agree ({outcome['comparison']})"
    return (
        f"{outcome['bundle']}  {outcome['differing']} of {outcome['values']} golden values differ, "
        f"by up to {outcome['max_difference']:.3g}"
    )
