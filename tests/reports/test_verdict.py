from __future__ import annotations

import dataclasses

from qdeploy.core.records import Interval, Results, Variant
from qdeploy.reports.verdict import choose, verdict
from tests.reports import sample

BASE = (0.90, 100_000)


def build(*variants: Variant) -> Results:
    baseline = sample.variant("float32", "float32", *BASE, latency=sample.latency(2.0, None))
    return Results("build", "float32", (baseline, *variants))


def quantized(name: str = "int8", size: int = 25_000, speed: float | None = 2.0, **changes: object) -> Variant:
    latency = None if speed is None else sample.latency(2.0 / speed, speed)
    return sample.variant(name, "ptq", 0.899, size, base=BASE, **{"latency": latency, **changes})


def test_the_sentence_of_a_good_build() -> None:
    assert str(verdict(build(quantized()))) == (
        "int8 is 4.00x smaller and 2.00x faster [1.94, 2.06] than float32, "
        "at no measurable loss of accuracy (-0.10 points, 95% interval -0.41 to +0.19)."
    )


def test_a_measurable_loss_is_called_one() -> None:
    lost = quantized(delta=Interval(-0.012, -0.016, -0.008))
    assert str(verdict(build(lost))).endswith("losing 1.20 points of accuracy (95% interval -1.60 to -0.80).")


def test_a_gain_is_called_one() -> None:
    gained = quantized(delta=Interval(0.004, 0.001, 0.007))
    assert str(verdict(build(gained))).endswith("gaining 0.40 points of accuracy (95% interval +0.10 to +0.70).")


def test_a_slower_variant_is_called_slower() -> None:
    slow = sample.latency(2.5, 0.8, speedup=Interval(0.8, 0.5, 0.9))
    assert "is 4.00x smaller but 1.25x slower [1.11, 2.00] than float32" in str(verdict(build(quantized(latency=slow))))


def test_an_uncertain_speed_up_is_not_claimed() -> None:
    same = sample.latency(2.0, 1.0)
    sentence = str(verdict(build(quantized(latency=same))))
    assert "faster" not in sentence
    assert "is 4.00x smaller than float32, with no measurable difference in speed, at no measurable loss" in sentence


def test_no_claim_at_all() -> None:
    same = quantized(size=100_000, latency=sample.latency(2.0, 1.0))
    assert str(verdict(build(same))).startswith("int8 is neither smaller nor faster than float32, at the same size, ")


def test_withheld_times_make_no_claim() -> None:
    assert "fast" not in str(verdict(build(quantized(latency=sample.withheld()))))


def test_of_the_equally_fast_the_smallest_is_chosen_and_a_loss_never() -> None:
    fast, small = quantized("fast", 25_000, 2.02), quantized("small", 12_000, 2.0)
    slow_small = quantized("slow", 8_000, 1.2)
    lossy = quantized("lossy", 4_000, 3.0, delta=Interval(-0.1, -0.12, -0.08))
    chosen = choose(build(fast, small, slow_small, lossy))
    assert chosen is not None
    assert chosen.name == "small"


def test_where_all_lose_the_least_loss_is_chosen() -> None:
    much = quantized("much", 4_000, 3.0, delta=Interval(-0.1, -0.12, -0.08))
    little = quantized("little", 25_000, 2.0, delta=Interval(-0.02, -0.03, -0.01))
    chosen = choose(build(much, little))
    assert chosen is not None
    assert chosen.name == "little"


def test_a_metric_of_which_less_is_better() -> None:
    def loss(variant: Variant, value: float) -> Variant:
        metric = dataclasses.replace(
            variant.metric, name="loss", value=value, low=value, high=value, higher_is_better=False
        )
        return dataclasses.replace(variant, metric=metric)

    results = build(quantized(delta=Interval(0.02, 0.01, 0.03)))
    results = dataclasses.replace(results, variants=tuple(loss(v, 0.25) for v in results.variants))
    assert "losing 0.0200 of loss" in str(verdict(results))


def test_a_build_of_one_variant() -> None:
    assert str(verdict(build())) == (
        "float32 reaches 90.00% top-1 accuracy [89.41, 90.59]; there is no other variant to compare it with."
    )
