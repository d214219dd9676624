"""Records as runs: what of a build and of a bench goes to a logger, the same for every logger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdeploy.core import records
from qdeploy.core.records import Bench, BenchRow, Environment, Interval, Latency, Metric, Results, Variant
from qdeploy.loggers._base import Run


def of_build(
    results: Results,
    folder: Path,
    *,
    recipe: Mapping[str, Any],
    variants: Mapping[str, Mapping[str, Any]],
    histories: Mapping[str, Mapping[str, Any]],
    environment: Environment,
) -> Run:
    """A build in ``folder`` as a run, with one below it for every variant.

    ``recipe`` and ``variants`` are settings as nested plain data, ``histories`` what training left, by stage ("train",
    "qat-int4/qat"), ``environment`` the machine that built, told where no other measured.
    """
    machine = _machine(results.environment or environment)
    settings = {"profile": results.profile, **recipe} if results.profile else recipe
    refused = {f"refused.{refusal.name}": refusal.reason for refusal in results.refusals}
    return Run(
        name=f"{results.name}-{results.profile}" if results.profile else results.name,
        parameters=flat(settings),
        curves=_curves(histories.get("train", {})),
        tags={**machine, **refused, "baseline": results.baseline, "created_by": results.created_by},
        files=tuple(folder / name for name in ("results.json", "report.html")),
        children=tuple(
            _of_variant(
                variant, folder, variants.get(variant.name, {}), histories.get(f"{variant.name}/qat", {}), machine
            )
            for variant in results.variants
        ),
    )


def of_bench(bench: Bench) -> Run:
    """A bench as a run, with one below it for every bundle and setting. Its bundles are told by their digests."""
    machine = _machine(bench.environment) | {"target": bench.target}
    return Run(
        name=f"bench {bench.target}",
        tags={**machine, **({"baseline": bench.baseline} if bench.baseline else {})},
        texts={"bench.json": json.dumps(records.to_json(bench), indent=2)},
        children=tuple(_of_row(row, machine) for row in bench.rows),
    )


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings with dotted keys, and values as texts: those of a recipe, JSON where they are no texts."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def _of_variant(
    variant: Variant, folder: Path, settings: Mapping[str, Any], history: Mapping[str, Any], machine: Mapping[str, str]
) -> Run:
    values = {
        "agreement": variant.agreement,
        "size_bytes": variant.size_bytes,
        "compression": variant.compression,
        "integer_mac_share": variant.integer_mac_share,
        "differing_codes": variant.differing_codes,
        "build_seconds": variant.seconds,
    }
    return Run(
        name=variant.name,
        parameters=flat({"method": variant.method, **settings}),
        metrics=_metric(variant.metric)
        | _interval(f"{variant.metric.name}_difference", variant.delta)
        | {name: float(value) for name, value in values.items() if value is not None}
        | _times(variant.latency),
        curves=_curves(history),
        tags={**machine, "bundle_sha256": variant.bundle_sha256, **_latency_tags(variant.latency)},
        files=(folder / variant.bundle,),
    )


def _of_row(row: BenchRow, machine: Mapping[str, str]) -> Run:
    latency = row.latency
    metrics: dict[str, float] = {"size_bytes": row.size_bytes}
    if row.integer_mac_share is not None:
        metrics["integer_mac_share"] = row.integer_mac_share
    settings = {"bundle": row.bundle, "runtime": latency.runtime, "threads": latency.threads, "batch": latency.batch}
    return Run(
        name=f"{row.name} threads={latency.threads} batch={latency.batch}",
        parameters=flat(settings),
        metrics=metrics | _times(latency),
        tags={**machine, "bundle_sha256": latency.bundle_sha256, **_latency_tags(latency)},
    )


def _metric(metric: Metric) -> dict[str, float]:
    return _interval(metric.name, Interval(metric.value, metric.low, metric.high)) | {"samples": metric.samples}


def _interval(name: str, interval: Interval | None) -> dict[str, float]:
    if interval is None:
        return {}
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _times(latency: Latency | None) -> dict[str, float]:
    """The times; none where they must not be read."""
    if latency is None or latency.withheld:
        return {}
    values = ("p90_ms", "p99_ms", "throughput_per_s", "load_ms", "peak_rss_bytes", "calls")
    times = {name: float(getattr(latency, name)) for name in values}
    return _interval("p50_ms", latency.p50_ms) | times | _interval("speedup", latency.speedup)


def _latency_tags(latency: Latency | None) -> dict[str, str]:
    if latency is None:
        return {}
    told = {"runtime": latency.runtime, "threads": str(latency.threads), "batch": str(latency.batch)}
    return told | ({"times_withheld": latency.withheld} if latency.withheld else {})


def _machine(environment: Environment) -> dict[str, str]:
    """The machine, as tags: "machine.cpu" and so on."""
    return flat({key: value for key, value in records.to_json(environment).items() if value is not None}, "machine.")


def _curves(history: Mapping[str, Any]) -> dict[str, list[float]]:
    """What history.json tells of every epoch; the validation metric under its own name."""
    lines = history.get("epochs", [])
    own = {"validation_metric": f"validation_{history.get('metric', 'metric')}"}
    return {own.get(key, key): [line[key] for line in lines] for key in (lines[0] if lines else ()) if key != "epoch"}
