"""``qdeploy compare``: one table over machines, from what was recorded on each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdeploy.cli import places


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="Records that bench, verify and accuracy wrote with --json, and results.json or folders of builds.",
            show_default=False,
        ),
    ],
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Also write the tables to FILE, as Markdown.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the merged facts to FILE.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with pictures to FILE.")
    ] = None,
) -> None:
    """Compare bundles across machines: answers, latency, speed-up, accuracy.

    Rows are bundles, columns are machines. Records of one machine share a
    column; the answers of all are compared with those of the first file that
    holds any. What was not measured is a dash.

    Example: qdeploy compare server.json board.json --html machines.html
    """
    from rich.console import Console

    from qdeploy.core import records
    from qdeploy.core.files import write_atomic
    from qdeploy.reports.compare import files, page, table
    from qdeploy.reports.compare.merge import compare
    from qdeploy.reports.compare.summary import summary

    read = {file.resolve(): (file, record) for file, record in map(files.read, paths)}
    outputs = {"--markdown": markdown_file, "--json": json_file, "--html": html_file}
    _check_outputs(outputs, list(read))
    compared = compare([(str(file), record) for file, record in read.values()])
    if markdown_file is not None:
        write_atomic(markdown_file, table.compare_markdown(compared))
    if json_file is not None:
        records.save(compared, json_file)
    if html_file is not None:
        page.write(compared, html_file)
    console = Console()
    console.print(table.compare_table(compared))
    for sentence in summary(compared):
        console.print(sentence, highlight=False, markup=False)
    for option, file in outputs.items():
        if file is not None:
            console.print(f"{option.removeprefix('--')}: {file}", soft_wrap=True, highlight=False, markup=False)


def _check_outputs(outputs: dict[str, Path | None], inputs: list[Path]) -> None:
    """An output must be neither an input nor another output: it would take its place."""
    from qdeploy.core.errors import QDeployError

    taken = dict.fromkeys(inputs, "one of the records")
    for option, file in outputs.items():
        if file is None:
            continue
        places.check_output(option, file)
        if file.resolve() in taken:
            raise QDeployError(f"{option} {file} is {taken[file.resolve()]} already.", "Name another file.")
        taken[file.resolve()] = f"the file of {option}"
