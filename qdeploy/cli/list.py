"""``qdeploy list``: what a recipe can name, and the recipes that lie here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table


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

    Recipes are those below recipes/, in the working directory and where
    qdeploy itself lies; `qdeploy build` takes them by these names.

    Example: qdeploy list recipes
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
        from qdeploy.recipe.find import known

        return {name: _in_a_line(path) for name, path in known().items()}
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


def _in_a_line(path: Path) -> str:
    """What a recipe compares, on which data, in how many variants and with which profiles. A broken one says so."""
    from qdeploy.core.errors import QDeployError
    from qdeploy.recipe.outline import outline

    try:
        recipe = outline(path)
    except QDeployError as error:
        return f"(broken: {' '.join(error.message.split())})"
    first = path.read_text(encoding="utf-8-sig").split("\n", 1)[0]
    said = recipe.description or (first.lstrip("# ") if first.startswith("#") else "")
    facts = [f"data {recipe.data.name}", f"{len(recipe.variants)} variant{'s' if len(recipe.variants) > 1 else ''}"]
    if recipe.profiles:
        facts.append(f"profiles {', '.join(recipe.profiles)}")
    return f"{said} ({'; '.join(facts)})".lstrip()


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
