"""What the commands that run bundles elsewhere share: the options that say where, and a file for each target."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from qdeploy.core.errors import QDeployError

# fmt: off
Paths = Annotated[list[Path], typer.Argument(
    metavar="PATH", help="Bundles, or build folders such as runs/digits.", show_default=False)]
Targets = Annotated[list[str], typer.Option(
    "--target", metavar="TARGET", help="Where to run, several times for several places; `qdeploy list targets`.")]
RuntimeName = Annotated[str, typer.Option("--runtime", help="What to run in; `qdeploy list runtimes`.")]
Provider = Annotated[str | None, typer.Option(
    metavar="NAME", help="onnxruntime's execution provider: CPU (the default), CUDA, CoreML, XNNPACK ...")]
JsonFile = Annotated[Path | None, typer.Option(
    "--json", metavar="FILE", help="Also write what was found to FILE, one file a target: for `qdeploy compare`.")]
# fmt: on


def each(targets: Sequence[str], work: Callable[[str], None]) -> list[QDeployError]:
    """Do ``work`` on every target. One that fails is shown and the others go on; returns the errors."""
    from qdeploy.cli.errors import show
    from qdeploy.core.errors import QDeployError

    failed = []
    for target in dict.fromkeys(targets):
        try:
            work(target)
        except QDeployError as error:
            if len(targets) == 1:
                raise
            where = "" if error.message.startswith(target) else f"{target}: "
            show(QDeployError(f"{where}{error.message}", error.hint))
            failed.append(error)
    return failed


def check_output(option: str, file: Path | None, inputs: Iterable[Path] = ()) -> None:
    """QDeployError if ``file`` cannot be written, or would replace one of ``inputs``: before work is done for it."""
    from qdeploy.core.errors import QDeployError

    if file is None:
        return
    if file.is_dir():
        raise QDeployError(f"{option} {file} is a folder.", "Name a file in it.")
    if file.exists() and not file.is_file():  # a device or a pipe: it would be replaced
        raise QDeployError(f"{option} {file} is no regular file.", "Name another file.")
    if file.resolve() in [path.resolve() for path in inputs]:
        raise QDeployError(f"{option} {file} is what is read.", "Name another file.")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise QDeployError(f"{option} {file} cannot be written in {folder}.", "Name a file elsewhere.")


def save(record: Any, file: Path | None, targets: Sequence[str], console: Console) -> None:
    """Write a target's record to ``file``, or beside it where several targets have one each."""
    from qdeploy.core import records

    if file is None:
        return
    if len(set(targets)) > 1:
        file = file.with_name(f"{file.stem}.{re.sub(r'[^A-Za-z0-9.-]+', '-', record.target).strip('-')}{file.suffix}")
    records.save(record, file)
    console.print(f"record: {file}", soft_wrap=True, highlight=False, markup=False)
