from __future__ import annotations

import dataclasses

from qdeploy.core.records import Interval, Results
from qdeploy.reports import contrasts
from qdeploy.reports.comparison import scores
from qdeploy.reports.html import render
from qdeploy.reports.terminal import results_table
from tests.reports import sample
from tests.reports.test_terminal import printed


def test_the_winner_is_named_only_where_the_interval_excludes_zero() -> None:
    results = sample.head_to_head()
    found = [contrasts.winner(contrast, scores(results)) for contrast in results.contrasts]
    assert found == ["ptq", None, "qat-e4"]
    said = [contrasts.sentence(contrast, results) for contrast in results.contrasts]
    assert said[0] == (
        "ptq beats qat-e1 by 2.00 points of accuracy (qat-e1 - ptq: 95% interval -2.50 to -1.50); "
        "made in 10 s (qat-e1) and 2.0 s (ptq)."
    )
    assert said[1].startswith(
        "qat-e2 against ptq: no difference in accuracy (-0.30 points, 95% interval -0.80 to +0.20)"
    )
    assert said[2].endswith("; ptq is 2.00x faster than qat-e4 [1.67, 2.50].")


def test_where_less_is_better_the_winner_has_less() -> None:
    results = sample.head_to_head()
    metrics = [dataclasses.replace(v.metric, higher_is_better=False) for v in results.variants]
    variants = tuple(dataclasses.replace(v, metric=m) for v, m in zip(results.variants, metrics, strict=True))
    turned = dataclasses.replace(results, variants=variants)
    assert [contrasts.winner(c, scores(turned)) for c in turned.contrasts] == ["qat-e1", None, "ptq"]


def test_the_epochs_until_a_match_are_the_first_after_which_nothing_loses() -> None:
    results = sample.head_to_head()
    (study,) = contrasts.studies(results)
    assert study.epochs == (1, 2, 4)
    assert study.matches(scores(results)) == 2
    assert contrasts.study_sentence(study, scores(results)) == (
        "QAT matches ptq from 2 epochs on; it is measurably better at 4 (tried: 1, 2 and 4)."
    )


def with_differences(results: Results, *ends: tuple[float, float]) -> contrasts.Study:
    found = [
        dataclasses.replace(c, difference=Interval((low + high) / 2, low, high))
        for c, (low, high) in zip(results.contrasts, ends, strict=True)
    ]
    return contrasts.studies(dataclasses.replace(results, contrasts=tuple(found)))[0]


def test_a_match_that_more_epochs_lose_again_is_none() -> None:
    results = sample.head_to_head()
    style = scores(results)
    lost_again = with_differences(results, (-0.01, 0.01), (-0.03, -0.01), (-0.01, 0.01))
    assert lost_again.matches(style) == 4
    never = with_differences(results, (-0.01, 0.01), (-0.03, -0.01), (-0.03, -0.01))
    assert never.matches(style) is None
    assert "does not reach ptq within 4 epochs" in contrasts.study_sentence(never, style)


def test_a_contrast_may_name_the_trained_variant_second() -> None:
    results = sample.head_to_head()
    turned = tuple(
        dataclasses.replace(c, first=c.second, second=c.first, difference=c.difference.negative())
        for c in results.contrasts
    )
    (study,) = contrasts.studies(dataclasses.replace(results, contrasts=turned))
    assert study.differences == tuple(c.difference for c in results.contrasts)


def test_variants_that_differ_in_more_than_epochs_are_no_study() -> None:
    results = sample.head_to_head()
    other = {**results.variants[2].quantization, "fake_quant": "pact"}
    variants = list(results.variants)
    variants[2] = dataclasses.replace(variants[2], quantization=other)
    (study,) = contrasts.studies(dataclasses.replace(results, variants=tuple(variants)))
    assert study.epochs == (2, 4)


def test_terminal_and_page_show_the_contrasts() -> None:
    results = sample.head_to_head()
    text, page = printed(results_table(results), 160), render(results)
    head = text.partition("head to head")[2]
    assert "-2.00 points  ptq  " in head
    assert "-0.30 [-0.80, +0.20]" in head
    assert "QAT matches ptq from 2 epochs on" in head
    assert "ptq beats qat-e1 by 2.00 points" in page
    assert 'id="head-to-head"' in page
    assert "QAT matches ptq from 2 epochs on" in page
    assert 'id="head-to-head"' not in render(sample.full())
