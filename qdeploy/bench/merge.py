"""Put what a bench measured into a build's results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from qdeploy.core.records import Bench, Environment, Interval, Latency, Results, Summary, Variant

RUNTIME = "onnxruntime (CPU)"  # what a summary's speed-up is measured in
MUCH_SHORTER = 0.5  # of the time that the times which are there took


def with_latencies(results: Results, bench: Bench) -> Results:
    """``results`` with the latencies of the bench's first setting (threads and batch), and its environment.

    Only variants whose bundle was measured, by its digest, get a latency: times of two machines, of two settings or
    of two versions of a model never stand side by side.
    """
    first = bench.rows[0].latency
    measured: dict[str, Latency] = {}
    names: dict[str, str] = {}
    for row in bench.rows:
        if (row.latency.threads, row.latency.batch) == (first.threads, first.batch):
            measured[row.latency.bundle_sha256], names[row.name] = row.latency, row.latency.bundle_sha256
    own = [variant.bundle_sha256 for variant in results.variants if variant.name == results.baseline]
    if names.get(bench.baseline or "") not in own:
        # The speed-ups refer to another build's float32 model.
        measured = {digest: dataclasses.replace(latency, speedup=None) for digest, latency in measured.items()}
    ratios = {
        (ratio.first, ratio.second): ratio.speedup
        for ratio in bench.ratios
        if (ratio.threads, ratio.batch) == (first.threads, first.batch)
    }
    return _with(results, measured, ratios, bench.environment)


def pairs(results: Results) -> list[tuple[str, str]]:
    """The sha256 of the bundles that the contrasts of a build compare."""
    digests = {variant.name: variant.bundle_sha256 for variant in results.variants}
    return [(digests[contrast.first], digests[contrast.second]) for contrast in results.contrasts]


def measured(results: Results) -> bool:
    """Whether every variant has a latency and every contrast a ratio of two, as far as times may be read at all."""
    latencies = [variant.latency for variant in results.variants]
    withheld = any(latency is not None and latency.withheld is not None for latency in latencies)
    return all(latencies) and (withheld or all(contrast.speedup for contrast in results.contrasts))


def _with(
    results: Results, latencies: Mapping[str, Latency | None], ratios: Mapping[tuple[str, str], Interval | None],
    environment: Environment | None,
) -> Results:  # fmt: skip
    """``results`` with latencies by a bundle's digest, ratios by two digests, and what follows from them."""
    variants = [dataclasses.replace(v, latency=latencies.get(v.bundle_sha256)) for v in results.variants]
    contrasts = [
        dataclasses.replace(contrast, speedup=ratios.get(pair))
        for contrast, pair in zip(results.contrasts, pairs(results), strict=True)
    ]
    return dataclasses.replace(
        results, variants=tuple(dataclasses.replace(v, summary=_summary(v)) for v in variants),
        contrasts=tuple(contrasts), environment=environment,
    )  # fmt: skip


def _summary(variant: Variant) -> Summary | None:
    latency = variant.latency
    if latency is None or latency.speedup is None or not latency.runtime.startswith(RUNTIME) or latency.batch != 1:
        return None
    drop = None
    if variant.delta is not None and variant.metric.is_fraction:
        lost = variant.delta.negative()
        drop = Interval(100 * lost.value, 100 * lost.low, 100 * lost.high)
    return Summary(variant.compression, latency.speedup, drop)


def better_measured(results: Results, bench: Bench) -> float | None:
    """The seconds for which ``results`` timed its bundles, where that is much longer than ``bench`` timed them.

    None where the bench may take their place: it was not much shorter, or it is the first of one of the bundles.
    """
    new: dict[str, float] = {}
    for row in bench.rows:  # the longest, of several settings
        digest = row.latency.bundle_sha256
        new[digest] = max(new.get(digest, 0.0), _seconds(row.latency))
    both = [(v.latency, new[v.bundle_sha256]) for v in results.variants if v.bundle_sha256 in new]
    if not both or any(latency is None or latency.withheld is not None for latency, _ in both):
        return None
    old = [_seconds(latency) for latency, _ in both if latency is not None]
    return min(old) if max(seconds for _, seconds in both) < MUCH_SHORTER * min(old) else None


def _seconds(latency: Latency) -> float:
    """The time for which a latency was measured, all of its calls together."""
    return latency.calls * latency.batch / latency.throughput_per_s if latency.throughput_per_s else 0.0


def keep_latencies(results: Results, previous: Results | None) -> Results:
    """``results`` with the latencies of an earlier build, if every one of its bundles was measured there."""
    if previous is None:
        return results
    known = {variant.bundle_sha256: variant.latency for variant in previous.variants}
    if any(known.get(variant.bundle_sha256) is None for variant in results.variants):
        return results
    ratios = {pair: contrast.speedup for pair, contrast in zip(pairs(previous), previous.contrasts, strict=True)}
    return _with(results, known, ratios, previous.environment)
