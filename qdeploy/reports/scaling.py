"""A law of accuracy loss: L(bits, parameters) = a * 2^(-b * bits) * parameters^(-c), fitted to what was measured.

Least squares on the losses themselves, each by its standard error: a loss that cannot be told from none says that the
law is small there, which its logarithm could not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.records import Interval, Results
from qdeploy.reports import bits, curves, words
from qdeploy.reports.comparison import Cell, Column
from qdeploy.reports.figures import Figure
from qdeploy.reports.words import Scores

Float64 = NDArray[np.float64]

CONSTANTS = 3
RESAMPLES = 2000
SEED = 0
STEPS, PATIENCE = 200, 5  # of Levenberg and Marquardt, and those without a gain that end it
FARTHEST = 60.0  # of a constant or an exponent, in natural logarithms: beyond it nothing is told apart


@dataclass(frozen=True, slots=True)
class Point:
    """The loss of one variant: ``loss`` is float32's metric minus its own, positive where it is worse."""

    name: str
    bits: int
    parameters: int
    loss: Interval

    @property
    def measurable(self) -> bool:
        """Whether the 95% interval of the loss is above 0."""
        return self.loss.low > 0


@dataclass(frozen=True, slots=True)
class Fit:
    """The constants with their 95% intervals, and how well they fit.

    ``deviations`` are (measured - law) / standard error, ``misfit`` their chi^2 over the degrees of freedom: about 1
    where the law holds as well as can be measured.
    """

    a: Interval
    b: Interval
    c: Interval
    misfit: float
    deviations: tuple[float, ...]

    def at(self, width: float, parameters: float) -> float:
        """The loss that the law gives."""
        return float(self.a.value * 2.0 ** (-self.b.value * width) * parameters ** (-self.c.value))


@dataclass(frozen=True, slots=True)
class Scaling:
    """The points of one method, and the fit, or why there is none."""

    method: str
    points: tuple[Point, ...]
    fit: Fit | None
    reason: str = ""


def scaling(parts: Sequence[tuple[str, Results]]) -> list[Scaling]:
    """A law for each method over builds of one model in several sizes: (name, results) of each.

    Of the variants that all of them have, so that the same ones stand in one series everywhere.
    """
    common = set.intersection(*({variant.name for variant in results.variants} for _, results in parts))
    groups: dict[str, list[Point]] = {}
    for part, results in parts:
        shared = replace(results, variants=tuple(v for v in results.variants if v.name in common))
        for series in bits.series(shared):
            for variant in series.variants:
                if variant.method in bits.STORED or variant.delta is None or results.parameters is None:
                    continue
                worse = variant.delta.negative() if variant.metric.higher_is_better else variant.delta
                width = bits.weight_bits(variant) or 0
                point = Point(f"{part} {variant.name}", width, results.parameters, worse)
                groups.setdefault(series.label, []).append(point)
    return [fitted(method, points) for method, points in groups.items() if _vary(points)]


def fitted(method: str, points: Sequence[Point]) -> Scaling:
    """The law through all points, if enough of them are measurable losses to tell its constants."""
    points = tuple(points)
    told = [point for point in points if point.measurable]
    if len(told) < CONSTANTS or len(points) == CONSTANTS:
        count = "no measurable loss" if not told else f"{len(told)} measurable loss" + "es" * (len(told) > 1)
        return Scaling(method, points, None, f"{count} cannot tell {CONSTANTS} constants and their error")
    if not _vary(told):
        return Scaling(method, points, None, "the measurable losses do not differ both in bits and in parameters")
    if np.linalg.matrix_rank(_design(told)) < CONSTANTS:
        return Scaling(method, points, None, "bits and parameters of the measurable losses go together")
    return Scaling(method, points, _fit(points, told))


def _vary(points: Sequence[Point]) -> bool:
    return len({point.bits for point in points}) > 1 and len({point.parameters for point in points}) > 1


def _design(points: Sequence[Point]) -> Float64:
    """[N, 3]: what ln a, b and c are multiplied by in ln L, so that their sum is ln L."""
    return np.array([[1.0, -math.log(2) * point.bits, -math.log(point.parameters)] for point in points])


def _fit(points: Sequence[Point], told: Sequence[Point]) -> Fit:
    """Weighted least squares, with intervals from fits to losses drawn again within their standard errors.

    The errors are taken to be independent, and larger than their intervals say where the law misses by more
    (Birge 1932).
    """
    losses, errors = np.array([point.loss.value for point in points]), _standard_errors(points)
    design = _design(points)
    middle = np.array([0.0, *design[:, 1:].mean(axis=0)])
    design = design - middle  # so that ln a and the exponents can be told apart by a computer
    logs = np.log([point.loss.value for point in told])
    start = np.linalg.lstsq(_design(told) - middle, logs, rcond=None)[0]
    best = _least_squares(design, losses[None], errors, start)[0]
    deviations = (losses - np.exp(design @ best)) / errors
    misfit = float(np.sum(deviations**2)) / (len(points) - CONSTANTS)
    noise = np.random.default_rng(SEED).standard_normal((RESAMPLES, len(points))) * errors * max(1.0, misfit) ** 0.5
    drawn = _least_squares(design, np.exp(design @ best) + noise, errors, best)
    found = np.concatenate([best[None], drawn])
    found[:, 0] -= found[:, 1:] @ middle[1:]  # ln a of the law itself
    low, high = np.percentile(found[1:], [2.5, 97.5], axis=0)
    ends = [Interval(float(found[0, i]), float(low[i]), float(high[i])) for i in range(CONSTANTS)]
    a = Interval(math.exp(ends[0].value), math.exp(ends[0].low), math.exp(ends[0].high))
    return Fit(a, ends[1], ends[2], misfit, tuple(float(deviation) for deviation in deviations))


def _standard_errors(points: Sequence[Point]) -> Float64:
    """Those of the losses, by their intervals; none is much below the others', as an interval of one value would be."""
    errors = np.array([(point.loss.high - point.loss.low) / (2 * NormalDist().inv_cdf(0.975)) for point in points])
    spread = errors[errors > 0]
    return np.maximum(errors, 0.01 * float(np.median(spread))) if spread.size else np.ones_like(errors)


def _least_squares(design: Float64, losses: Float64, errors: Float64, start: Float64) -> Float64:
    """[K, 3]: for each row of ``losses`` [K, N] what minimizes sum(((losses - exp(design @ x)) / errors)^2).

    Levenberg and Marquardt's steps, all rows at once.
    """
    x = np.tile(start, (len(losses), 1))
    damping = np.full(len(losses), 1e-3)

    def law(at: Float64) -> Float64:
        return np.exp(np.clip(at @ design.T, -FARTHEST, FARTHEST))

    def cost(at: Float64) -> Float64:
        squares: Float64 = np.square((losses - law(at)) / errors).sum(axis=1)
        return squares

    least, idle = cost(x), np.zeros(len(losses), int)
    for _ in range(STEPS):
        values = law(x)
        slopes = (values / errors)[:, :, None] * design
        normal = slopes.transpose(0, 2, 1) @ slopes
        diagonal = np.einsum("kii->ki", normal)
        diagonal *= 1 + damping[:, None]
        diagonal += 1e-12
        downhill = np.einsum("kni,kn->ki", slopes, (losses - values) / errors)
        tried = np.clip(x + np.linalg.solve(normal, downhill[:, :, None])[:, :, 0], -FARTHEST, FARTHEST)
        found = cost(tried)
        better = found < least
        idle = np.where(least - found > 1e-9 * least, 0, idle + 1)
        x[better], least[better] = tried[better], found[better]
        damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-12, 1e12)
        if (idle > PATIENCE).all():
            break
    return x


def sentences(found: Scaling, style: Scores) -> list[str]:
    """The law in words, and how sure it is."""
    unit = " (a fraction)" if style.percent else ""
    if found.fit is None:
        return [f"{found.method}: no law is fitted: {found.reason}."]
    fit, told = found.fit, sum(point.measurable for point in found.points)
    return [
        f"{found.method}: loss of {style.noun}{unit} = a * 2^(-b * bits) * parameters^(-c) with "
        f"a = {_constant(fit.a)}, b = {_constant(fit.b)}, c = {_constant(fit.c)}, over "
        f"{words.plural(len(found.points), 'point')}, {told} of them measurable losses; the largest deviation is "
        f"{words.fixed(max(map(abs, fit.deviations)), 1)} standard errors, and chi^2 over the degrees of freedom "
        f"{words.fixed(fit.misfit, 2)}.",
        _bits_words(fit),
        _size_words(fit),
    ]


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
    """One row a point: what was measured, what the law gives, and how far apart they are."""
    points, fit = found.points, found.fit
    laws = [None if fit is None else fit.at(point.bits, point.parameters) for point in points]
    deviations = [None] * len(points) if fit is None else fit.deviations
    return (
        Column("name", "variant", tuple(Cell(point.name) for point in points), numeric=False),
        Column("bits", "bits", tuple(Cell(str(point.bits)) for point in points)),
        Column("parameters", "parameters", tuple(Cell(f"{point.parameters:,}") for point in points)),
        Column("loss", f"loss of {style.noun}", tuple(_loss(point, style) for point in points)),
        Column(
            "law", "the law", tuple(Cell("-" if law is None else style.difference(law, sign=False)) for law in laws)
        ),
        Column("deviation", "apart, in standard errors", tuple(_deviation(deviation) for deviation in deviations)),
    )


def note() -> str:
    """How the law is fitted."""
    return (
        "Fitted by least squares on all losses, each by its standard error, so that one that cannot be told from none "
        f"counts as what it is; intervals of a, b and c from {RESAMPLES:,} draws of the losses within their errors. "
        "bits: those that the variant asks for. A law of so few points describes them; it does not predict other "
        "networks."
    )


def figure(found: Scaling, style: Scores) -> Figure | None:
    """The measurable losses against bits, a colour a size, with the law's lines; None without a law.

    The others have no place on an axis of logarithms.
    """
    fit = found.fit
    if fit is None:
        return None
    told = [point for point in found.points if point.measurable]
    widths = sorted({point.bits for point in told})
    steps = np.linspace(widths[0], widths[-1], 24)
    drawn = []
    for size, group in itertools.groupby(sorted(told, key=lambda p: p.parameters), lambda p: p.parameters):
        spots = tuple(curves.Spot(p.bits, _scaled(p.loss, style.factor), p.name) for p in group)
        line = tuple((float(x), fit.at(float(x), size) * style.factor) for x in steps)
        drawn.append(curves.Curve(f"{words.count(size)} parameters", spots, line))
    unit = f" ({style.unit.strip()})" if style.unit else ""
    name = f"loss of {style.noun}{unit}, log"
    title = f"{name}, against bits, {found.method}: what is measurable, and the fitted law as lines."
    picture = curves.curves(drawn, x="bits of a weight", y=name, title=title, logs="y")
    return Figure("scaling", f"Loss against bits and size, {found.method}", picture)


def _deviation(deviation: float | None) -> Cell:
    return Cell("-", tone="muted") if deviation is None else Cell(words.fixed(deviation, 1, sign=True))


def _loss(point: Point, style: Scores) -> Cell:
    interval = style.difference_interval(point.loss.low, point.loss.high)
    return Cell(style.difference(point.loss.value), interval)


def _scaled(loss: Interval, factor: float) -> Interval:
    return Interval(loss.value * factor, loss.low * factor, loss.high * factor)


def _constant(value: Interval) -> str:
    """A constant with its interval, in three digits each."""
    return f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"
