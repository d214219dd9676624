"""What bundles answer in a place: the golden vectors code by code, and the metric over a whole evaluation split.

Nothing is timed, so this is as good on an emulated CPU as on a real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qdeploy.bench.schedule import golden_of
from qdeploy.core import plugins
from qdeploy.core.errors import QDeployError
from qdeploy.core.records import Answer, Answers, Environment, from_json, pack_decisions
from qdeploy.targets._base import open_target
from qdeploy.verify.bundle import read_bundle
from qdeploy.verify.evaluate import Evaluation, difference, fingerprint, judge

Progress = Callable[[str, float], None]  # whose answers are asked for, share of all that is done (0..1)


@dataclass(frozen=True, slots=True)
class Split:
    """The samples that a bundle is to be judged by; ``fingerprint`` is that of the whole split."""

    dataset: str
    raw: NDArray[Any]
    targets: NDArray[Any]
    metric: Any  # a metric plugin's instance
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A bundle that has no answers on a target, and why."""

    bundle: Path
    error: QDeployError


def ask(
    bundles: Sequence[Path], *, target: str = "local", runtime: str = "onnxruntime", provider: str | None = None,
    threads: int | None = None, split: Split | None = None, progress: Progress | None = None,
    heard: Callable[[Answer | Failure], None] = lambda _: None,
) -> tuple[Answers | None, list[Failure]]:  # fmt: skip
    """Ask every bundle on ``target``: its golden vectors, and with ``split`` every sample of that.

    A bundle that fails is in the second list and the others go on; with none left there are no answers. ``heard`` is
    told of each bundle when its turn is over.
    """
    rows: list[Answer] = []
    failures: list[Failure] = []
    found: dict[str, Evaluation] = {}
    facts: dict[str, Any] = {}
    with open_target(target) as place:
        for index, bundle in enumerate(bundles):
            report = _section(progress, bundle.name, index, len(bundles))
            try:
                opened = read_bundle(bundle)
                if split is not None:
                    require_split(opened, split, bundle)
                with place.open(bundle, name=bundle.name, runtime=runtime) as worker:
                    facts = worker.load(threads=threads, provider=provider)
                    seen = None if split is None else _judge(worker, opened["manifest"], split, report)
                    worker.finish()
            except QDeployError as error:
                failures.append(Failure(bundle, error))
                heard(failures[-1])
                continue
            row = _row(bundle, opened, facts)
            if seen is not None:
                found[row.bundle_sha256] = seen
                row = replace(
                    row, metric=seen.metric, outputs_sha256=seen.outputs_sha256,
                    decisions=pack_decisions(seen.decisions),
                )  # fmt: skip
            rows.append(row)
            heard(row)
        name = place.name
    if not rows:
        return None, failures
    if split is not None:
        rows = list(_with_deltas(rows, found, split.metric))
    environment = from_json(Environment, facts["environment"], "the worker's environment")
    dataset = "" if split is None else split.dataset
    return Answers(name, facts["runtime"], environment, tuple(rows), dataset), failures


def dataset_of(bundle: Path, dataset: str | None = None) -> str:
    """The data set that a bundle's recorded metric was measured on, or ``dataset`` in its place.

    Without the latter it must be one of those that ship with qdeploy, and so must the metric: a bundle from elsewhere
    chooses no code to run.
    """
    recorded = read_bundle(bundle)["manifest"]["metric"]
    if recorded is None:
        raise QDeployError(f"{bundle} records no metric, so there is nothing to measure again.")
    if plugins.is_path(recorded["name"]):
        raise QDeployError(f"{bundle} names a file for its metric, {recorded['name']!r}, which is not run.")
    name: str = dataset or recorded["dataset"]
    if dataset is None and plugins.is_path(name):
        raise QDeployError(f"{bundle} was judged on a data set of its builder's own, {name!r}.", "Name it: --dataset.")
    return name


def split_of(
    bundle: Path, *, dataset: str | None = None, options: Mapping[str, Any] | None = None, samples: int | None = None
) -> Split:
    """The evaluation split that a bundle's recorded metric was measured on, or the first ``samples`` of it.

    ``dataset``: see dataset_of. ``options`` are the data set's own (root ...), checked against its signature.
    """
    name = dataset_of(bundle, dataset)
    recorded = read_bundle(bundle)["manifest"]["metric"]
    raw, targets = plugins.load("dataset", name)(**(options or {})).split("evaluation")
    found = fingerprint(raw, targets)
    if recorded["fingerprint"] != found:
        raise QDeployError(
            f"The evaluation split of {name} here is not the one that {bundle} was judged on.",
            "Give the data set the options that the recipe gave it (--data KEY=VALUE), and compare its files with "
            "those of the machine that built the bundle.",
        )
    return Split(name, raw[:samples], targets[:samples], plugins.load("metric", recorded["name"])(), found)


def require_split(bundle: Mapping[str, Any], split: Split, path: Path) -> None:
    """QDeployError unless a bundle was judged by the same metric on the same samples."""
    recorded = bundle["manifest"]["metric"] or {}
    if (recorded.get("name"), recorded.get("fingerprint")) != (split.metric.name, split.fingerprint):
        raise QDeployError(
            f"{path} was not judged by {split.metric.name} on these samples of {split.dataset}.", "Ask it separately."
        )


def _judge(worker: Any, manifest: Mapping[str, Any], split: Split, report: Callable[[float], None]) -> Evaluation:
    entry, output = manifest["inputs"][0]["name"], manifest["outputs"][0]["name"]
    return judge(
        lambda samples: worker.predict({entry: samples})[output], split.raw, split.targets, metric=split.metric,
        progress=lambda done: report(done / len(split.raw)),
    )  # fmt: skip


def _row(bundle: Path, opened: Mapping[str, Any], facts: Mapping[str, Any]) -> Answer:
    manifest, golden = opened["manifest"], golden_of(facts)
    return Answer(manifest["name"], str(bundle), opened["sha256"], manifest["method"], golden, note=facts["note"])


def _with_deltas(rows: Sequence[Answer], found: Mapping[str, Evaluation], metric: Any) -> Iterable[Answer]:
    """Each row with its metric's difference to the one float32 bundle's, if there is one."""
    baselines = [row for row in rows if row.method == "float32"]
    for row in rows:
        if len(baselines) == 1 and row is not baselines[0]:
            own, base = found[row.bundle_sha256].rows, found[baselines[0].bundle_sha256].rows
            row = replace(row, delta=difference(own, base, metric))
        yield row


def _section(progress: Progress | None, name: str, index: int, count: int) -> Callable[[float], None]:
    def report(share: float) -> None:
        if progress is not None:
            progress(name, (index + share) / count)

    report(0.0)
    return report
