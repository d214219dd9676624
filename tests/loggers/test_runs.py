"""What of a build and of a bench goes to loggers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from qdeploy.core import records
from qdeploy.core.records import Bench, BenchRow, Interval, Refusal, Results, Variant
from qdeploy.loggers._runs import flat, of_bench, of_build
from tests.reports.sample import SHA, environment, latency, metric

HISTORY = {
    "metric": "top1",
    "epochs": [
        {"epoch": 1, "lr": 0.1, "train_loss": 2.0, "validation_metric": 0.5},
        {"epoch": 2, "lr": 0.01, "train_loss": 1.0, "validation_metric": 0.75},
    ],
}


def variant(name: str, method: str, **changes: object) -> Variant:
    values = Variant(
        name=name, method=method, metric=metric(0.9), delta=None, agreement=None, size_bytes=1000, compression=1.0,
        bundle=f"{name}.qdeploy.zip", bundle_sha256=SHA, integer_mac_share=0.0, differing_codes=0, layers=(),
        latency=latency(2.0, None),
    )  # fmt: skip
    return dataclasses.replace(values, **changes)


RESULTS = Results(
    name="demo", baseline="fp32", profile="fast", environment=environment(), created_by="qdeploy 0.1.0",
    variants=(
        variant("fp32", "float32"),
        variant("int4", "qat", delta=Interval(-0.01, -0.02, 0.0), agreement=0.97, latency=latency(1.0, 2.0)),
    ),
    refusals=(Refusal("apot-w8", "qat", "beyond int8"),),
)  # fmt: skip


@pytest.fixture
def run():
    return of_build(
        RESULTS, Path("runs/demo-fast"),
        recipe={"train": {"epochs": 2, "augment": ["flip"]}, "data": {"name": "digits"}},
        variants={"int4": {"method": "qat", "weights": {"bits": 4}}},
        histories={"train": HISTORY, "int4/qat": HISTORY}, environment=environment(cpu="another"),
    )  # fmt: skip


def test_a_build_is_a_run_with_one_below_it_for_every_variant(run):
    assert (run.name, [child.name for child in run.children]) == ("demo-fast", ["fp32", "int4"])
    assert run.parameters == {
        "profile": "fast", "train.epochs": "2", "train.augment": '["flip"]', "data.name": "digits",
    }  # fmt: skip
    assert run.children[1].parameters == {"method": "qat", "weights.bits": "4"}
    assert run.files == (Path("runs/demo-fast/results.json"), Path("runs/demo-fast/report.html"))
    assert run.children[1].files == (Path("runs/demo-fast/int4.qdeploy.zip"),)


def test_the_numbers_are_those_of_the_results(run):
    row, metrics = RESULTS.variants[1], run.children[1].metrics
    assert (metrics["top1"], metrics["top1_low"], metrics["top1_high"]) == (0.9, row.metric.low, row.metric.high)
    assert (metrics["top1_difference"], metrics["top1_difference_low"]) == (-0.01, -0.02)
    assert (metrics["p50_ms"], metrics["speedup"], metrics["speedup_low"]) == (1.0, 2.0, 1.94)
    assert (metrics["size_bytes"], metrics["integer_mac_share"], metrics["agreement"]) == (1000, 0.0, 0.97)
    assert "speedup" not in run.children[0].metrics


def test_curves_are_the_history_by_epoch(run):
    expected = {"lr": [0.1, 0.01], "train_loss": [2.0, 1.0], "validation_top1": [0.5, 0.75]}
    assert run.curves == run.children[1].curves == expected
    assert run.children[0].curves == {}


def test_tags_tell_the_machine_that_measured_and_what_was_refused(run):
    for entry in (run, *run.children):
        assert entry.tags["machine.cpu"] == environment().cpu
    assert run.tags["refused.apot-w8"] == "beyond int8"
    assert run.children[0].tags["bundle_sha256"] == SHA
    unmeasured = dataclasses.replace(RESULTS, environment=None)
    again = of_build(unmeasured, Path(), recipe={}, variants={}, histories={}, environment=environment(cpu="another"))
    assert again.tags["machine.cpu"] == "another"


def test_times_of_an_emulated_cpu_are_in_no_log():
    row = variant("int8", "ptq", latency=latency(1.0, None, withheld="an emulated CPU"))
    run = of_build(
        dataclasses.replace(RESULTS, variants=(row,)), Path(), recipe={}, variants={}, histories={},
        environment=environment(),
    )  # fmt: skip
    assert not {"p50_ms", "p90_ms", "throughput_per_s", "speedup"} & set(run.children[0].metrics)
    assert run.children[0].tags["times_withheld"] == "an emulated CPU"


def test_a_bench_is_a_run_with_one_below_it_for_every_setting():
    rows = tuple(
        BenchRow("int4", "runs/demo/int4.qdeploy.zip", 1000, metric(0.9), 1.0, latency(1.0, 2.0, threads=threads))
        for threads in (1, 2)
    )
    run = of_bench(Bench("local", environment(), "fp32", rows))
    assert (run.name, run.tags["target"], run.tags["baseline"]) == ("bench local", "local", "fp32")
    assert [child.name for child in run.children] == ["int4 threads=1 batch=1", "int4 threads=2 batch=1"]
    assert run.children[1].parameters["threads"] == "2"
    assert run.children[1].metrics["speedup"] == 2.0
    assert "top1" not in run.children[1].metrics  # it is the bundle's, and was not measured by the bench
    assert records.from_json(Bench, json.loads(run.texts["bench.json"])).rows == rows


def test_settings_keep_their_values():
    assert flat({"a": {"b": {"c": 1e-3}, "d": None}, "e": "x", "f": True, "g": {}}) == {
        "a.b.c": "0.001", "a.d": "null", "e": "x", "f": "true",
    }  # fmt: skip
