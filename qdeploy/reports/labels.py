"""Placing the labels of a scatter plot so that they hide neither each other nor a mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GAP = 9.0  # between a mark and its label
REACH = 12  # how many half lines a label may move away from its mark
RADIUS = 6.0  # of a mark
CROSSING = 0.3  # what covering a line costs, against covering a mark or another label
DISTANCE = 0.5  # what moving away by one unit costs, in units of covered area


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-parallel rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area that two boxes share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * height if width > 0 and height > 0 else 0.0


def place(
    marks: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    lines: Sequence[Box] = (),
) -> list[Box]:
    """A box for each label of (width, height), near its mark at (x, y), inside ``frame``.

    Labels are placed one after the other; each takes the cheapest candidate. What a candidate covers of marks and
    other labels costs its area, what it covers of ``lines`` a part of that, and distance from the mark a little.
    """
    taken = [Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in marks]
    placed: list[Box] = []
    for mark, label in zip(marks, sizes, strict=True):

        def cost(box: Box, y: float = mark[1]) -> float:
            covered = sum(box.overlap(other) for other in (*taken, *placed))
            crossed = sum(box.overlap(line) for line in lines)
            return covered + CROSSING * crossed + DISTANCE * abs((box.top + box.bottom) / 2 - y)

        candidates = [box for box in _candidates(mark, label) if _inside(box, frame)] or [_clamped(mark, label, frame)]
        placed.append(min(candidates, key=cost))
    return placed


def _candidates(mark: tuple[float, float], size: tuple[float, float]) -> list[Box]:
    """Positions around a mark, nearest first: beside it, then half line by half line up and down."""
    (x, y), (width, height) = mark, size
    boxes = []
    for row in range(REACH + 1):
        lefts = [x + GAP, x - GAP - width]
        if row >= 2:
            lefts += [x - width / 2, x + 3 * GAP, x - 3 * GAP - width]
        for middle in (y - row * height / 2, y + row * height / 2) if row else (y,):
            boxes += [Box(left, middle - height / 2, left + width, middle + height / 2) for left in lefts]
    return boxes


def _inside(box: Box, frame: Box) -> bool:
    horizontally = box.left >= frame.left and box.right <= frame.right
    return horizontally and box.top >= frame.top and box.bottom <= frame.bottom


def _clamped(mark: tuple[float, float], size: tuple[float, float], frame: Box) -> Box:
    left = max(frame.left, min(mark[0] + GAP, frame.right - size[0]))
    top = max(frame.top, min(mark[1] - size[1] / 2, frame.bottom - size[1]))
    return Box(left, top, left + size[0], top + size[1])
