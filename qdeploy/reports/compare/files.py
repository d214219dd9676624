"""Records from elsewhere, read as what they are: text that somebody wrote, and numbers that may be none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdeploy.core import records
from qdeploy.core.errors import QDeployError
from qdeploy.core.records import Answers, Bench, Latency, Results
from qdeploy.reports.terminal import printable

KINDS: dict[str, type[Results] | type[Bench] | type[Answers]] = {
    records.RESULTS_SCHEMA: Results,
    records.BENCH_SCHEMA: Bench,
    records.ANSWERS_SCHEMA: Answers,
}
MOST = 2**63  # no number in a record is larger
TIMES = (1e-6, 1e9)  # milliseconds: a nanosecond to eleven days
WRITERS = "`qdeploy build` writes results.json; `qdeploy bench`, `verify` and `accuracy` write one with --json FILE."


def read(path: Path) -> tuple[Path, Results | Bench | Answers]:
    """The record in the file ``path``, or in the results.json of the build folder ``path``, and that file's path.

    Control characters in its text are replaced. What is no such record is a QDeployError.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        data = _cleaned(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise QDeployError(f"There is no file {file}.", WRITERS) from None
    except (ValueError, RecursionError, OSError) as error:
        raise QDeployError(f"{file} cannot be read as JSON: {error}.", WRITERS) from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, str) or schema not in KINDS:
        what = "no record: it has no schema" if schema is None else f"of schema {schema!r}"
        raise QDeployError(f"{file} is {what}; a comparison reads {', '.join(KINDS)}.", WRITERS)
    record: Results | Bench | Answers = records.from_json(KINDS[schema], data, str(file))
    _check(record, file)
    return file, record


def _cleaned(data: Any) -> Any:
    """``data`` with printable text. ValueError for what JSON does not know (NaN) and for numbers without an end."""
    if isinstance(data, dict):
        return {printable(key): _cleaned(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_cleaned(value) for value in data]
    if isinstance(data, str):
        return printable(data)
    if isinstance(data, int | float) and not abs(data) < MOST:  # nor is NaN
        raise ValueError("a number in it is not finite, or too large")
    return data


def _check(record: Results | Bench | Answers, file: Path) -> None:
    """Digests must be digests, because rows are told apart by them, and times must be times, because they are drawn."""
    for name, digest, latency in _measured(record):
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise QDeployError(f"{file}: the bundle_sha256 of {name} is {digest!r}, which is no sha256.", WRITERS)
        if latency is None or latency.withheld is not None:
            continue
        values = [latency.p50_ms.value, *([latency.speedup.value] if latency.speedup else [])]
        if not all(TIMES[0] <= value <= TIMES[1] for value in values) or min(latency.threads, latency.batch) < 1:
            raise QDeployError(f"{file}: the latency of {name} holds values that no measurement has.", WRITERS)


def _measured(record: Results | Bench | Answers) -> Iterator[tuple[str, str, Latency | None]]:
    """Name, digest and latency of every row."""
    if isinstance(record, Results):
        yield from ((v.name, v.bundle_sha256, v.latency) for v in record.variants)
    elif isinstance(record, Bench):
        yield from ((row.name, row.latency.bundle_sha256, row.latency) for row in record.rows)
    else:
        yield from ((row.name, row.bundle_sha256, None) for row in record.rows)
