from __future__ import annotations

import math

import numpy as np
import pytest

from qdeploy.core.records import Interval
from qdeploy.reports import scaling
from qdeploy.reports.comparison import scores
from qdeploy.reports.scaling import Point
from tests.reports import sample

A, B, C = 5.0, 1.3, 0.4


def points(noise: float = 0.0, seed: int = 0) -> list[Point]:
    generator = np.random.default_rng(seed)
    found = []
    for width in (2, 3, 4, 5):
        for size in (1_000, 10_000, 100_000):
            loss = A * 2 ** (-B * width) * size**-C * math.exp(noise * generator.standard_normal())
            found.append(Point(f"{width} {size}", width, size, Interval(loss, 0.9 * loss, 1.1 * loss)))
    return found


def test_an_exact_law_is_found_again() -> None:
    fit = scaling.fitted("ptq", points()).fit
    assert fit is not None
    assert [fit.a.value, fit.b.value, fit.c.value] == pytest.approx([A, B, C], rel=1e-6)
    assert fit.r_squared == pytest.approx(1.0)
    assert max(map(abs, fit.residuals)) < 1e-9
    assert fit.at(3, 10_000) == pytest.approx(A * 2 ** (-3 * B) * 10_000**-C)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = np.zeros(3)
    for seed in range(40):
        fit = scaling.fitted("ptq", points(0.2, seed)).fit
        assert fit is not None
        truth = zip((fit.a, fit.b, fit.c), (A, B, C), strict=True)
        covered += [interval.low <= value <= interval.high for interval, value in truth]
    assert covered.min() >= 33  # 38 of 40 are expected of a 95% interval


def test_a_loss_within_its_noise_is_left_out_and_said() -> None:
    noisy = Point("noisy", 8, 1_000, Interval(0.001, -0.002, 0.004))
    found = scaling.fitted("ptq", [*points(), noisy])
    assert found.left_out == (noisy,)
    assert found.fit is not None
    assert found.fit.b.value == pytest.approx(B, rel=1e-6)
    style = scores(sample.sized(1))
    assert "Left out, because the 95% interval of the loss reaches 0: noisy." in scaling.sentences(found, style)
    assert [cell.text for cell in scaling.columns(found, style)[-1].cells][-1] == "left out"


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
    assert [point.bits for point in found.left_out] == [8, 8, 8]
    assert scaling.figure(found, scores(sample.sized(1))) is not None
