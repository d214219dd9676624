from __future__ import annotations

import dataclasses

from qdeploy.core.records import Interval, Results, SplitMetric, Variant
from qdeploy.reports import comparison
from qdeploy.reports.conclusions import conclusions
from tests.reports import sample
from tests.reports.test_verdict import build, quantized


def said(results: Results) -> list[str]:
    return [conclusion.text for conclusion in conclusions(results)]


def timed(name: str, low: float, value: float, high: float, size: int = 25_000, **changes: object) -> Variant:
    latency = sample.latency(2.0 / value, value, speedup=Interval(value, low, high))
    return quantized(name, size, latency=latency, **changes)


def test_what_cannot_be_told_apart_is_a_tie() -> None:
    found = said(build(timed("a", 1.9, 2.0, 2.1), timed("b", 1.95, 1.99, 2.05), timed("c", 1.2, 1.3, 1.4)))
    assert "Fastest: a, 2.00x [1.90, 2.10] faster than float32; not to be told from it: b." in found
    assert "Smallest: a, b and c, of the same size (25.0 kB, 4.00x smaller than float32)." in found
    assert "No difference in accuracy to float32: a, b and c." in found


def test_nothing_is_claimed_inside_an_interval() -> None:
    found = said(build(timed("a", 0.97, 1.01, 1.05), timed("b", 0.98, 1.0, 1.02)))
    assert "Nothing is measurably faster than float32." in found
    assert not [text for text in found if text.startswith(("Fastest", "Measurabl"))]


def test_losses_and_slow_ones_are_named() -> None:
    lossy = timed("lossy", 0.5, 0.6, 0.7, 5_000, delta=Interval(-0.012, -0.016, -0.008))
    found = said(build(timed("a", 1.9, 2.0, 2.1), lossy))
    assert "Measurable loss of accuracy: lossy (-1.20 points)." in found
    assert "Measurably slower than float32, by their speed-up: lossy (0.60x)." in found
    assert found[3].startswith("Smallest: lossy (5.00 kB, 20.0x smaller than float32), losing 1.20 points")
    assert found[4].startswith("Smallest without a measurable loss: a (25.0 kB")


def test_the_fewest_bits_without_a_loss_come_from_settings_not_from_names() -> None:
    four = timed("eight", 1.9, 2.0, 2.1, quantization=sample.settings("ptq", "gptq", 4))
    two = timed(
        "w16", 1.9, 2.0, 2.1, quantization=sample.settings("ptq", "gptq", 2), delta=Interval(-0.02, -0.03, -0.01)
    )
    assert "Fewest bits of weights without a measurable loss: 4 (eight)." in said(build(four, two))


def test_a_gap_is_claimed_where_its_interval_allows_it() -> None:
    results = build(timed("a", 1.9, 2.0, 2.1))
    metric = sample.metric(0.95)
    gaps = (Interval(0.05, 0.04, 0.06), Interval(0.001, -0.01, 0.012))
    variants = tuple(
        dataclasses.replace(v, also=(SplitMetric("train", metric, gap),))
        for v, gap in zip(results.variants, gaps, strict=True)
    )
    results = dataclasses.replace(results, variants=variants)
    assert "Measurably better on the train split than on the evaluation split: float32 (+5.00 points)." in said(results)
    headers = [column.header for column in comparison.columns(results)]
    assert headers[4:6] == ["on train", "train - evaluation"]
    assert comparison.columns(results)[5].cells[1].text == "no difference"


def test_the_machine_is_named_where_times_are() -> None:
    assert any("Example(R) Silver 4314" in text for text in said(sample.full()))
    assert not any("Example(R) Silver 4314" in text for text in said(sample.minimal(timed=False)))


def test_every_column_that_is_there_is_explained_and_no_other() -> None:
    for results in (sample.full(), sample.minimal(timed=False), sample.head_to_head()):
        explained = comparison.explanations(results)
        assert list(explained) == [column.key for column in comparison.columns(results)][1:]
