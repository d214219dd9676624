from __future__ import annotations

import random

from qdeploy.reports import pareto


def test_a_hand_worked_case() -> None:
    points = [(100, 0.92), (25, 0.91), (25, 0.90), (12, 0.85), (30, 0.905), (50, 0.91)]
    # (25, 0.90) costs what (25, 0.91) costs and scores less; (30, ...) and (50, ...) cost more and score no better.
    assert pareto.front(points) == [3, 1, 0]


def test_where_less_is_better() -> None:
    assert pareto.front([(100, 0.2), (25, 0.3), (25, 0.4), (12, 0.2)], higher_is_better=False) == [3]


def test_equal_points_do_not_dominate_each_other() -> None:
    assert pareto.front([(10, 0.9), (10, 0.9)]) == [0, 1]
    assert pareto.front([]) == []


def test_every_point_is_on_the_line_or_dominated_by_one_on_it() -> None:
    rng = random.Random(0)
    points = [(rng.randint(1, 30), rng.randint(1, 30)) for _ in range(200)]
    front = pareto.front(points)
    on_line = [points[i] for i in front]
    for i, (cost, score) in enumerate(points):
        dominators = [p for p in on_line if p != (cost, score) and p[0] <= cost and p[1] >= score]
        assert bool(dominators) == (i not in front)
    assert on_line == sorted(on_line)
    assert [score for _, score in on_line] == sorted(score for _, score in on_line)
