"""Why things that stand side by side may not be comparable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qdeploy.reports.compare.facts import Bundle, Machine, Part, Timing, Verified, joined


def warnings_about(
    parts: Sequence[Part],
    bundles: Sequence[Bundle],
    machines: Sequence[Machine],
    timings: Sequence[Timing],
    answers: Sequence[Verified],
) -> list[str]:
    """Why things that stand side by side may not be comparable."""
    warnings = []
    if shared := [name for name, count in Counter(bundle.name for bundle in bundles).items() if count > 1]:
        warnings.append(
            f"Several bundles are named {joined(shared)}; they have rows of their own. Measure the same "
            "NAME.qdeploy.zip on every machine: a build on another machine, and an unpacked folder, is another bundle."
        )
    pairs = {(t.bundle_sha256, t.machine) for t in timings} | {(a.bundle_sha256, a.machine) for a in answers}
    if len({machine for _, machine in pairs}) > 1 and max(Counter(digest for digest, _ in pairs).values()) == 1:
        warnings.append("No bundle was measured on more than one machine, so nothing here compares machines.")
    versions: dict[str, list[str]] = {}
    for machine in machines:
        versions.setdefault(machine.environment.onnxruntime, []).append(machine.label)
    if len(versions) > 1:
        listed = "; ".join(f"{version} on {joined(labels)}" for version, labels in versions.items())
        warnings.append(f"The versions of onnxruntime differ ({listed}): times and answers can differ for that alone.")
    return [*warnings, *_baseline_warnings(bundles, timings), *_split_warnings(parts)]


def _baseline_warnings(bundles: Sequence[Bundle], timings: Sequence[Timing]) -> list[str]:
    names = {bundle.sha256: bundle.label for bundle in bundles}
    over: dict[str, list[str]] = {}
    for timing in timings:
        if timing.latency.speedup is not None:
            name = names.get(timing.baseline_sha256 or "", "a bundle that is not here")
            over.setdefault(name, []).append(timing.machine)
    if len(over) < 2:
        return []
    listed = "; to ".join(f"{name} on {joined(labels)}" for name, labels in over.items())
    return [f"Speed-ups do not refer to the same bundle: to {listed}."]


def _split_warnings(parts: Sequence[Part]) -> list[str]:
    """Metrics of several names, data sets or numbers of samples: their values do not compare."""
    splits: dict[tuple[str, int, str], list[str]] = {}
    for part in parts:
        rows = [(row.metric, part.dataset) for row in part.answers] + [(b.metric, b.dataset) for b in part.bundles]
        for metric, dataset in rows:
            if metric is not None:
                splits.setdefault((metric.name, metric.samples, dataset), []).append(part.source)
    # A record that does not name its data set may be of any that has as many samples.
    named = {(name, samples) for name, samples, dataset in splits if dataset}
    splits = {split: files for split, files in splits.items() if split[2] or split[:2] not in named}
    if len(splits) < 2:
        return []
    listed = "; ".join(
        f"{name} on {samples:,} samples{f' of {dataset}' if dataset else ''} in {joined(files)}"
        for (name, samples, dataset), files in splits.items()
    )
    return [f"The metrics are not of one evaluation split: {listed}."]
