"""Put what a bench measured into a build's results."""

from __future__ import annotations

import dataclasses

from qdeploy.core.records import Bench, Latency, Results

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
    variants = tuple(dataclasses.replace(v, latency=measured.get(v.bundle_sha256)) for v in results.variants)
    return dataclasses.replace(results, variants=variants, environment=bench.environment)


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
    variants = tuple(dataclasses.replace(v, latency=known[v.bundle_sha256]) for v in results.variants)
    return dataclasses.replace(results, variants=variants, environment=previous.environment)
