"""The command line as data, and what the documents say about it, for the tests that compare the two."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from qdeploy.cli import main

_FENCED = re.compile(r"^[ \t]*```.*?\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
# qdeploy as the program, at the start of a command; a path may stand in front ($(BIN)/qdeploy).
_CALL = re.compile(r"(?:^|[;&|(])[ \t]*(?:\$ )?(?:\S*/)?qdeploy +([a-z][\w-]*)([^\n|;&]*)", re.MULTILINE)
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def commands() -> dict[str, Any]:
    """Every command of the command line, by its name."""
    app = next(value for value in vars(main).values() if isinstance(value, typer.Typer))
    return dict(get_command(app).commands)  # type: ignore[attr-defined]


def options(command: Any) -> set[str]:
    """The long options that a command takes."""
    named = [name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)]
    return {name for name in named if name.startswith("--")} | {"--help"}


def shown_options(line: str) -> set[str]:
    """The long options that a line of text shows."""
    return set(_OPTION.findall(line))


def calls(path: Path) -> list[tuple[str, set[str]]]:
    """(command, options) for every call of qdeploy that a document shows as code, or a Makefile runs."""
    text = path.read_text(encoding="utf-8")
    code = [text]
    if {".md", ".j2"} & {path.suffix}:
        code = [*_FENCED.findall(text), *_SPAN.findall(_FENCED.sub("", text))]
    return [(match[1], shown_options(match[2])) for part in code for match in _CALL.finditer(part)]
