"""Records from elsewhere: what is no record is one clear error, and text cannot do anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdeploy.core import records
from qdeploy.core.errors import QDeployError
from qdeploy.reports.compare import files
from tests.reports import sample

BENCH = records.to_json(sample.machine_bench())


def write(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def changed(text: str, value: Any) -> dict[str, Any]:
    """The bench with ``value`` at "rows.0.name"."""
    *keys, last = text.split(".")
    data = where = json.loads(json.dumps(BENCH))
    for key in keys:
        where = where[int(key) if key.isdecimal() else key]
    where[last] = value
    return data


@pytest.mark.parametrize("record", [sample.minimal(), sample.machine_bench(), sample.machine_answers()])
def test_every_kind_of_record_is_read_as_it_was_written(tmp_path: Path, record: Any) -> None:
    records.save(record, tmp_path / "a.json")
    assert files.read(tmp_path / "a.json") == (tmp_path / "a.json", record)


def test_a_build_folder_is_its_results(tmp_path: Path) -> None:
    records.save(sample.minimal(), tmp_path / "results.json")
    assert files.read(tmp_path) == (tmp_path / "results.json", sample.minimal())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "is no record: it has no schema"),
        ("7", "is no record"),
        ({"schema": "qdeploy.bundle/1"}, "is of schema 'qdeploy.bundle/1'; a comparison reads qdeploy.results/1, "),
        ({"schema": ["qdeploy.bench/1"]}, "is of schema"),
        ({"schema": "qdeploy.bench/1"}, "key 'target' is missing"),
        (changed("surprise", 1), "unknown key 'surprise'"),
        (changed("rows.0.latency.p50_ms.value", float("nan")), "not finite, or too large"),
        (changed("rows.0.size_bytes", 10**400), "not finite, or too large"),
        (changed("rows.0.latency.p50_ms.value", 0.0), "the latency of fp32 holds values that no measurement has"),
        (changed("rows.0.latency.p50_ms.value", -1.0), "holds values that no measurement has"),
        (changed("rows.0.latency.p50_ms.value", 5e-324), "holds values that no measurement has"),
        (changed("rows.0.latency.threads", 0), "holds values that no measurement has"),
        (changed("rows.0.latency.bundle_sha256", ""), "the bundle_sha256 of fp32 is '', which is no sha256"),
    ],
)
def test_what_is_no_record_is_one_clear_error(tmp_path: Path, data: Any, message: str) -> None:
    path = write(tmp_path / "a.json", data)
    with pytest.raises(QDeployError) as raised:
        files.read(path)
    assert message in raised.value.message
    assert str(path) in raised.value.message


def test_files_that_are_not_there_or_not_text_are_errors(tmp_path: Path) -> None:
    with pytest.raises(QDeployError, match=r"There is no file .*results\.json"):
        files.read(tmp_path)
    with pytest.raises(QDeployError, match=r"There is no file .*none\.json"):
        files.read(tmp_path / "none.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(QDeployError, match="cannot be read as JSON"):
        files.read(tmp_path / "a.json")


def test_an_interval_may_reach_below_zero_where_a_measurement_was_wild(tmp_path: Path) -> None:
    files.read(write(tmp_path / "a.json", changed("rows.1.latency.p50_ms.low", -0.3)))


def test_control_characters_and_halves_of_characters_are_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", changed("rows.0.name", "a\x1b[2J\n\u202eb\ud800"))
    _, record = files.read(path)
    assert isinstance(record, records.Bench)
    assert record.rows[0].name == "a\ufffd[2J\ufffd\ufffdb\ufffd"
