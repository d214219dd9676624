"""``qdeploy list``: what a recipe can name, and the recipes that lie here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

RECIPES = Path("recipes")


def command(
    what: Annotated[
        str,
        typer.Argument(
            metavar="[WHAT]", help="plugins, recipes, or one kind, such as datasets or observers.", show_default=False
        ),
    ] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """List plugins and recipes, each with what it is in a line.

    Example: qdeploy list observers
    """
    import json

    from rich.console import Console

    found = {kind: entries(kind) for kind in _kinds(what)}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    console = Console()
    for kind, lines in found.items():
        console.print(kind, style="bold")
        console.print(_table(lines))
        console.print()


def entries(kind: str) -> dict[str, str]:
    """Name and one line of every plugin of a kind ("datasets"), or of every recipe; imports none of them."""
    from qdeploy.core import plugins

    if kind == "recipes":
        return {path.as_posix(): _description(path) for path in sorted(RECIPES.glob("*.y*ml"))}
    label = _plurals()[kind]
    return {name: plugins.summary(label, name) for name in plugins.names(label)}


def _plurals() -> dict[str, str]:
    """What people ask for, and the kind of plugin: {"datasets": "dataset", "fake-quants": "fake quant", ...}."""
    from qdeploy.core import plugins

    return {label.replace(" ", "-") + "s": label for label in plugins.KINDS}


def _kinds(what: str) -> list[str]:
    from qdeploy.core.errors import QDeployError, nearest

    kinds = [*_plurals(), "recipes"]
    if what == "all":
        return kinds
    if what == "plugins":
        return kinds[:-1]
    wanted = what if what.endswith("s") else f"{what}s"
    if wanted not in kinds:
        raise QDeployError(f"There is no kind of thing named {what!r}.", nearest(what, [*kinds, "plugins"]))
    return [wanted]


def _description(path: Path) -> str:
    """A recipe's ``description``, else its first line if that is a comment. A broken recipe says so."""
    from qdeploy.core.errors import QDeployError
    from qdeploy.recipe import text

    try:
        data, _ = text.read(path)
    except QDeployError as error:
        return f"(broken: {error.message})"
    first = path.read_text(encoding="utf-8-sig").split("\n", 1)[0]
    return str(data.get("description") or (first.lstrip("# ") if first.startswith("#") else ""))


def _table(lines: dict[str, str]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    if not lines:
        table.add_row("  [dim]none[/]")
    for name, line in lines.items():
        table.add_row(f"  {escape(name)}", f"[dim]{escape(line)}[/]")
    return table
