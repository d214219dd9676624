"""Values with intervals over a few widths, a line for each series: accuracy against bits, and a fit with its points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qdeploy.core.records import Interval
from qdeploy.reports import axes
from qdeploy.reports.axes import Axis
from qdeploy.reports.plots import FRAME, HEIGHT, WIDTH, grid
from qdeploy.reports.svg import element, number, picture

COLOURS = 8  # of the style sheet; beyond it they come again, dashed
DODGE = 5.0  # between the marks of neighbouring series at one width, so that their intervals can be told apart
ROW, MARGIN, COLUMNS = 19, 14, 2  # of the key under the picture
LETTERS = 30  # of a series' name there


@dataclass(frozen=True, slots=True)
class Spot:
    """A value at a width, and what a pointer that rests on it reads."""

    x: float
    y: Interval
    text: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A series: its marks, and the line through them or, where ``line`` is given, the line that a fit draws."""

    label: str
    spots: tuple[Spot, ...]
    line: tuple[tuple[float, float], ...] | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """A value that does not depend on the width: a level line with its interval."""

    label: str
    value: Interval


def curves(
    series: Sequence[Curve], *, x: str, y: str, title: str, level: Level | None = None, logs: str = "x"
) -> Markup:
    """The picture. ``x`` and ``y`` name the axes; ``logs`` is the one that is logarithmic, "x" or "y"."""
    spots = [spot for curve in series for spot in curve.spots]
    widths = sorted({spot.x for spot in spots})
    ends = (widths[0] / 1.3, widths[-1] * 1.3) if logs == "x" else (widths[0] - 0.5, widths[-1] + 0.5)
    across = Axis(*ends, FRAME.left, FRAME.right, tuple(widths), log=logs == "x")
    values = [value for spot in spots for value in (spot.y.low, spot.y.value, spot.y.high)]
    values += [value for curve in series for _, value in curve.line or ()]
    values += [level.value.low, level.value.high] if level else []
    if logs == "y":
        up = axes.logarithmic([value for value in values if value > 0], FRAME.bottom, FRAME.top)
    else:
        up = axes.linear(values, FRAME.bottom, FRAME.top)
    key = [(level.label, "level"), *_kinds(series)] if level else _kinds(series)
    shifts = [(i - (len(series) - 1) / 2) * DODGE for i in range(len(series))]
    drawn = [
        _curve(curve, kind, across, up, shift)
        for curve, (_, kind), shift in zip(series, _kinds(series), shifts, strict=True)
    ]
    height = HEIGHT + MARGIN + ROW * -(-len(key) // COLUMNS)
    return picture(
        grid(across, up, x, y),
        _level(level, up) if level else Markup(""),
        *drawn,
        _key(key),
        title=title,
        viewBox=f"0 0 {WIDTH} {height}",
        class_="chart",
    )


def _kinds(series: Sequence[Curve]) -> list[tuple[str, str]]:
    return [
        (curve.label, f"series s{i % COLOURS}" + (" again" if i >= COLOURS else "")) for i, curve in enumerate(series)
    ]


def _level(level: Level, up: Axis) -> Markup:
    high, low, at = up.at(level.value.high), up.at(level.value.low), up.at(level.value.value)
    width = FRAME.right - FRAME.left
    return element(
        "g",
        element("title", level.label),
        element("rect", class_="band", x=FRAME.left, y=high, width=width, height=max(low - high, 0.5)),
        element("line", x1=FRAME.left, x2=FRAME.right, y1=at, y2=at),
        class_="level",
    )


def _curve(curve: Curve, kind: str, across: Axis, up: Axis, shift: float) -> Markup:
    at = [(across.at(spot.x) + shift, up.at(spot.y.value), spot) for spot in curve.spots]
    line = [(a, b) for a, b, _ in at] if curve.line is None else [(across.at(a), up.at(b)) for a, b in curve.line]
    parts = []
    if len(line) > 1:
        path = "M" + "L".join(f"{number(a)} {number(b)}" for a, b in sorted(line))
        parts.append(element("path", class_="run", d=path))
    for a, b, spot in at:
        parts.append(element("line", class_="reach", x1=a, x2=a, y1=up.at(spot.y.low), y2=up.at(spot.y.high)))
        parts.append(element("circle", element("title", spot.text), class_="spot", cx=a, cy=b, r=4.5))
    return element("g", *parts, class_=kind)


def _key(entries: Sequence[tuple[str, str]]) -> Markup:
    """What each line is, below the picture."""
    parts = []
    for i, (text, kind) in enumerate(entries):
        left = FRAME.left + (i % COLUMNS) * (FRAME.right - FRAME.left) / COLUMNS
        middle = HEIGHT + MARGIN + ROW * (i // COLUMNS)
        mark = [element("line", class_="run", x1=left, x2=left + 18, y1=middle, y2=middle)]
        mark += [] if kind == "level" else [element("circle", class_="spot", cx=left + 9, cy=middle, r=4)]
        short = text if len(text) <= LETTERS else text[: LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
        name = element("text", element("title", text), short, class_="key", x=left + 25, y=middle + 4)
        parts.append(element("g", *mark, name, class_=kind))
    return element("g", *parts, aria_hidden="true")
