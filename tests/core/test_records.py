from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy.core import records
from qdeploy.core.errors import QDeployError
from tests.reports import sample

INTERVAL = records.Interval(1.0, 0.5, 1.5)
METRIC = records.Metric("top1", 0.5, 0.25, 0.75, 8)
HISTOGRAM = records.Histogram((1, 2, 3), -1.0, 1.0, -0.5, 0.5)
LAYER = records.Layer("a", "Conv", "QLinearConv", True, "", 12, 8, 8, 100, 0, 0, 40.0, 50.0, HISTOGRAM, None)
EVERY = [
    INTERVAL,
    records.Refusal("apot-w8a8", "qat", "no such levels", quantization={"weights": {"bits": 8}}),
    records.Contrast("qat", "ptq", INTERVAL, 0.9, INTERVAL),
    records.Ratio("0" * 64, "1" * 64, 1, 1, INTERVAL),
    records.Summary(3.77, INTERVAL, None),
    records.HalfPrecision("conv.weight", 64, 1.5, 0, 1, 2, 0.01),
    records.SplitMetric("train", METRIC, INTERVAL),
    METRIC,
    HISTOGRAM,
    LAYER,
    sample.environment(),
    sample.latency(1.0, 2.0),
    sample.withheld(),
    sample.minimal().variants[1],
    sample.full(),
    sample.minimal(timed=False),
    sample.bench().rows[0],
    sample.bench(),
    sample.machine_answers().rows[0].golden,
    sample.machine_answers().rows[1],
    sample.machine_answers(),
]


def name(record: Any) -> str:
    return type(record).__name__


def test_every_record_is_tried_here() -> None:
    defined = {cls for cls in vars(records).values() if isinstance(cls, type) and dataclasses.is_dataclass(cls)}
    assert {type(record) for record in EVERY} == defined


@pytest.mark.parametrize("record", EVERY, ids=name)
def test_json_and_back_is_the_same_record(record: Any) -> None:
    data = json.loads(json.dumps(records.to_json(record), allow_nan=False))
    assert records.from_json(type(record), data) == record


def test_decisions_are_packed_and_nothing_else_is_unpacked() -> None:
    decisions = np.random.default_rng(0).integers(-1, 1000, 5000)
    np.testing.assert_array_equal(records.unpack_decisions(records.pack_decisions(decisions)), decisions)
    for text in ("", "????", "YWJj", records.pack_decisions(decisions)[:-8]):
        with pytest.raises(QDeployError, match="no decisions"):
            records.unpack_decisions(text)


@pytest.mark.parametrize("record", [sample.full(), sample.bench()], ids=name)
def test_a_file_and_back_is_the_same_record(record: Any, tmp_path: Path) -> None:
    records.save(record, tmp_path / "record.json")
    assert records.load(type(record), tmp_path / "record.json") == record


@pytest.mark.parametrize("record", EVERY, ids=name)
def test_every_missing_key_without_a_default_is_named(record: Any) -> None:
    for field in dataclasses.fields(record):
        data = records.to_json(record)
        del data[field.name]
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            with pytest.raises(QDeployError, match=f"here: key '{field.name}' is missing"):
                records.from_json(type(record), data, "here")
        else:
            records.from_json(type(record), data, "here")


@pytest.mark.parametrize("record", EVERY, ids=name)
def test_an_unknown_key_is_named(record: Any) -> None:
    with pytest.raises(QDeployError, match="here: unknown key 'colour'"):
        records.from_json(type(record), {**records.to_json(record), "colour": 1}, "here")


@pytest.mark.parametrize(
    ("cls", "data", "where"),
    [
        (records.Interval, {"value": "1", "low": 0, "high": 2}, "here.value: expected float, found '1'"),
        (records.Interval, {"value": True, "low": 0, "high": 2}, "here.value: expected float, found True"),
        (records.Interval, {"value": None, "low": 0, "high": 2}, "here.value: expected float, found None"),
        (records.Interval, [1, 0, 2], "here: expected an object, found list"),
        (records.Metric, {**records.to_json(METRIC), "samples": 8.0}, "here.samples: expected int, found 8.0"),
        (records.Metric, {**records.to_json(METRIC), "samples": True}, "here.samples: expected int, found True"),
        (records.Metric, {**records.to_json(METRIC), "higher_is_better": 1}, "here.higher_is_better: expected bool"),
        (records.Histogram, {**records.to_json(HISTOGRAM), "counts": 3}, "here.counts: expected a list, found int"),
        (records.Histogram, {**records.to_json(HISTOGRAM), "counts": [1, "2"]}, r"here.counts\[1\]: expected int"),
        (records.Layer, {**records.to_json(LAYER), "weights": {"counts": []}}, "here.weights: key 'low' is missing"),
    ],
)
def test_a_wrong_type_is_named_with_its_place(cls: Any, data: Any, where: str) -> None:
    with pytest.raises(QDeployError, match=where):
        records.from_json(cls, data, "here")


def test_an_error_deep_inside_names_the_whole_path() -> None:
    data = records.to_json(sample.full())
    data["variants"][1]["layers"][2]["macs"] = "many"
    with pytest.raises(QDeployError, match=r"here\.variants\[1\]\.layers\[2\]\.macs: expected int, found 'many'"):
        records.from_json(records.Results, json.loads(json.dumps(data)), "here")


def test_whole_numbers_are_floats_where_floats_are_meant() -> None:
    read = records.from_json(records.Interval, {"value": 1, "low": 0, "high": 2})
    assert read == records.Interval(1.0, 0.0, 2.0)
    assert all(isinstance(v, float) for v in (read.value, read.low, read.high))


def test_a_file_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for schema in ("qdeploy.results/0", records.BENCH_SCHEMA, None):
        path.write_text(json.dumps({**records.to_json(sample.minimal()), "schema": schema}))
        with pytest.raises(QDeployError, match=r"reads 'qdeploy\.results/1'"):
            records.load(records.Results, path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\ufeff{}"])
def test_a_file_that_holds_no_record_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(QDeployError, match=r"results\.json"):
        records.load(records.Results, path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QDeployError, match="There is no file") as caught:
        records.load(records.Results, tmp_path / "results.json")
    assert "qdeploy build" in caught.value.hint


def test_a_number_that_is_not_json_is_never_written(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with pytest.raises(ValueError, match="JSON"):
        records.save(dataclasses.replace(INTERVAL, high=math.inf), path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("reference", "excluded"), [(0.4999, True), (0.5, False), (1.0, False), (1.5, False), (1.5001, True)]
)
def test_an_interval_contains_its_ends(reference: float, excluded: bool) -> None:
    assert INTERVAL.excludes(reference) is excluded


def test_records_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        METRIC.value = 1.0  # type: ignore[misc]
