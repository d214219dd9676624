"""The Pareto line: the variants that no other one beats on both cost and score."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]], *, higher_is_better: bool = True) -> list[int]:
    """Indices of the undominated (cost, score) points, cheapest first.

    A point is dominated when another one costs no more, scores no worse, and is strictly better in one of the two.
    Points that coincide do not dominate each other.
    """
    sign = 1 if higher_is_better else -1
    signed = [(cost, sign * score) for cost, score in points]

    def dominated(point: tuple[float, float]) -> bool:
        return any(q != point and q[0] <= point[0] and q[1] >= point[1] for q in signed)

    kept = [i for i, point in enumerate(signed) if not dominated(point)]
    return sorted(kept, key=lambda i: (signed[i], i))
