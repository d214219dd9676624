"""``qdeploy verify``: whether this machine gives the answers that a bundle was built with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

NOT_CHECKED = "Checked: files and golden answers. The accuracy that a bundle records was not measured again."


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Bundles, or build folders such as runs/digits.", show_default=False),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line each.")] = False,
) -> None:
    """Check bundles: every file's digest, and the golden vectors bit for bit on this machine.

    Exits with code 1 if a bundle gives other answers here than where it was
    built, and with 2 if one cannot be read; the others are checked all the same.
    The accuracy that a bundle records is not measured again.

    Example: qdeploy verify runs/digits/ptq-int8.qdeploy.zip
    """
    import json

    from rich.console import Console

    from qdeploy.cli.bench import find_bundles

    console = Console()
    outcomes = []
    # All paths are looked at before the first bundle is run.
    for bundle in [found for path in paths for found in find_bundles(path, must_exist=False)]:
        outcome = _check(bundle)
        outcomes.append(outcome)
        if not as_json:
            mark, line = _line(outcome)
            console.print(mark, end=" ")
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(outcomes, indent=2))
    else:
        console.print(NOT_CHECKED, style="dim", highlight=False, soft_wrap=True)
    if any("error" in outcome for outcome in outcomes):
        raise typer.Exit(2)
    if not all(outcome["passed"] for outcome in outcomes):
        raise typer.Exit(1)


def _check(bundle: Path) -> dict[str, Any]:
    """The self-test's outcome, or {"bundle", "passed": False, "error", "hint"} of a bundle that cannot be read."""
    from qdeploy.core.errors import QDeployError
    from qdeploy.verify.bundle import selftest

    try:
        return {"bundle": str(bundle), **selftest(bundle)}
    except QDeployError as error:
        return {"bundle": str(bundle), "passed": False, "error": error.message, "hint": error.hint}


def _line(outcome: dict[str, Any]) -> tuple[str, str]:
    """The mark of an outcome, in rich's markup, and what it says."""
    if "error" in outcome:
        return "[red]BAD [/red]", f"{outcome['error']} {outcome['hint']}".strip()
    if outcome["passed"]:
        return (
            "[green]ok  [/green]",
            f"{outcome['bundle']}  {outcome['values']} golden values agree ({outcome['comparison']})",
        )
    return "[red]FAIL[/red]", (
        f"{outcome['bundle']}  {outcome['differing']} of {outcome['values']} golden values differ, "
        f"by up to {outcome['max_difference']:.3g}"
    )
