"""Put what a bench measured into a build's results."""

from __future__ import annotations

import dataclasses

from qdeploy.core.records import Bench, Latency, Results


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


def keep_latencies(results: Results, previous: Results | None) -> Results:
    """``results`` with the latencies of an earlier build, if every one of its bundles was measured there."""
    if previous is None:
        return results
    known = {variant.bundle_sha256: variant.latency for variant in previous.variants}
    if any(known.get(variant.bundle_sha256) is None for variant in results.variants):
        return results
    variants = tuple(dataclasses.replace(v, latency=known[v.bundle_sha256]) for v in results.variants)
    return dataclasses.replace(results, variants=variants, environment=previous.environment)
