from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qdeploy.core.records import Interval
from qdeploy.reports import scaling
from qdeploy.reports.comparison import scores
from qdeploy.reports.scaling import Point
from tests.reports import sample

A, B, C = 5.0, 1.3, 0.4


def points(seed: int | None = None, share: float = 0.05, floor: float = 0.0) -> list[Point]:
    """Of an exact law, or drawn around it with standard errors of ``share`` of the loss and at least ``floor``."""
    generator = np.random.default_rng(seed)
    found = []
    for width in (2, 3, 4, 5):
        for size in (1_000, 10_000, 100_000):
            loss = A * 2 ** (-B * width) * size**-C
            error = max(share * loss, floor)
            loss += 0.0 if seed is None else error * generator.standard_normal()
            interval = Interval(loss, loss - 1.96 * error, loss + 1.96 * error)
            found.append(Point(f"{width} {size}", width, size, interval))
    return found


def test_an_exact_law_is_found_again() -> None:
    fit = scaling.fitted("ptq", points()).fit
    assert fit is not None
    assert [fit.a.value, fit.b.value, fit.c.value] == pytest.approx([A, B, C], rel=1e-6)
    assert fit.misfit == pytest.approx(0.0, abs=1e-9)
    assert max(map(abs, fit.deviations)) < 1e-4
    assert fit.at(3, 10_000) == pytest.approx(A * 2 ** (-3 * B) * 10_000**-C)


@pytest.mark.parametrize("floor", [0.0, 3e-3])
def test_intervals_cover_the_truth_about_as_often_as_they_say(floor: float) -> None:
    """Also where a third of the losses cannot be told from none."""
    covered, measurable = np.zeros(3), 0
    for seed in range(40):
        found = scaling.fitted("ptq", points(seed, floor=floor))
        assert found.fit is not None
        measurable += sum(point.measurable for point in found.points)
        truth = zip((found.fit.a, found.fit.b, found.fit.c), (A, B, C), strict=True)
        covered += [interval.low <= value <= interval.high for interval, value in truth]
    assert covered.min() >= 34  # 38 of 40 are expected of a 95% interval
    assert measurable == 40 * 12 if floor == 0 else measurable < 40 * 8


def test_losses_within_their_noise_say_that_the_law_is_small_there() -> None:
    """Their logarithms say nothing; those of the lucky ones alone would make a law that falls too slowly."""
    noisy = [Point(f"noisy {n}", 8, n, Interval(1e-4 * (-1) ** n, -0.002, 0.002)) for n in (1_000, 10_001)]
    exact, found = scaling.fitted("ptq", points()), scaling.fitted("ptq", [*points(), *noisy])
    assert exact.fit is not None
    assert found.fit is not None
    assert found.fit.b.value == pytest.approx(B, rel=1e-3)
    assert len(found.fit.deviations) == 14
    style = scores(sample.sized(1))
    assert "over 14 points, 12 of them measurable losses" in scaling.sentences(found, style)[0]
    assert [len(column.cells) for column in scaling.columns(found, style)] == [14] * 6


def test_a_law_that_does_not_hold_says_so_and_is_less_sure() -> None:
    bent = [replace(p, loss=Interval(*(x * (3 if p.bits == 3 else 1) for x in (p.loss.value, p.loss.low, p.loss.high))))
            for p in points()]  # fmt: skip
    straight, found = scaling.fitted("ptq", points()).fit, scaling.fitted("ptq", bent).fit
    assert straight is not None
    assert found is not None
    assert found.misfit > 10
    assert found.b.high - found.b.low > 2 * (straight.b.high - straight.b.low)


def test_too_little_says_why_there_is_no_law() -> None:
    few = scaling.fitted("ptq", points()[:3])
    assert few.fit is None
    style = scores(sample.sized(1))
    assert scaling.sentences(few, style) == [
        "ptq: no law is fitted: 3 measurable losses cannot tell 3 constants and their error."
    ]
    assert scaling.figure(few, style) is None
    one_size = scaling.fitted("ptq", [p for p in points() if p.parameters == 1_000])
    assert one_size.fit is None
    assert "do not differ both in bits and in parameters" in one_size.reason


def test_what_cannot_be_told_is_not_claimed() -> None:
    flat = [Point(p.name, p.bits, p.parameters, Interval(v, 0.9 * v, 1.1 * v))
            for p, v in zip(points(), np.random.default_rng(1).uniform(0.01, 0.1, 12), strict=True)]  # fmt: skip
    said = " ".join(scaling.sentences(scaling.fitted("ptq", flat), scores(sample.sized(1))))
    assert "Whether the loss depends on the number of parameters cannot be told" in said


def test_a_law_over_builds_of_several_sizes() -> None:
    (found,) = scaling.scaling([(f"x{n}", sample.sized(n)) for n in (1, 2, 4)])
    assert found.method == "ptq nearest"
    assert found.fit is not None
    assert found.fit.b.value == pytest.approx(1.0, rel=1e-6)
    assert found.fit.c.value == pytest.approx(0.5, rel=1e-6)
    assert [point.bits for point in found.points if not point.measurable] == [8, 8, 8]
    assert scaling.figure(found, scores(sample.sized(1))) is not None


def test_a_law_takes_what_all_sizes_have() -> None:
    """A variant that only one of them has would put its others into a series of another name."""
    one, *others = [(f"x{n}", sample.sized(n)) for n in (1, 2, 4)]
    more = [replace(v, name=f"{v.name}-more") for v in one[1].variants[1:]]
    (found,) = scaling.scaling([(one[0], replace(one[1], variants=(*one[1].variants, *more))), *others])
    (plain,) = scaling.scaling([one, *others])
    assert found == plain
