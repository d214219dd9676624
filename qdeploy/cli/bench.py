"""``qdeploy bench``: bundles timed side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.cli import logs, places

if TYPE_CHECKING:
    from rich.console import Console

    from qdeploy.core.records import Bench
    from qdeploy.loggers._base import Log


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH",
            help="A NAME.qdeploy.zip, a folder that one was unpacked into, or a build folder such as runs/digits.",
            show_default=False,
        ),
    ],
    targets: places.Targets = ["local"],  # noqa: B006 - typer copies it
    runtime: places.RuntimeName = "onnxruntime",
    provider: places.Provider = None,
    threads: Annotated[
        str | None,
        typer.Option(metavar="N[,N...]", help="Threads of a session (default: the cores that are allowed)."),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N[,N...]", help="Samples a call.")] = "1",
    seconds: Annotated[float, typer.Option(help="Measuring time for each bundle and setting.")] = 2.0,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The bundle that speed-ups refer to (default: the float32 one)."),
    ] = None,
    json_file: places.JsonFile = None,
    log: logs.Logs = None,
) -> None:
    """Time bundles side by side: latency, throughput, load time, memory, speed-up.

    Each bundle runs in a process of its own, one at a time in interleaved
    blocks, so that whatever disturbs the machine disturbs all of them alike.
    For a build folder, results.json and report.html get the new times, unless
    they hold times of the same bundles that were measured for much longer.

    Example: qdeploy bench runs/digits --threads 1,2 --batch 1,16
    """
    from rich.console import Console

    from qdeploy.bench import merge
    from qdeploy.bench.schedule import run
    from qdeploy.core.files import require_writable
    from qdeploy.core.records import Results, load
    from qdeploy.reports.terminal import bench_table

    counts = None if threads is None else numbers(threads, "--threads")
    batches = numbers(batch, "--batch")
    # A bundle or build that is named twice is measured once.
    bundles = list({bundle.resolve(): bundle for path in paths for bundle in find_bundles(path)}.values())
    places.check_output("--json", json_file, [*bundles, *(path / "results.json" for path in paths)])
    builds = list({path.resolve(): path for path in paths if _is_build(path)}.values())
    timed = builds if "local" in targets and runtime == "onnxruntime" and provider is None else []
    for build in timed:
        require_writable(build, "Its results.json gets the times; name its bundles alone to have them shown only.")
    if baseline is None and len(paths) == 1 and builds:
        baseline = _baseline_of(builds[0])
    pairs = [pair for build in builds for pair in merge.pairs(load(Results, build / "results.json"))]
    console = Console()
    opened, unlogged = logs.open_all(log), []

    def measure(target: str) -> None:
        with progress() as advance:
            bench = run(
                bundles, target=target, threads=counts, batches=batches, seconds=seconds, runtime=runtime,
                provider=provider, baseline=baseline, pairs=pairs, progress=advance,
            )  # fmt: skip
        console.print(bench_table(bench))
        places.save(bench, json_file, targets, console)
        # A build's page tells of the machine that made it.
        for folder in timed if target == "local" else ():
            update_build(folder, bench, console)
        if opened and not log_bench(opened, bundles, bench, console):
            unlogged.append(target)

    if places.each(targets, measure) or unlogged:
        raise typer.Exit(2)


def numbers(text: str, option: str) -> list[int]:
    """The positive numbers of "1,2", in order, each once."""
    from qdeploy.core.errors import QDeployError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise QDeployError(f"{option} {text!r} is not a list of positive numbers.", f"For example {option} 1,2.")
    return list(dict.fromkeys(int(part) for part in parts))


def find_bundles(path: Path, *, must_exist: bool = True) -> list[Path]:
    """The bundles that ``path`` stands for: itself, or all of a build folder, in the order of its results.json.

    ``must_exist`` False also gives those that results.json lists and that are not there.
    """
    from qdeploy.core.errors import QDeployError
    from qdeploy.core.records import Results, load

    if not path.exists():
        raise QDeployError(f"There is no {path}.", "Give a bundle, or a folder that `qdeploy build` made.")
    if path.is_file() or (path / "manifest.json").is_file():
        return [path]
    if not _is_build(path):
        found = sorted(path.rglob("*.qdeploy.zip"))
        if not found:
            raise QDeployError(f"There is no bundle (NAME.qdeploy.zip) in {path}.", "`qdeploy build` makes them.")
        return found
    found = [path / variant.bundle for variant in load(Results, path / "results.json").variants]
    missing = [bundle for bundle in found if not bundle.exists()]
    if missing and must_exist:
        raise QDeployError(f"{path / 'results.json'} lists {missing[0]}, which does not exist.", "Build it again.")
    return found


def data_options(paths: Sequence[Path], dataset: str) -> dict[str, Any]:
    """What the recipe said of the data set, where one of ``paths`` is the folder of a build on it; else nothing."""
    from qdeploy.core import plugins
    from qdeploy.core.records import PLACES, Results, load
    from qdeploy.recipe.signature import require_arguments

    for path in paths:
        if path.is_dir() and _is_build(path):
            results = load(Results, path / "results.json")
            if results.dataset == dataset:
                found = {key: value for key, value in results.data_options.items() if key not in PLACES}
                where = f"{path / 'results.json'}, data_options"
                require_arguments(plugins.load("dataset", dataset), found, f"The data set {dataset}", where)
                return found
    return {}


def update_build(folder: Path, bench: Bench, console: Console) -> None:
    """Put the first setting's latencies into the build's results.json, and render its report.html again."""
    from qdeploy.bench.merge import better_measured, with_latencies
    from qdeploy.core.records import Results, load, save
    from qdeploy.reports import html

    previous = load(Results, folder / "results.json")
    kept = better_measured(previous, bench)
    if kept is not None:
        console.print(
            f"{folder / 'results.json'} keeps its times: they were measured for {kept:.2g} seconds a bundle, much "
            f"longer than these. To replace them: --seconds {math.ceil(kept * 10) / 10:g}.",
            style="yellow", highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
        return
    updated = with_latencies(previous, bench)
    stale = [variant.name for variant in updated.variants if variant.latency is None]
    if stale:
        console.print(
            f"No times for {', '.join(stale)} in {folder / 'results.json'}: not measured, or the bundle has changed "
            "since the build.",
            style="yellow",
            markup=False,
        )
    save(updated, folder / "results.json")
    html.write(updated, folder / "report.html")
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True, highlight=False, markup=False)


def log_bench(opened: Sequence[Log], bundles: Sequence[Path], bench: Bench, console: Console) -> bool:
    """Hand a bench to the loggers, under the recipe of its bundles where they have one; returns whether all took it."""
    from qdeploy.bundle import manifest
    from qdeploy.loggers._runs import of_bench

    recipes = {manifest.read(bundle).recipe for bundle in bundles}
    return logs.write(opened, recipes.pop() if len(recipes) == 1 else "bench", of_bench(bench), console)


def _is_build(path: Path) -> bool:
    return (path / "results.json").is_file()


def _baseline_of(build: Path) -> str | None:
    """The build's own baseline, where its bundle is one of those that will be measured."""
    from qdeploy.core.records import Results, load

    results = load(Results, build / "results.json")
    return results.baseline if results.baseline in [variant.name for variant in results.variants] else None


@contextmanager
def progress() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr, gone when done; yields what ``bench.schedule.run`` calls."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(bar_width=30), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("start", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)
