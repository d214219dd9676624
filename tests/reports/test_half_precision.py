from __future__ import annotations

import dataclasses

from qdeploy.core.records import HalfPrecision, Results
from qdeploy.reports import half_precision
from qdeploy.reports.html import render
from tests.reports import sample


def build(count: int = 3) -> Results:
    """fp16 and bf16 of as many weights; the last one of fp16 is the worst."""
    results = sample.minimal()
    base = (0.9806, 311_744)
    made = [results.variants[0]]
    for name, error in (("fp16", 0.0005), ("bf16", 0.004)):
        weights = tuple(
            HalfPrecision(f"layer{i}.weight", 100, 0.5 + i, 0, i if name == "fp16" else 0, 2 * i, error * (1 + i))
            for i in range(count)
        )
        made.append(sample.variant(name, name, 0.98, 150_000, base=base, half_precision=weights))
    return dataclasses.replace(results, variants=tuple(made))


def cells(results: Results, key: str, **options: int) -> list[str]:
    found = {column.key: column for column in half_precision.columns(results, **options)}
    return [cell.text for cell in found[key].cells]


def test_the_worst_weight_is_first_and_all_of_them_last() -> None:
    assert cells(build(), "weight") == ["layer2.weight", "layer1.weight", "layer0.weight", "all weights"]
    assert cells(build(), "values") == ["100", "100", "100", "300"]
    assert cells(build(), "zeros fp16") == ["2", "1", "0", "3"]
    assert cells(build(), "zeros bf16") == ["0", "0", "0", "0"]
    assert cells(build(), "error bf16") == ["1.2%", "0.80%", "0.40%", "1.2%"]
    assert cells(build(), "weight", most=1) == ["layer2.weight", "all weights"]
    assert cells(build(), "values", most=1) == ["100", "300"]


def test_what_is_said_of_all_weights() -> None:
    assert half_precision.sentences(build())[0] == (
        "fp16: of 300 stored weights 0 are beyond its range, 3 become 0 and 6 are subnormal; the largest relative "
        "error is 0.15%."
    )


def test_a_page_shows_the_worst_and_all_on_request() -> None:
    assert "Weights in 16 bits" in render(build())
    assert "<summary>All" not in render(build()).partition("Weights in 16 bits")[2].partition("</section>")[0]
    assert "<summary>All 20 weights</summary>" in render(build(20))


def test_one_way_of_storing_alone_is_compared_with_nothing() -> None:
    results = build()
    alone = dataclasses.replace(results, variants=results.variants[:2])
    assert half_precision.columns(alone) == ()
    assert "Weights in 16 bits" not in render(alone)
