"""How an error that a user can mend looks."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text


def show(error: Any) -> None:
    """One panel on stderr: the message, and below it the hint."""
    lines = [Text(error.message)]
    if error.hint:
        lines += [Text(error.hint, style="dim")]
    Console(stderr=True).print(Panel(Group(*lines), title="Error", title_align="left", border_style="red"))
