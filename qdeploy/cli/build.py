"""``qdeploy build``: a recipe, from training to the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.cli import logs

if TYPE_CHECKING:
    from rich.console import Console

    from qdeploy.core.records import Results
    from qdeploy.loggers._base import Run
    from qdeploy.pipeline import Events
    from qdeploy.recipe.schema import Recipe


def _folder(text: str) -> Path:
    """A folder's path; an empty one, such as "$UNSET", would be the working directory."""
    if not text.strip():
        raise typer.BadParameter("it is empty: name a folder.")
    return Path(text)


def command(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A file, or a name that `qdeploy list recipes` shows.", show_default=False
        ),
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a key of the recipe: --set train.epochs=2. Repeatable."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="VARIANT", help="Build this variant (and float32) only. Repeatable."),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(metavar="NAME", help="One of the recipe's own profiles; --set wins over it.", show_default=False),
    ] = "",
    pretrained: Annotated[
        Path | None,
        typer.Option(
            "--from-pretrained",
            metavar="CHECKPOINT",
            help="Take the float32 weights from this file (.safetensors, .pth, .th, .pt) instead of training.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            parser=_folder,
            help="Where to build (default: runs/NAME, with a profile runs/NAME-PROFILE).",
            show_default=False,
        ),
    ] = None,
    bench: Annotated[bool, typer.Option(help="Time the bundles that changed, at the end.")] = True,
    log: logs.Logs = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what there is to do.")] = False,
) -> None:
    """Build every variant of a recipe: train, quantize, export, prove, bundle, time, report.

    Stages whose inputs have not changed are not run again, and a build that
    was stopped goes on where it stood.

    Example: qdeploy build recipes/digits.yaml --set train.epochs=5 --only ptq-int8
    """
    from rich.console import Console

    from qdeploy.core.extras import require_build

    require_build()
    from qdeploy.recipe.find import find
    from qdeploy.recipe.load import load

    loaded = load(find(recipe), sets or (), only or (), profile=profile, pretrained=pretrained)
    # Only now what takes seconds to import: a wrong recipe is answered at once.
    from qdeploy import pipeline
    from qdeploy.core.allocator import keep_freed_memory
    from qdeploy.reports.terminal import results_table

    folder = out or Path("runs") / loaded.folder
    console = Console()
    if plan:
        waiting = pipeline.pending(loaded, folder)
        for stage in waiting:
            console.print(stage.name, highlight=False, markup=False)
        console.print(f"{len(waiting)} stages to run." if waiting else "Nothing to do.", style="dim")
        return
    opened = logs.open_all(log)
    keep_freed_memory()
    with _events() as events:
        results = pipeline.build(loaded, folder, events=events, measure=bench)
    console.print(results_table(results))
    _say_where(console, folder)
    if opened and not logs.write(opened, results.name, _as_run(loaded, results, folder), console):
        raise typer.Exit(2)


def _as_run(recipe: Recipe, results: Results, folder: Path) -> Run:
    """What a logger is given of a build."""
    from qdeploy import pipeline, runner
    from qdeploy.core.records import Environment, from_json
    from qdeploy.loggers._runs import of_build

    settings = {key: value for key, value in recipe.dump().items() if key not in ("variants", "profiles")}
    return of_build(
        results, folder, recipe=settings,
        variants={name: variant.dump() for name, variant in recipe.variants.items()},
        histories=pipeline.histories(recipe, folder),
        environment=from_json(Environment, runner.environment(), "environment"),
    )  # fmt: skip


def _say_where(console: Console, folder: Path) -> None:
    for label, name in (("results", "results.json"), ("report", "report.html")):
        console.print(f"{label}: {folder / name}", soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _events() -> Iterator[Events]:
    """A line on stderr for every stage that runs, and a bar under it while training or timing."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from qdeploy.pipeline import Events

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("planning", total=None)

        def stage(started: Any) -> None:
            bar.console.print(f"run  {started.name}", highlight=False, markup=False)
            bar.reset(task, description=started.name, total=None)

        def training(progress: Any) -> None:
            done = (progress.epoch - 1) * progress.batches + progress.batch
            text = f"train  epoch {progress.epoch}/{progress.epochs}  loss {progress.loss:.3f}"
            bar.update(task, description=text, total=progress.epochs * progress.batches, completed=done)

        def bench(what: str, share: float) -> None:
            bar.update(task, description=f"bench  {what}", total=1.0, completed=share)

        yield Events(stage=stage, training=training, bench=bench)
