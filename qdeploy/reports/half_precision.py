"""fp16 against bf16: what storing weights in 16 bits did to their values, weight by weight."""

from __future__ import annotations

from collections.abc import Sequence

from qdeploy.core.records import HalfPrecision, Results, Variant
from qdeploy.reports import words
from qdeploy.reports.comparison import Cell, Column

WORST = 12  # rows shown at once
NOTE = (
    "Counts of values: beyond the type's range (such a model is refused), not 0 before and 0 now, and subnormal, which "
    "have fewer digits than the type. Largest relative error: of the values that are not 0 now."
)


def stored(results: Results) -> list[Variant]:
    """The variants whose weights are stored in 16 bits."""
    return [variant for variant in results.variants if variant.half_precision]


def columns(results: Results, *, most: int | None = None) -> tuple[Column, ...]:
    """One row a weight, the largest relative errors first, and all of them together in the last.

    Only where there is more than one way of storing them; ``most`` limits the rows.
    """
    variants = stored(results)
    if len(variants) < 2:
        return ()
    names = sorted(
        dict.fromkeys(w.name for v in variants for w in v.half_precision), key=lambda n: -_worst(n, variants)
    )
    names = names[:most]
    first = [_find(name, variants) for name in names]
    listed = [
        Column("weight", "weight", (*(Cell(name) for name in names), Cell("all weights")), numeric=False),
        Column("values", "values", tuple(Cell(f"{w.values:,}") for w in [*first, total(variants[0])])),
        Column("largest", "largest magnitude", tuple(_small(w.largest) for w in [*first, total(variants[0])])),
    ]
    for variant in variants:
        known = {weight.name: weight for weight in variant.half_precision}
        rows = [*(known.get(name) for name in names), total(variant)]
        name = variant.name
        listed += [
            Column(f"beyond {name}", f"{name}: beyond range", tuple(_count(w.overflows if w else None) for w in rows)),
            Column(f"zeros {name}", f"{name}: become 0", tuple(_count(w.zeros if w else None) for w in rows)),
            Column(f"subnormal {name}", f"{name}: subnormal", tuple(_count(w.subnormals if w else None) for w in rows)),
            Column(f"error {name}", f"{name}: largest relative error", tuple(_error(w) for w in rows)),
        ]
    return tuple(listed)


def sentences(results: Results) -> list[str]:
    """One sentence a variant: how much of all its weights overflows, vanishes or loses digits."""
    said = []
    for variant in stored(results):
        seen = total(variant)
        said.append(
            f"{variant.name}: of {seen.values:,} stored weights {seen.overflows:,} are beyond its range, "
            f"{seen.zeros:,} become 0 and {seen.subnormals:,} are subnormal; the largest relative error is "
            f"{_error(seen).text}."
        )
    return said


def total(variant: Variant) -> HalfPrecision:
    """All weights of a variant together."""
    parts: Sequence[HalfPrecision] = variant.half_precision
    return HalfPrecision(
        "", sum(w.values for w in parts), max(w.largest for w in parts), sum(w.overflows for w in parts),
        sum(w.zeros for w in parts), sum(w.subnormals for w in parts), max(w.relative_error for w in parts),
    )  # fmt: skip


def _find(name: str, variants: Sequence[Variant]) -> HalfPrecision:
    return next(weight for variant in variants for weight in variant.half_precision if weight.name == name)


def _worst(name: str, variants: Sequence[Variant]) -> float:
    return max(w.relative_error for v in variants for w in v.half_precision if w.name == name)


def _count(count: int | None) -> Cell:
    return Cell("-", tone="muted") if count is None else Cell(f"{count:,}", tone="" if count else "muted")


def _small(value: float) -> Cell:
    return Cell(words.fixed(value, words.decimals(value)))


def _error(weight: HalfPrecision | None) -> Cell:
    if weight is None:
        return Cell("-", tone="muted")
    value = 100 * weight.relative_error
    return Cell(f"{words.fixed(value, words.decimals(value, 2))}%")
