"""Axes: where a value lies and which ticks to write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values in [low, high] to coordinates from ``start`` to ``end``, linearly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """The coordinate of ``value``; one outside the axis lies on its end."""
        low, high, clipped = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, clipped = math.log(low), math.log(high), math.log(clipped)
        return self.start + (self.end - self.start) * (clipped - low) / (high - low)


def linear(values: Sequence[float], start: float, end: float, *, zero: bool = False, ticks: int = 5) -> Axis:
    """A linear axis around ``values`` whose ends are ticks; ``zero`` starts it there."""
    low, high = (0.0 if zero else min(values)), max(values)
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1) * (not zero), low + 0.5 * (abs(low) or 1)
    step = _step((high - low) / ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = tuple(round(i * step, 10) for i in range(first, last + 1))
    return Axis(marks[0], marks[-1], start, end, marks)


def logarithmic(values: Sequence[float], start: float, end: float, *, margin: float = 1.25) -> Axis:
    """A logarithmic axis around positive ``values`` with ticks at 1, 2, 5 times the powers of ten."""
    low, high = min(values) / margin, max(values) * margin
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    # A short axis takes finer ticks, so that at least two are written; a long one whole decades.
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = tuple(m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high)
        if len(ticks) >= 3:
            break
    return Axis(low, high, start, end, ticks, log=True)


def _step(raw: float) -> float:
    """The smallest nice step that is no smaller than ``raw``."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(nice * power for nice in NICE if nice * power >= raw * (1 - 1e-9))
