"""A law of accuracy loss: L(bits, parameters) = a * 2^(-b * bits) * parameters^(-c), fitted to what was measured.

Least squares on logarithms: ln L = ln a - b ln 2 * bits - c ln parameters. Only a loss that is measurable has a
logarithm that means something: a point whose 95% interval reaches 0 is left out, and said to be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.records import Interval, Results
from qdeploy.reports import bits, curves, words
from qdeploy.reports.comparison import Cell, Column
from qdeploy.reports.figures import Figure
from qdeploy.reports.words import Scores

CONSTANTS = 3
RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True, slots=True)
class Point:
    """The loss of one variant: ``loss`` is float32's metric minus its own, positive where it is worse."""

    name: str
    bits: int
    parameters: int
    loss: Interval


@dataclass(frozen=True, slots=True)
class Fit:
    """The constants with their 95% intervals, and how well they fit: ``residuals`` are ln(measured / fitted)."""

    a: Interval
    b: Interval
    c: Interval
    r_squared: float
    residuals: tuple[float, ...]

    def at(self, width: float, parameters: float) -> float:
        """The loss that the law gives."""
        return float(self.a.value * 2.0 ** (-self.b.value * width) * parameters ** (-self.c.value))


@dataclass(frozen=True, slots=True)
class Scaling:
    """The points of one method, those that were left out, and the fit, or why there is none."""

    method: str
    points: tuple[Point, ...]
    left_out: tuple[Point, ...]
    fit: Fit | None
    reason: str = ""


def scaling(parts: Sequence[tuple[str, Results]]) -> list[Scaling]:
    """A law for each method over builds of one model in several sizes: (name, results) of each."""
    groups: dict[str, list[Point]] = {}
    for part, results in parts:
        for series in bits.series(results):
            for variant in series.variants:
                if variant.method in bits.STORED or variant.delta is None or results.parameters is None:
                    continue
                worse = variant.delta.negative() if variant.metric.higher_is_better else variant.delta
                width = bits.weight_bits(variant) or 0
                point = Point(f"{part} {variant.name}", width, results.parameters, worse)
                groups.setdefault(series.label, []).append(point)
    return [fitted(method, points) for method, points in groups.items() if _vary(points)]


def fitted(method: str, points: Sequence[Point]) -> Scaling:
    """The law through the points whose loss is measurable."""
    kept = tuple(point for point in points if point.loss.low > 0)
    left = tuple(point for point in points if point.loss.low <= 0)
    if len(kept) <= CONSTANTS:
        count = "no measurable loss" if not kept else f"{len(kept)} measurable loss" + "es" * (len(kept) > 1)
        return Scaling(method, kept, left, None, f"{count} cannot tell {CONSTANTS} constants and their error")
    if not _vary(kept):
        return Scaling(method, kept, left, None, "the measurable losses do not differ both in bits and in parameters")
    design = np.array([[1.0, -math.log(2) * p.bits, -math.log(p.parameters)] for p in kept])
    if np.linalg.matrix_rank(design) < CONSTANTS:
        return Scaling(method, kept, left, None, "bits and parameters of the measurable losses go together")
    return Scaling(method, kept, left, _fit(design, np.log([p.loss.value for p in kept])))


def _vary(points: Sequence[Point]) -> bool:
    return len({point.bits for point in points}) > 1 and len({point.parameters for point in points}) > 1


def _fit(design: NDArray[np.float64], logs: NDArray[np.float64]) -> Fit:
    """Least squares, with intervals from a bootstrap of residuals: bits and sizes were chosen, not drawn."""
    solve = np.linalg.pinv(design)
    best = solve @ logs
    residuals = logs - design @ best
    count = len(logs)
    # A fit's residuals are smaller than the errors, by its degrees of freedom; their mean is 0, as there is a constant.
    errors = residuals * math.sqrt(count / (count - CONSTANTS))
    draws = np.random.default_rng(SEED).integers(0, count, (RESAMPLES, count))
    found = (design @ best + errors[draws]) @ solve.T
    low, high = np.percentile(found, [2.5, 97.5], axis=0)
    spread = float(np.sum((logs - logs.mean()) ** 2))
    r_squared = 1.0 - float(np.sum(residuals**2)) / spread if spread else 0.0
    ends = [Interval(float(best[i]), float(low[i]), float(high[i])) for i in range(CONSTANTS)]
    a = Interval(math.exp(ends[0].value), math.exp(ends[0].low), math.exp(ends[0].high))
    return Fit(a, ends[1], ends[2], r_squared, tuple(float(r) for r in residuals))


def sentences(found: Scaling, style: Scores) -> list[str]:
    """The law in words, how sure it is, and which points it does not use."""
    said = []
    unit = " (a fraction)" if style.percent else ""
    if found.fit is None:
        said.append(f"{found.method}: no law is fitted: {found.reason}.")
    else:
        fit = found.fit
        said += [
            f"{found.method}: loss of {style.noun}{unit} = a * 2^(-b * bits) * parameters^(-c) with "
            f"a = {_constant(fit.a)}, b = {_constant(fit.b)}, c = {_constant(fit.c)}; "
            f"R^2 = {words.fixed(fit.r_squared, 3)} (of logarithms) over {words.plural(len(found.points), 'point')}; "
            f"the largest residual is a factor of {words.fixed(math.exp(max(map(abs, fit.residuals))), 2)}.",
            _bits_words(fit),
            _size_words(fit),
        ]
    if found.left_out:
        names = words.listed([point.name for point in found.left_out])
        said.append(f"Left out, because the 95% interval of the loss reaches 0: {names}.")
    return said


def _bits_words(fit: Fit) -> str:
    if not fit.b.excludes(0):
        return "Whether the loss depends on the bits cannot be told: the interval of b includes 0."
    factors = Interval(*(2.0**x for x in (fit.b.value, fit.b.low, fit.b.high)))
    return f"One bit fewer multiplies the loss by {_constant(factors)}."


def _size_words(fit: Fit) -> str:
    if not fit.c.excludes(0):
        return "Whether the loss depends on the number of parameters cannot be told: the interval of c includes 0."
    factors = Interval(*(2.0**-x for x in (fit.c.value, fit.c.high, fit.c.low)))
    return f"Twice the parameters multiply the loss by {_constant(factors)}."


def columns(found: Scaling, style: Scores) -> tuple[Column, ...]:
    """One row a point: what was measured, what the law gives, and their ratio."""
    points = (*found.points, *found.left_out)
    fit, used = found.fit, len(found.points)
    laws = [None if fit is None else fit.at(p.bits, p.parameters) for p in points]
    ratios = [p.loss.value / law if law else None for p, law in zip(points[:used], laws, strict=False)]
    ratios += [None] * len(found.left_out)
    return (
        Column("name", "variant", tuple(Cell(point.name) for point in points), numeric=False),
        Column("bits", "bits", tuple(Cell(str(point.bits)) for point in points)),
        Column("parameters", "parameters", tuple(Cell(f"{point.parameters:,}") for point in points)),
        Column("loss", f"loss of {style.noun}", tuple(_loss(point, style) for point in points)),
        Column(
            "law", "the law", tuple(Cell("-" if law is None else style.difference(law, sign=False)) for law in laws)
        ),
        Column("ratio", "measured / law", tuple(_ratio(r, i < used) for i, r in enumerate(ratios))),
    )


def note() -> str:
    """How the law is fitted."""
    return (
        "Fitted by least squares on the logarithms of the losses that are measurable; intervals of a, b and c from "
        f"{RESAMPLES:,} bootstrap draws of the residuals, widened by the degrees of freedom. bits: those that the "
        "variant asks for. A law of so few points describes them; it does not predict other networks."
    )


def figure(found: Scaling, style: Scores) -> Figure | None:
    """The measurable losses against bits, a colour a size, with the law's lines; None without a law."""
    fit = found.fit
    if fit is None:
        return None
    widths = sorted({point.bits for point in found.points})
    steps = np.linspace(widths[0], widths[-1], 24)
    drawn = []
    for size, group in itertools.groupby(sorted(found.points, key=lambda p: p.parameters), lambda p: p.parameters):
        spots = tuple(curves.Spot(p.bits, _scaled(p.loss, style.factor), p.name) for p in group)
        line = tuple((float(x), fit.at(float(x), size) * style.factor) for x in steps)
        drawn.append(curves.Curve(f"{words.count(size)} parameters", spots, line))
    unit = f" ({style.unit.strip()})" if style.unit else ""
    name = f"loss of {style.noun}{unit}, log"
    title = f"{name}, against bits, {found.method}: measured, and the fitted law as lines."
    picture = curves.curves(drawn, x="bits of a weight", y=name, title=title, logs="y")
    return Figure("scaling", f"Loss against bits and size, {found.method}", picture)


def _ratio(ratio: float | None, used: bool) -> Cell:
    if not used:
        return Cell("left out", tone="muted")
    return Cell("-", tone="muted") if ratio is None else Cell(words.fixed(ratio, 2))


def _loss(point: Point, style: Scores) -> Cell:
    interval = style.difference_interval(point.loss.low, point.loss.high)
    return Cell(style.difference(point.loss.value), interval)


def _scaled(loss: Interval, factor: float) -> Interval:
    return Interval(loss.value * factor, loss.low * factor, loss.high * factor)


def _constant(value: Interval) -> str:
    """A constant with its interval, in three digits each."""
    return f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"
