"""Numbers of somebody else beside ours. They are data of a results page, never of the code.

A page's "reference" is {"source": where they are from, "rows": [row, ...]}, a row {"what", "variant", "fact",
"reference"} and, where a page has several results, "part". ``fact`` names one of FACTS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qdeploy.core.errors import QDeployError, nearest
from qdeploy.core.records import Interval, Results, Variant
from qdeploy.reports import matrix, words
from qdeploy.reports.comparison import Cell, Column, scores, timed

# The name of each fact, whether more of it is better (of a metric: where that is so), and its unit.
FACTS = {
    "metric": (True, ""),
    "percent_of_float32": (True, "%"),
    "loss_percent": (False, "%"),
    "drop_points": (False, " points"),  # of a fraction; of another metric, such as decibels, in its own unit
    "compression": (True, "x"),
    "speedup": (True, "x"),
}
BETTER, WORSE, REACHED, MISSED = (
    "better",
    "worse",
    "better by value, within the interval",
    "worse by value, within the interval",
)


def columns(reference: Mapping[str, Any], parts: Sequence[tuple[str, Results]]) -> tuple[Column, ...]:
    """One row a number of theirs: theirs, ours with its interval, and which is better."""
    rows = reference["rows"]
    ours = [_ours(row, parts) for row in rows]
    return (
        Column("what", "what", tuple(Cell(row["what"]) for row in rows), numeric=False),
        Column("reference", "reference", tuple(Cell(_write(row, row["reference"], parts)) for row in rows)),
        Column("ours", "ours", tuple(_cell(row, found, parts) for row, found in zip(rows, ours, strict=True))),
        Column(
            "verdict", "ours is", tuple(_verdict(r, o, parts) for r, o in zip(rows, ours, strict=True)), numeric=False
        ),
    )


def value(fact: str, variant: Variant, results: Results) -> Interval | None:
    """A fact of a variant, in the unit that FACTS gives it; None where it was not measured.

    QDeployError for a fact that is none.
    """
    base = next(v for v in results.variants if v.name == results.baseline)
    share, delta = matrix.percent(variant, base.metric.value), variant.delta
    match fact:
        case "metric":
            return Interval(variant.metric.value, variant.metric.low, variant.metric.high)
        case "percent_of_float32":
            return share
        case "loss_percent":
            change = Interval(share.value - 100, share.low - 100, share.high - 100)
            return change.negative() if scores(results).higher_is_better else change
        case "drop_points":
            style = scores(results)
            lost = delta.negative() if delta and style.higher_is_better else delta
            return Interval(*(style.factor * end for end in (lost.value, lost.low, lost.high))) if lost else None
        case "compression":
            return Interval(variant.compression, variant.compression, variant.compression)
        case "speedup":
            latency = timed(variant.latency)
            return latency.speedup if latency else None
    raise QDeployError(f"A reference has no fact {fact!r}.", nearest(fact, FACTS))


def _ours(row: Mapping[str, Any], parts: Sequence[tuple[str, Results]]) -> Interval | None:
    results = _part(row, parts)
    named = {variant.name: variant for variant in results.variants}
    if row["variant"] not in named:
        if row["variant"] in [refusal.name for refusal in results.refusals]:
            return None
        raise QDeployError(f"The reference names variant {row['variant']!r}.", nearest(row["variant"], named))
    return value(row["fact"], named[row["variant"]], results)


def _part(row: Mapping[str, Any], parts: Sequence[tuple[str, Results]]) -> Results:
    if "part" not in row:
        return parts[0][1]
    named = dict(parts)
    if row["part"] not in named:
        raise QDeployError(f"The reference names part {row['part']!r}.", nearest(row["part"], named))
    return named[row["part"]]


def _write(row: Mapping[str, Any], number: float, parts: Sequence[tuple[str, Results]]) -> str:
    style = scores(_part(row, parts))
    if row["fact"] == "metric":
        return style.value(number)
    if row["fact"] == "drop_points":
        return words.fixed(number, style.places) + style.unit
    return words.fixed(number, 2) + FACTS[row["fact"]][1]


def _cell(row: Mapping[str, Any], found: Interval | None, parts: Sequence[tuple[str, Results]]) -> Cell:
    if found is None:
        return Cell("-", tone="muted")
    style, text = scores(_part(row, parts)), _write(row, found.value, parts)
    if row["fact"] == "compression":
        return Cell(text)
    if row["fact"] == "metric":
        return Cell(text, style.interval(found.low, found.high))
    return Cell(text, words.between(found.low, found.high, style.places if row["fact"] == "drop_points" else 2))


def _verdict(row: Mapping[str, Any], found: Interval | None, parts: Sequence[tuple[str, Results]]) -> Cell:
    if found is None:
        return Cell("-", tone="muted")
    theirs, more = float(row["reference"]), FACTS[row["fact"]][0]
    if row["fact"] in ("metric", "percent_of_float32"):
        more = scores(_part(row, parts)).higher_is_better
    if theirs == found.value:
        return Cell("equal")
    ahead = (found.value > theirs) == more
    if not found.excludes(theirs):
        return Cell(REACHED if ahead else MISSED)
    return Cell(BETTER, tone="good") if ahead else Cell(WORSE, tone="bad")
