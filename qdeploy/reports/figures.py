"""The pictures of a build: its metric against size, latency and bits. A page shows them inline or as files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

from markupsafe import Markup

from qdeploy.core.records import Interval, Metric, Results, Variant
from qdeploy.reports import bits, comparison, curves, plots, words
from qdeploy.reports.comparison import scores, timed
from qdeploy.reports.svg import standalone
from qdeploy.reports.typeset import typeset


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture, the caption over it, and a short word for its file."""

    key: str
    title: str
    drawing: Markup


def file(figure: Figure) -> str:
    """A picture as a file of its own, with the colours of the pages."""
    folder = resources.files("qdeploy.reports") / "templates"
    return standalone(figure.drawing, (folder / "chart.css").read_text(encoding="utf-8"))


def figures(results: Results) -> list[Figure]:
    """The pictures that the records allow: against size; against latency where two variants were timed alike; bits."""
    made = [draw(results) for draw in (_size, _latency, accuracy_against_bits)]
    return [figure for figure in made if figure is not None]


def tradeoffs(results: Results) -> list[Figure]:
    """Those of them with a Pareto line."""
    return [figure for figure in figures(results) if figure.key in ("size", "latency")]


def accuracy_against_bits(results: Results) -> Figure | None:
    """The metric against the bits of the weights, a line a method, float32 as a level; None where no width differs.

    Of several series of one method, those with the most widths are drawn.
    """
    style = scores(results)
    found = bits.series(results)
    quantized = [v for one in found for v in one.variants if v.method not in bits.STORED]
    if len({bits.weight_bits(variant) for variant in quantized}) < 2:
        return None
    most = {one.method: max(len(other.variants) for other in found if other.method == one.method) for one in found}
    shown = [one for one in found if len(one.variants) == most[one.method]]

    def spot(variant: Variant) -> curves.Spot:
        width = bits.weight_bits(variant) or 0
        text = f"{variant.name}: {width} bits, {style.value(variant.metric.value)}"
        return curves.Spot(float(width), _scaled(variant.metric, style.factor), typeset(text))

    def curve(one: bits.Series) -> curves.Curve:
        spots = tuple(spot(variant) for variant in one.variants)
        # Records without settings do not tell variants of one width apart: then nothing says what to join.
        return curves.Curve(one.label, spots, None if len({s.x for s in spots}) == len(spots) else ())

    drawn = [curve(one) for one in shown]
    base = next(v for v in results.variants if v.name == results.baseline)
    level = curves.Level(f"{base.name} (32 bits)", _scaled(base.metric, style.factor))
    name = style.label + (" (%)" if style.percent else "")
    title = (
        f"{name} against the bits of the weights: {words.listed([one.label for one in shown])}; {base.name} as a level."
    )
    picture = curves.curves(drawn, x="bits of a weight (log)", y=name, title=title, level=level)
    return Figure("bits", f"{words.capital(style.noun)} against bits", picture)


def _size(results: Results) -> Figure | None:
    costs = [(v, Interval(*3 * [float(v.size_bytes)])) for v in results.variants if v.size_bytes > 0]
    return _tradeoff(results, costs, "size", "file size (log)", "bytes") if costs else None


def _latency(results: Results) -> Figure | None:
    latencies = [(v, latency) for v in results.variants if (latency := timed(v.latency))]
    # Times at different settings do not belong on one axis: the first variant's setting is the one that is drawn.
    alike = [(v, t.p50_ms) for v, t in latencies if words.setting(t) == words.setting(latencies[0][1])]
    return _tradeoff(results, alike, "latency", "p50 latency (ms)", "ms") if len(alike) > 1 else None


def _tradeoff(results: Results, costs: list[tuple[Variant, Interval]], key: str, cost: str, unit: str) -> Figure:
    style = scores(results)
    drawing = plots.tradeoff(
        [_point(variant, found, results, style.value) for variant, found in costs],
        cost=cost, score=style.label + (" (%)" if style.percent else ""), log=unit == "bytes",
        higher_is_better=style.higher_is_better, unit=unit,
    )  # fmt: skip
    return Figure(key, f"{words.capital(style.noun)} against {key}", drawing)


def _point(variant: Variant, cost: Interval, results: Results, write: Callable[[float], str]) -> plots.Point:
    score = _scaled(variant.metric, scores(results).factor)
    p50 = comparison.p50(variant.latency).text
    text = typeset(f"{variant.name}: {write(variant.metric.value)}, {words.size(variant.size_bytes)}, p50 {p50}")
    return plots.Point(variant.name, cost, score, variant.name == results.baseline, text)


def _scaled(metric: Metric, factor: float) -> Interval:
    return Interval(metric.value * factor, metric.low * factor, metric.high * factor)
