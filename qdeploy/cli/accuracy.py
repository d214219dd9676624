"""``qdeploy accuracy``: the metric over a whole evaluation split, on this machine or another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qdeploy.cli import places

if TYPE_CHECKING:
    from qdeploy.bench.answers import Split


def command(
    paths: places.Paths,
    targets: places.Targets = ["local"],  # noqa: B006 - typer copies it
    runtime: places.RuntimeName = "onnxruntime",
    provider: places.Provider = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many samples (an emulated CPU is slow).")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="The data set, where it is not one that ships with qdeploy.")
    ] = None,
    options: Annotated[
        list[str], typer.Option("--data", metavar="KEY=VALUE", help="An option of the data set, such as root=DIR.")
    ] = [],  # noqa: B006 - typer copies it
    json_file: places.JsonFile = None,
) -> None:
    """Measure the accuracy of bundles over the whole evaluation split, wherever they are to run.

    The samples are sent to the target and its answers scored here, after the
    golden vectors have been compared. The data has to be, bit for bit, what the
    bundles were judged on when they were built; a build's folder knows what the
    recipe said of it, but not where its files are. Exits with code 1 if golden
    vectors differ there, and with 2 if a bundle cannot be read or run.

    Example: qdeploy accuracy runs/digits --target qemu:cortex-a72
    """
    from rich.console import Console

    from qdeploy.bench.answers import ask, dataset_of, split_of
    from qdeploy.cli.bench import data_options, find_bundles, progress
    from qdeploy.cli.errors import show
    from qdeploy.core import plugins
    from qdeploy.core.errors import QDeployError
    from qdeploy.recipe.overrides import key_values
    from qdeploy.recipe.signature import require_arguments
    from qdeploy.reports.answers import answers_table

    console = Console()
    bundles = list(dict.fromkeys(found for path in paths for found in find_bundles(path)))
    places.check_output("--json", json_file, [*bundles, *(path / "results.json" for path in paths)])
    name = dataset_of(bundles[0], dataset)
    given = key_values(options, "--data")
    require_arguments(plugins.load("dataset", name), given, f"The data set {name}", "--data")
    given = {**data_options(paths, name), **given}
    split: Split = split_of(bundles[0], dataset=dataset, options=given, samples=samples)
    wrong = differs = False

    def measure(target: str) -> None:
        nonlocal wrong, differs
        with progress() as advance:
            answers, failures = ask(
                bundles, target=target, runtime=runtime, provider=provider, split=split, progress=advance
            )
        for failure in failures:
            show(QDeployError(f"{target}: {failure.error.message}", failure.error.hint))
        wrong = wrong or bool(failures)
        if answers is not None:
            differs = differs or not all(row.golden.passed for row in answers.rows)
            console.print(answers_table(answers))
            places.save(answers, json_file, targets, console)

    if places.each(targets, measure) or wrong:
        raise typer.Exit(2)
    if differs:
        raise typer.Exit(1)
