from __future__ import annotations

import pytest

from qdeploy.core.records import Interval, Metric
from qdeploy.reports import words
from qdeploy.reports.words import Scores


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (38_483, "38.5 kB"),
        (298_120, "298 kB"),
        (1_118_512, "1.12 MB"),
        (5_2 * 10**8, "5.20 GB"),
    ],
)
def test_sizes_have_three_digits_and_decimal_units(count: int, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0421, "0.0421 ms"), (0.2144, "0.214 ms"), (4.6, "4.60 ms"), (106.4, "106 ms")]
)
def test_times_have_three_digits(value: float, text: str) -> None:
    assert words.milliseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "100%"), (0.99999, "99.9%"), (0.9318, "93.2%"), (0.001, "0.1%"), (0.0002, "<0.1%"), (0.0, "0%")],
)
def test_a_share_is_never_rounded_up_to_the_whole_or_down_to_nothing(value: float, text: str) -> None:
    assert words.share(value) == text


@pytest.mark.parametrize(("value", "text"), [(-0.0001, "0.00"), (0.0, "0.00"), (-0.1, "-0.10"), (0.1, "+0.10")])
def test_zero_has_no_sign(value: float, text: str) -> None:
    assert words.fixed(value, 2, sign=True) == text


def test_counts() -> None:
    assert [words.count(n) for n in (0, 9_999, 500_000, 1_820_000_000)] == ["0", "9,999", "500 k", "1.82 G"]


def test_an_accuracy_is_written_in_percent_and_its_differences_in_points() -> None:
    style = Scores.of([Metric("top1", 0.9173, 0.91, 0.92, 100)])
    assert style.label == "top-1 accuracy"
    assert style.value(0.9173) == "91.73%"
    assert style.difference(-0.001) == "-0.10 points"
    assert style.loses(Interval(-0.01, -0.02, -0.005))
    assert not style.loses(Interval(-0.01, -0.02, 0.005))


def test_a_loss_is_written_as_it_is_and_less_of_it_is_a_gain() -> None:
    style = Scores.of([Metric("cross_entropy", 0.2512, 0.24, 0.26, 100, higher_is_better=False)])
    assert style.value(0.2512) == "0.2512"
    assert style.difference(-0.01) == "-0.0100"
    assert not style.loses(Interval(-0.01, -0.02, -0.005))
    assert style.loses(Interval(0.01, 0.005, 0.02))


def test_decibels_are_not_taken_for_a_fraction() -> None:
    assert Scores.of([Metric("psnr", 31.27, 31.0, 31.5, 14)]).value(31.27) == "31.27"
