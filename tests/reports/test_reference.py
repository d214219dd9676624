from __future__ import annotations

from dataclasses import replace

import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.reports import matrix, reference
from tests.reports import sample

PARTS = [("", sample.full())]


def row(**changes: object) -> dict[str, object]:
    return {"what": "x", "variant": "gptq-int4", "fact": "drop_points", "reference": 0.5, **changes}


def verdicts(*rows: dict[str, object]) -> list[str]:
    return [cell.text for cell in reference.columns({"rows": rows}, PARTS)[-1].cells]


def test_a_miss_is_called_one_and_a_tie_by_its_interval() -> None:
    """gptq-int4 loses 0.82 points, between 0.53 and 1.13."""
    found = verdicts(row(), row(reference=0.6), row(reference=1.0), row(reference=2.0))
    assert found == [reference.WORSE, reference.MISSED, reference.REACHED, reference.BETTER]


def test_of_compression_and_speed_more_is_better() -> None:
    assert verdicts(row(fact="compression", reference=6.0), row(fact="speedup", reference=3.0)) == ["better", "worse"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"variant": "gptq-int5"}, "gptq-int5"), ({"fact": "speed"}, "speed"), ({"part": "lstm"}, "lstm")],
)
def test_a_reference_to_what_is_not_there_is_an_error(changes: dict[str, object], said: str) -> None:
    with pytest.raises(QDeployError, match=said) as caught:
        verdicts(row(**changes))
    assert caught.value.hint


def test_every_fact_has_a_value() -> None:
    variant = sample.full().variants[3]
    for fact in reference.FACTS:
        found = reference.value(fact, variant, sample.full())
        assert found is not None
        assert found.low <= found.value <= found.high


def test_per_cent_of_float32_keeps_the_paired_interval() -> None:
    variant = sample.full().variants[3]
    share = matrix.percent(variant, 0.9173)
    assert share.value == pytest.approx(100 * 0.9091 / 0.9173)
    assert share.low == pytest.approx(100 * (0.9091 - 0.0031) / 0.9173)


def test_a_drop_of_decibels_is_in_decibels() -> None:
    """And one of a metric of which less is better is a rise."""
    results = sample.full()
    in_decibels = replace(
        results,
        variants=tuple(
            replace(v, metric=replace(v.metric, name="psnr", value=32 + v.metric.value, high=34.0))
            for v in results.variants
        ),
    )
    found, cells = results.variants[3].delta, reference.columns({"rows": [row()]}, [("", in_decibels)])
    assert found is not None
    assert reference.value("drop_points", in_decibels.variants[3], in_decibels) == found.negative()
    assert "points" not in cells[1].cells[0].text + cells[2].cells[0].text
    errors = replace(
        in_decibels,
        variants=tuple(replace(v, metric=replace(v.metric, higher_is_better=False)) for v in in_decibels.variants),
    )
    assert reference.value("drop_points", errors.variants[3], errors) == found
    better = reference.columns(
        {"rows": [row(fact="metric", reference=0.1), row(fact="metric", reference=99)]}, [("", errors)]
    )
    assert [cell.text for cell in better[-1].cells] == [reference.WORSE, reference.BETTER]
    loss = reference.value("loss_percent", errors.variants[3], errors)
    assert loss is not None
    assert loss.value < 0
