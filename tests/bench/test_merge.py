"""What a bench adds to a build: latencies by digest, the ratios of its contrasts, and the summary of each variant."""

from __future__ import annotations

import dataclasses

from qdeploy.bench import merge
from qdeploy.core.records import Bench, BenchRow, Interval, Ratio, Results
from tests.reports import sample


def build() -> Results:
    """A build before its bench, whose bundles have digests of their own."""
    results = sample.head_to_head()
    variants = tuple(dataclasses.replace(v, latency=None, bundle_sha256=sample.sha(v.name)) for v in results.variants)
    contrasts = tuple(dataclasses.replace(c, speedup=None) for c in results.contrasts)
    return dataclasses.replace(results, variants=variants, contrasts=contrasts, environment=None)


def bench(results: Results, **changes: object) -> Bench:
    rows = []
    for i, v in enumerate(results.variants):
        found = sample.latency(2.0, None if i == 0 else 1.5, bundle_sha256=v.bundle_sha256, **changes)
        rows.append(BenchRow(v.name, v.bundle, v.size_bytes, v.metric, 1.0, found))
    batch = rows[0].latency.batch
    ratios = tuple(Ratio(a, b, 1, batch, Interval(1.1, 1.0, 1.2)) for a, b in merge.pairs(results))
    return Bench("local", sample.environment(), "fp32", tuple(rows), ratios=ratios)


def test_a_summary_is_there_once_times_are() -> None:
    results = build()
    assert [v.summary for v in results.variants] == [None] * 5
    measured = merge.with_latencies(results, bench(results))
    assert measured.variants[0].summary is None
    summary = measured.variants[1].summary
    assert summary is not None
    assert summary.compression_ratio == measured.variants[1].compression
    assert summary.speedup == Interval(1.5, 1.5 * 0.97, 1.5 * 1.03)
    delta = measured.variants[1].delta
    assert delta is not None
    assert summary.accuracy_drop_percent == Interval(-100 * delta.value, -100 * delta.high, -100 * delta.low)


def test_no_summary_of_another_batch_or_runtime() -> None:
    results = build()
    for changes in ({"batch": 16}, {"runtime": "openvino 2026.4.1 (CPU)"}):
        assert merge.with_latencies(results, bench(results, **changes)).variants[1].summary is None


def test_a_metric_that_is_no_fraction_has_no_drop_in_points() -> None:
    results = build()
    loud = tuple(
        dataclasses.replace(v, metric=dataclasses.replace(v.metric, value=32.0, low=31.0, high=33.0))
        for v in results.variants
    )
    summary = merge.with_latencies(dataclasses.replace(results, variants=loud), bench(results)).variants[1].summary
    assert summary is not None
    assert summary.accuracy_drop_percent is None


def test_contrasts_get_the_ratio_of_their_own_bundles() -> None:
    results = build()
    measured = merge.with_latencies(results, bench(results))
    assert [c.speedup for c in measured.contrasts] == [Interval(1.1, 1.0, 1.2)] * 3
    assert merge.measured(measured)
    assert not merge.measured(results)
    changed = dataclasses.replace(results.variants[2], bundle_sha256=sample.sha("another"))
    variants = (*results.variants[:2], changed, *results.variants[3:])
    other = merge.with_latencies(dataclasses.replace(results, variants=variants), bench(results))
    assert [c.speedup is None for c in other.contrasts] == [True, False, False]


def test_an_unchanged_build_keeps_ratios_and_summaries() -> None:
    results = build()
    measured = merge.with_latencies(results, bench(results))
    assert merge.keep_latencies(results, measured) == measured
    fewer = dataclasses.replace(measured, contrasts=measured.contrasts[:1])
    again = merge.keep_latencies(results, fewer)
    assert [c.speedup is None for c in again.contrasts] == [False, True, True]
    assert not merge.measured(again)
