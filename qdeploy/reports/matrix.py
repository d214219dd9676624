"""Methods beside models: one table a width, of several builds; absolute, and per cent of no quantization."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qdeploy.core.records import Interval, Refusal, Results, Variant
from qdeploy.reports import bits, words
from qdeploy.reports.comparison import Cell, Column, scores

FLOAT = "no quantization"
NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Table:
    """The two tables of one width."""

    bits: int
    absolute: tuple[Column, ...]
    relative: tuple[Column, ...]


def tables(parts: Sequence[tuple[str, Results]]) -> list[Table]:
    """A table for each width of weights, widest first; ``parts`` are (name, results), a column each.

    A cell is a number, or the reason why there is none.
    """
    found = {part: _by_cell(results) for part, results in parts}
    widths = sorted({width for cells in found.values() for width, _ in cells}, reverse=True)
    made = []
    for width in widths:
        rows = list(dict.fromkeys(row for cells in found.values() for at, row in cells if at == width))
        made.append(Table(width, *(tuple(_columns(parts, found, width, rows, relative)) for relative in (False, True))))
    return made


def sentences(parts: Sequence[tuple[str, Results]]) -> list[str]:
    """The largest loss at each width, and how many of its numbers are a measurable loss."""
    said = []
    for found in tables(parts):
        shares, losses = [], 0
        for part, results in parts:
            base = next(variant for variant in results.variants if variant.name == results.baseline)
            for (width, row), one in _by_cell(results).items():
                if width == found.bits and isinstance(one, Variant):
                    shares.append((_worse(one, base, results), part, row))
                    losses += scores(results).loses(one.delta)
        if not shares:
            continue
        worst, part, row = max(shares, key=lambda share: share[0].value)
        least = (
            f"{words.fixed(worst.value, 2)}% of the metric {words.between(worst.low, worst.high, 2)} ({part}, {row})"
        )
        what = (
            f"the largest loss is {least}" if worst.value > 0 else f"nothing loses; the least gain is by {part}, {row}"
        )
        some = f"{losses} of {len(shares)} {'is' if losses == 1 else 'are'}" if losses else "none is"
        said.append(f"At {words.plural(found.bits, 'bit')} {what}; {some} a measurable loss.")
    return said


def _worse(one: Variant, base: Variant, results: Results) -> Interval:
    """How much of float32's metric a variant loses, in per cent, whichever way the metric points."""
    share = percent(one, base.metric.value)
    change = Interval(share.value - 100, share.low - 100, share.high - 100)
    return change.negative() if scores(results).higher_is_better else change


def note(parts: Sequence[tuple[str, Results]]) -> str:
    """What the numbers are."""
    metrics = "; ".join(
        f"{part}: {scores(results).label} on {results.variants[0].metric.samples:,} evaluation samples"
        for part, results in parts
    )
    kinds: dict[str, list[str]] = {}
    for part, results in parts:
        kinds.setdefault(words.interval(results.variants[0].metric.samples), []).append(part)
    intervals = "; ".join(
        f"{kind} ({words.listed(names)})" if len(kinds) > 1 else kind for kind, names in kinds.items()
    )
    return (
        f"{metrics}. [low, high] is {intervals}. Per cent of no quantization: the metric over float32's, with the "
        "interval of their paired difference over float32's metric; 100% lies inside where there is no measurable "
        "difference."
    )


def reasons(parts: Sequence[tuple[str, Results]]) -> list[str]:
    """Why cells hold words in place of numbers."""
    return [f"{part}, {refusal.name}: {refusal.reason}" for part, results in parts for refusal in results.refusals]


def percent(variant: Variant, base: float) -> Interval:
    """A variant's metric in per cent of float32's, which is ``base``."""
    delta = variant.delta or Interval(0.0, 0.0, 0.0)
    return Interval(*(100 * (1 + x / base) for x in (delta.value, delta.low, delta.high)))


def _by_cell(results: Results) -> dict[tuple[int, str], Variant | Refusal]:
    """What was built of each (width, row)."""
    labels = bits.labels(results)
    found: dict[tuple[int, str], Variant | Refusal] = {}
    asked: tuple[Variant | Refusal, ...] = (*results.variants, *results.refusals)
    for one in asked:
        width = bits.weight_bits(one)
        if one.name != results.baseline and width is not None and one.method not in bits.STORED:
            found[width, labels.get(one.name, bits.label(one))] = one
    return found


def _columns(
    parts: Sequence[tuple[str, Results]], found: dict[str, dict[tuple[int, str], Variant | Refusal]], width: int,
    rows: Sequence[str], relative: bool,
) -> Iterator[Column]:  # fmt: skip
    yield Column("method", "method", tuple(Cell(row) for row in (FLOAT, *rows)), numeric=False)
    for part, results in parts:
        base = next(variant for variant in results.variants if variant.name == results.baseline)
        cells = [found[part].get((width, row)) for row in rows]
        shown = tuple(_cell(one, results, base, relative) for one in (base, *cells))
        yield Column(part, f"{part}, {scores(results).label}", shown)


def _cell(one: Variant | Refusal | None, results: Results, base: Variant, relative: bool) -> Cell:
    if one is None:
        return Cell(NOT_RUN, tone="muted")
    if isinstance(one, Refusal):
        return Cell(one.kind, tone="muted")
    style = scores(results)
    if not relative:
        return Cell(style.value(one.metric.value), style.interval(one.metric.low, one.metric.high))
    if one is base:
        return Cell("100%", tone="muted")
    share = percent(one, base.metric.value)
    return Cell(f"{words.fixed(share.value, 2)}%", words.between(share.low, share.high, 2))
