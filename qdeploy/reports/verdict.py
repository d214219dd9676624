"""One sentence that says what a build achieved, computed from its numbers and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qdeploy.core.records import Interval, Results, Variant
from qdeploy.reports import words
from qdeploy.reports.comparison import scores, timed
from qdeploy.reports.words import Scores

SAME_SIZE = 0.005  # files that differ by less than half a percent are called the same size


@dataclass(frozen=True, slots=True)
class Verdict:
    """The sentence, in parts so that a page can set the two names apart: subject, claim, baseline, rest."""

    variant: Variant | None  # the one that the sentence is about; None where there is nothing to compare
    subject: str
    claim: str
    baseline: str = ""
    rest: str = ""

    def __str__(self) -> str:
        return f"{self.subject} {self.claim}" + (f" {self.baseline}" if self.baseline else "") + self.rest + "."


def verdict(results: Results) -> Verdict:
    """The sentence about the variant that ``choose`` names."""
    style, variant = scores(results), choose(results)
    if variant is None:
        return _alone(results, style)
    better, worse, tail = _size_and_speed(variant)
    claim = " but ".join(" and ".join(part) for part in (better, worse) if part) or "neither smaller nor faster"
    tail.append(accuracy(variant.delta, style))
    return Verdict(variant, variant.name, f"is {claim} than", results.baseline, "".join(f", {t}" for t in tail if t))


def choose(results: Results) -> Variant | None:
    """The variant to speak of.

    Among those without a measurable loss: the smallest of the fastest (a speed-up whose interval reaches into the
    fastest one's counts as equally fast). Where every variant loses: the one that loses least.
    """
    style = scores(results)
    others = [variant for variant in results.variants if variant.name != results.baseline]
    if not others:
        return None
    lossless = [variant for variant in others if not style.loses(variant.delta)]
    if not lossless:
        return max(others, key=lambda v: style.gain(v.delta) if v.delta else 0.0)
    return max(fastest(lossless), key=lambda v: v.compression)


def fastest(variants: Sequence[Variant]) -> list[Variant]:
    """Those whose speed-up reaches into the interval of the largest one; all of them where none was timed."""
    speeds = [(v, latency.speedup) for v in variants if (latency := timed(v.latency)) and latency.speedup]
    if not speeds:
        return list(variants)
    _, best = max(speeds, key=lambda pair: pair[1].value)
    return [variant for variant, speed in speeds if speed.high >= best.low]


def _size_and_speed(variant: Variant) -> tuple[list[str], list[str], list[str]]:
    """What is better, what is worse, and what is to be said behind the comparison."""
    better, worse, tail = [], [], []
    if variant.compression > 1 + SAME_SIZE:
        better.append(f"{words.ratio(variant.compression)} smaller")
    elif variant.compression < 1 - SAME_SIZE:
        worse.append(f"{words.ratio(1 / variant.compression)} larger")
    else:
        tail.append("at the same size")
    latency = timed(variant.latency)
    if latency is None or latency.speedup is None:
        return better, worse, tail
    speed = latency.speedup
    if not speed.excludes(1):
        tail.append("with no measurable difference in speed")
    elif same_speed(speed):
        tail.append("at the same speed within 1%")
    elif speed.value > 1:
        better.append(f"{words.ratio(speed.value)} faster {words.ratio_interval(speed)}")
    else:
        slower = speed.inverse()
        worse.append(f"{words.ratio(slower.value)} slower {words.ratio_interval(slower)}")
    return better, worse, tail


def same_speed(speed: Interval) -> bool:
    """Whether a speed-up is written as 1.00x, even where the interval excludes that."""
    return words.ratio(speed.value) == words.ratio(1.0)


def accuracy(delta: Interval | None, style: Scores) -> str:
    """What a variant costs, as the end of a sentence; nothing for the baseline."""
    if delta is None:
        return ""
    low, high = (words.fixed(x * style.factor, style.places, sign=True) for x in (delta.low, delta.high))
    bounds = f"95% interval {low} to {high}"
    if not delta.excludes(0):
        return f"at no measurable loss of {style.noun} ({style.difference(delta.value)}, {bounds})"
    verb = "gaining" if style.gain(delta) > 0 else "losing"
    return f"{verb} {style.difference(abs(delta.value), sign=False)} of {style.noun} ({bounds})"


def _alone(results: Results, style: Scores) -> Verdict:
    if not results.variants:
        return Verdict(None, results.name, "has no variants")
    metric = results.variants[0].metric
    reached = f"reaches {style.value(metric.value)} {style.label} {style.interval(metric.low, metric.high)}"
    return Verdict(None, results.variants[0].name, f"{reached}; there is no other variant to compare it with")
