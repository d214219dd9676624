"""``qdeploy verify``: whether a machine gives the answers that a bundle was built with."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import typer

from qdeploy.cli import places

if TYPE_CHECKING:
    from qdeploy.bench.answers import Failure
    from qdeploy.core.records import Answer

NOT_CHECKED = "Checked: files and golden answers. `qdeploy accuracy` measures the accuracy that a bundle records."


def command(
    paths: places.Paths,
    targets: places.Targets = ["local"],  # noqa: B006 - typer copies it
    runtime: places.RuntimeName = "onnxruntime",
    provider: places.Provider = None,
    json_file: places.JsonFile = None,
) -> None:
    """Check bundles: every file's digest, and the golden vectors code by code on this machine or another.

    Exits with code 1 if a bundle gives other answers there than where it was
    built, and with 2 if one cannot be read or run; the others are checked all the
    same.

    Example: qdeploy verify runs/digits --target local --target qemu:cortex-a72
    """
    from rich.console import Console

    from qdeploy.bench.answers import ask
    from qdeploy.cli.bench import find_bundles
    from qdeploy.reports.words import environment_line

    console = Console()
    # All paths are looked at before the first bundle is run.
    bundles = list(dict.fromkeys(found for path in paths for found in find_bundles(path, must_exist=False)))
    places.check_output("--json", json_file, [*bundles, *(path / "results.json" for path in paths)])
    marks: list[str] = []

    def heard(outcome: Answer | Failure, target: str) -> None:
        mark, line = describe(outcome)
        if mark == "BAD" and len(targets) > 1 and target not in line:  # no line below says where
            line = f"{target}: {line}"
        marks.append(mark)
        console.print(STYLES[mark], end=" ")
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    def check(target: str) -> None:
        answers, _ = ask(
            bundles, target=target, runtime=runtime, provider=provider, heard=partial(heard, target=target)
        )
        if answers is not None:
            where = f"{answers.target}: {environment_line(answers.environment)}; {answers.runtime}"
            console.print(where, style="dim", highlight=False, markup=False, soft_wrap=True)
            places.save(answers, json_file, targets, console)

    failed = places.each(targets, check)
    console.print(NOT_CHECKED, style="dim", highlight=False, soft_wrap=True)
    if failed or "BAD" in marks:
        raise typer.Exit(2)
    if "FAIL" in marks:
        raise typer.Exit(1)


STYLES = {"ok": "[green]ok  [/green]", "FAIL": "[red]FAIL[/red]", "BAD": "[red]BAD [/red]"}


def describe(outcome: Answer | Failure) -> tuple[str, str]:
    """The mark of an outcome, and what it says."""
    from qdeploy.bench.answers import Failure

    if isinstance(outcome, Failure):
        said = outcome.error.message  # it may end in another program's words
        return "BAD", f"{said}{'' if said.endswith(('.', '?', '!')) else '.'} {outcome.error.hint}".strip()
    golden, note = outcome.golden, f" ({outcome.note})" if outcome.note else ""
    if golden.passed:
        return "ok", f"{outcome.bundle}  {golden.values} golden values agree ({golden.comparison}){note}"
    return "FAIL", (
        f"{outcome.bundle}  {golden.differing} of {golden.values} golden values differ, "
        f"by up to {golden.max_difference:.3g}{note}"
    )
