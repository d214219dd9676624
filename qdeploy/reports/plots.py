"""The pictures of a report, as inline SVG. Classes carry the colours, so that one drawing serves light and dark."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qdeploy.core.records import Histogram, Interval, Layer
from qdeploy.reports import axes, labels, pareto, words
from qdeploy.reports.axes import Axis
from qdeploy.reports.labels import Box
from qdeploy.reports.svg import element, number, percent, picture

WIDTH, HEIGHT = 460, 330
FRAME = Box(60, 14, WIDTH - 12, HEIGHT - 46)
LETTER, LINE = 7.0, 15.0  # the size that a label is given room for, a little more than it takes
BINS = 64  # a histogram is drawn with at most this many
BIN_WIDTH, BIN_HEIGHT = 4, 60
ROW, BAR = 46, 9  # of the bars: a line of text over each
NAME_LETTERS = 38  # of a name, beside its time


@dataclass(frozen=True, slots=True)
class Point:
    """A variant in a trade-off plot. ``score`` and its interval are in the unit that the axis shows."""

    name: str
    cost: Interval
    score: Interval
    baseline: bool
    text: str  # what a pointer that rests on it reads


def tradeoff(points: Sequence[Point], *, cost: str, score: str, log: bool, higher_is_better: bool, unit: str) -> Markup:
    """Score against cost with 95% intervals; the Pareto line joins the variants that none beats on both.

    ``cost`` and ``score`` are the names of the axes; ``unit`` is "bytes" or "ms" and decides how ticks are written.
    """
    costs = [value for p in points for value in (p.cost.low, p.cost.value, p.cost.high)]
    bounds = [value for p in points for value in (p.score.low, p.score.high)]
    x = (
        axes.logarithmic(costs, FRAME.left, FRAME.right)
        if log
        else axes.linear(costs, FRAME.left, FRAME.right, zero=True)
    )
    y = axes.linear(bounds, FRAME.bottom, FRAME.top)
    front = pareto.front([(p.cost.value, p.score.value) for p in points], higher_is_better=higher_is_better)
    corners = [(x.at(points[i].cost.value), y.at(points[i].score.value)) for i in front]
    best = ", ".join(points[i].name for i in front)
    return picture(
        grid(x, y, cost, score, unit),
        _staircase(corners),
        *(_whiskers(p, x, y) for p in points),
        *(_mark(p, x, y, i in front) for i, p in enumerate(points)),
        _names(points, x, y, _treads(corners)),
        title=f"{score} against {cost}, {len(points)} variants. On the Pareto line: {best}.",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        class_="chart",
    )


def grid(x: Axis, y: Axis, cost: str, score: str, unit: str = "") -> Markup:
    """Axes, ticks and their names, in the frame."""
    places = _places(y.ticks)
    parts = []
    for tick in y.ticks:
        parts.append(element("line", class_="grid", x1=FRAME.left, x2=FRAME.right, y1=y.at(tick), y2=y.at(tick)))
        text = words.fixed(tick, words.decimals(tick, 1) if y.log else places).replace("-", "−")
        parts.append(element("text", text, class_="tick end", x=FRAME.left - 8, y=y.at(tick) + 4))
    for tick in x.ticks:
        parts.append(element("line", class_="axis", x1=x.at(tick), x2=x.at(tick), y1=FRAME.bottom, y2=FRAME.bottom + 5))
        digits = words.decimals(x.ticks[-1], 2) if unit else _places(x.ticks)
        text = words.size(round(tick)) if unit == "bytes" else words.fixed(tick, digits)
        inside = min(x.at(tick), WIDTH - LETTER * len(text) / 2)  # the last one would run out of the picture
        parts.append(element("text", text, class_="tick middle", x=inside, y=FRAME.bottom + 20))
    parts.append(element("line", class_="axis", x1=FRAME.left, x2=FRAME.right, y1=FRAME.bottom, y2=FRAME.bottom))
    middle = (FRAME.left + FRAME.right) / 2
    parts.append(element("text", cost, class_="label middle", x=middle, y=HEIGHT - 6))
    turn = f"rotate(-90 12 {number((FRAME.top + FRAME.bottom) / 2)})"
    parts.append(element("text", score, class_="label middle", x=12, y=(FRAME.top + FRAME.bottom) / 2, transform=turn))
    return element("g", *parts, aria_hidden="true")


def _places(ticks: Sequence[float]) -> int:
    """The decimals that show every tick as it is."""
    return next((places for places in range(10) if all(round(tick, places) == tick for tick in ticks)), 10)


def _staircase(front: Sequence[tuple[float, float]]) -> Markup:
    """The Pareto line. It is a staircase: between two variants there is nothing that one could choose."""
    if len(front) < 2:
        return Markup("")
    steps = f"M{number(front[0][0])} {number(front[0][1])}" + "".join(f"H{number(a)}V{number(b)}" for a, b in front[1:])
    return element("path", class_="pareto", d=steps)


def _treads(front: Sequence[tuple[float, float]]) -> list[Box]:
    """The level parts of the staircase, which a name should not cover."""
    return [Box(a, y - 2, b, y + 2) for (a, y), (b, _) in itertools.pairwise(front)]


def _whiskers(point: Point, x: Axis, y: Axis) -> Markup:
    at_x, at_y = x.at(point.cost.value), y.at(point.score.value)
    lines = [element("line", x1=at_x, x2=at_x, y1=y.at(point.score.low), y2=y.at(point.score.high))]
    if point.cost.high > point.cost.low:
        lines.append(element("line", x1=x.at(point.cost.low), x2=x.at(point.cost.high), y1=at_y, y2=at_y))
    return element("g", *lines, class_="whisker")


def _mark(point: Point, x: Axis, y: Axis, best: bool) -> Markup:
    kind = "baseline" if point.baseline else "best" if best else "other"
    title = element("title", point.text)
    at = {"cx": x.at(point.cost.value), "cy": y.at(point.score.value)}
    return element("circle", title, class_=f"mark {kind}", r=5.5, **at)


def _names(points: Sequence[Point], x: Axis, y: Axis, treads: Sequence[Box]) -> Markup:
    """The names beside their marks, with a thin line where one had to move away."""
    marks = [(x.at(p.cost.value), y.at(p.score.value)) for p in points]
    bars = [
        Box(at - 3, y.at(p.score.high), at + 3, y.at(p.score.low)) for p, (at, _) in zip(points, marks, strict=True)
    ]
    boxes = labels.place(marks, [(len(p.name) * LETTER, LINE) for p in points], FRAME, [*bars, *treads])
    parts = []
    for point, (at_x, at_y), box in zip(points, marks, boxes, strict=True):
        middle = (box.top + box.bottom) / 2
        near = min(max(at_x, box.left), box.right)
        if abs(middle - at_y) > LINE or abs(near - at_x) > 2 * labels.GAP:
            parts.append(element("line", class_="leader", x1=at_x, y1=at_y, x2=near, y2=middle))
        anchor = "end" if box.right <= at_x else "start" if box.left >= at_x else "middle"
        place = {"end": box.right, "start": box.left, "middle": (box.left + box.right) / 2}[anchor]
        parts.append(element("text", point.name, class_=f"name {anchor}", x=place, y=middle + 4))
    return element("g", *parts, aria_hidden="true")


@dataclass(frozen=True, slots=True)
class Bar:
    """A bundle in a picture of times. Without a time its row is empty."""

    name: str
    time: Interval | None  # milliseconds
    text: str  # the time and what goes with it, in words
    kind: str  # "best", "baseline" or "other"


def bars(rows: Sequence[Bar], title: str) -> Markup:
    """Times as bars from zero, with their 95% intervals, on a scale of their own."""
    times = [value for row in rows if row.time for value in (row.time.value, row.time.high)]
    axis = axes.linear(times, 1.0, WIDTH - 1.0, zero=True, ticks=4)
    foot = ROW * len(rows) + 4
    parts = [element("line", class_="grid", x1=axis.at(t), x2=axis.at(t), y1=0, y2=foot) for t in axis.ticks]
    places = words.decimals(axis.ticks[1], 2)
    for i, tick in enumerate(axis.ticks):
        side = "start" if i == 0 else "end" if tick == axis.ticks[-1] else "middle"
        text = words.fixed(tick, places) + (" ms" if tick == axis.ticks[-1] else "")
        parts.append(element("text", text, class_=f"tick {side}", x=axis.at(tick), y=foot + 16))
    drawn = [element("g", *parts, aria_hidden="true")]
    drawn += [_bar(row, axis, ROW * i) for i, row in enumerate(rows)]
    return picture(*drawn, title=title, viewBox=f"0 0 {WIDTH} {foot + 22}", class_="chart")


def _bar(row: Bar, axis: Axis, top: int) -> Markup:
    """Name and time, and below them the bar with its interval."""
    name = row.name if len(row.name) <= NAME_LETTERS else row.name[: NAME_LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
    parts = [
        element("title", f"{row.name}: {row.text}"),
        element("text", name, class_="name", x=1, y=top + 18),
        element("text", row.text, class_="time end", x=WIDTH - 1, y=top + 18),
    ]
    if row.time is not None:
        end, middle = axis.at(row.time.value), top + 26 + BAR / 2
        length = max(end - axis.start, 1.0)
        parts.append(element("rect", class_="time", x=axis.start, y=top + 26, width=length, height=BAR, rx=2))
        low, high = axis.at(row.time.low), axis.at(row.time.high)
        parts.append(element("line", class_="interval", x1=low, x2=high, y1=middle, y2=middle))
        parts += [element("line", class_="interval", x1=x, x2=x, y1=middle - 3.5, y2=middle + 3.5) for x in (low, high)]
    return element("g", *parts, class_=row.kind)


def sqnr_axis(layers: Sequence[Layer]) -> Axis:
    """One axis of decibels for all rows of a variant, from 0 to the next tick, in shares of the width."""
    values = [v for layer in layers for v in (layer.sqnr_db, layer.sqnr_local_db) if v is not None]
    return axes.linear([*values, 0.0, 10.0], 0.0, 1.0, ticks=5)


def sqnr_scale(axis: Axis) -> Markup:
    """The ticks' numbers, for the head of the rows."""
    texts = (
        element("text", words.fixed(tick, 0), class_="tick middle", x=percent(axis.at(tick)), y=12)
        for tick in axis.ticks
    )
    return element("svg", *texts, class_="row", aria_hidden="true")


def sqnr_row(layer: Layer, axis: Axis) -> Markup:
    """One layer's error: a ring where it stands alone (local), a disc where it stands in the model (cumulative)."""
    parts = [
        element("line", class_="grid", x1=percent(axis.at(t)), x2=percent(axis.at(t)), y1=-2, y2=24) for t in axis.ticks
    ]
    local, total = layer.sqnr_local_db, layer.sqnr_db
    if local is not None and total is not None:
        parts.append(
            element("line", class_="span", x1=percent(axis.at(local)), x2=percent(axis.at(total)), y1=11, y2=11)
        )
    if local is not None:
        parts.append(element("circle", class_="mark local", cx=percent(axis.at(local)), cy=11, r=4))
    if total is not None:
        parts.append(element("circle", class_="mark total", cx=percent(axis.at(total)), cy=11, r=4.5))
    return element("svg", *parts, class_="row", aria_hidden="true")


def histogram(data: Histogram, title: str) -> Markup:
    """Counts on a logarithmic scale, with the range that the quantizer chose marked and the rest shaded."""
    counts = _rebinned(data.counts)
    low, high = min(data.low, data.range_low), max(data.high, data.range_high)
    span = (high - low) or 1.0
    width = BINS * BIN_WIDTH

    def at(value: float) -> float:
        return (value - low) / span * width

    top = math.log1p(max(counts, default=0)) or 1.0
    heights = [round(BIN_HEIGHT * math.log1p(n) / top) for n in counts]
    step = (at(data.high) - at(data.low)) / max(1, len(counts))
    path = f"M{number(at(data.low))} {BIN_HEIGHT}" + "".join(f"V{BIN_HEIGHT - h}h{number(step)}" for h in heights)
    left, right = at(data.range_low), at(data.range_high)
    parts = [element("path", class_="bars", d=f"{path}V{BIN_HEIGHT}Z")]
    for start, end in ((0.0, left), (right, float(width))):
        if end - start > 0.5:
            parts.append(element("rect", class_="outside", x=start, y=0, width=end - start, height=BIN_HEIGHT))
    parts += [element("line", class_="range", x1=edge, x2=edge, y1=0, y2=BIN_HEIGHT) for edge in (left, right)]
    box = f"-1 0 {width + 2} {BIN_HEIGHT}"
    return picture(*parts, title=title, viewBox=box, preserveAspectRatio="none", class_="histogram")


def _rebinned(counts: Sequence[int]) -> list[int]:
    """Neighbouring bins added up until at most ``BINS`` are left."""
    group = math.ceil(len(counts) / BINS) or 1
    return [sum(counts[i : i + group]) for i in range(0, len(counts), group)]


def coverage(layers: Sequence[Layer]) -> Markup:
    """One bar, a segment a layer in network order, as wide as its share of the MACs; hollow ones run in float32."""
    total = sum(layer.macs for layer in layers)
    integer = sum(layer.macs for layer in layers if layer.integer)
    parts, at = [], 0.0
    for layer in layers:
        part = layer.macs / total if total else 0.0
        if part == 0:
            continue
        kind = "integer" if layer.integer else "float"
        title = element("title", f"{layer.name}: {words.share(part)} of MACs, {layer.kernel} ({kind})")
        parts.append(element("rect", title, class_=kind, x=percent(at), y=0, width=percent(part), height="100%"))
        at += part
    done = words.share(integer / total if total else 0.0)
    return picture(*parts, title=f"{done} of multiply-accumulates run in integer kernels", class_="coverage")


def difference(delta: Interval, reach: float, *, loses: bool) -> Markup:
    """A difference with its interval around zero, on an axis that reaches ``reach`` to either side."""

    def at(value: float) -> str:
        return percent(0.5 + 0.5 * max(-1.0, min(1.0, value / reach)) if reach else 0.5)

    return element(
        "svg",
        element("line", class_="zero", x1="50%", x2="50%", y1=0, y2=16),
        element("line", class_="span", x1=at(delta.low), x2=at(delta.high), y1=8, y2=8),
        element("circle", class_="mark", cx=at(delta.value), cy=8, r=3.5),
        class_="difference bad" if loses else "difference",
        aria_hidden="true",
    )
