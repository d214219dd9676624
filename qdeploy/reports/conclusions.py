"""What a build says in plain language: a short list of sentences, each computed from the numbers and their intervals.

A claim is made only where the interval allows it; what cannot be told apart is called so, and ties are ties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from qdeploy.core.records import Interval, Results, Variant
from qdeploy.reports import words
from qdeploy.reports.bits import weight_bits
from qdeploy.reports.comparison import also_splits, scores, timed
from qdeploy.reports.verdict import SAME_SIZE, accuracy, fastest, same_speed, verdict
from qdeploy.reports.words import Scores

MANY = 4  # so many names in a group of all are written as "all of them"


@dataclass(frozen=True, slots=True)
class Conclusion:
    """One sentence; the main ones are also shown in a terminal."""

    text: str
    main: bool = False


def conclusions(results: Results) -> list[Conclusion]:
    """All sentences about a build, the verdict first. What contrasts say stands with them (reports/contrasts.py)."""
    parts = (_accuracy, _size, _speed, _bits, _gaps, _time, _machine)
    said = [Conclusion(str(verdict(results)), main=True)]
    if len(results.variants) > 1:
        said += [sentence for part in parts for sentence in part(results)]
    return said


def _others(results: Results) -> list[Variant]:
    return [variant for variant in results.variants if variant.name != results.baseline]


def _named(group: Sequence[Variant], everyone: Sequence[Variant]) -> str:
    """The names of a group; of all, where there are many, only that it is all of them."""
    if len(group) == len(everyone) >= MANY:
        return f"all {len(group)} variants"
    return words.listed([variant.name for variant in group])


def _measured(
    group: Sequence[Variant],
    everyone: Sequence[Variant],
    value: Callable[[Variant], float],
    say: Callable[[float], str],
) -> str:
    """The names of a group with a value each; of many, the smallest and the largest value."""
    if len(group) < MANY:
        return words.listed([f"{variant.name} ({say(value(variant))})" for variant in group])
    low, high = (say(end) for end in (min(map(value, group)), max(map(value, group))))
    return f"{_named(group, everyone)} ({low if low == high else f'{low} to {high}'})"


def _accuracy(results: Results) -> Iterator[Conclusion]:
    """Which variants lose, which gain, and of which neither can be said."""
    style, others = scores(results), _others(results)
    known = [(variant, variant.delta) for variant in others if variant.delta is not None]
    lose = [v for v, delta in known if style.loses(delta)]
    gain = [v for v, delta in known if delta.excludes(0) and style.gain(delta) > 0]
    even = [v for v, delta in known if not delta.excludes(0)]

    def by(group: Sequence[Variant]) -> str:
        return _measured(group, others, lambda v: v.delta.value if v.delta else 0.0, style.difference)

    if even:
        yield Conclusion(f"No difference in {style.noun} to {results.baseline}: {_named(even, others)}.")
    if gain:
        yield Conclusion(f"Measurably better {style.noun} than {results.baseline}: {by(gain)}.")
    if lose:
        yield Conclusion(f"Measurable loss of {style.noun}: {by(lose)}.")


def _size(results: Results) -> Iterator[Conclusion]:
    """The smallest file and what it costs; where that loses, also the smallest without a measurable loss."""
    style, variants = scores(results), list(results.variants)
    smallest = _smallest(variants)
    yield Conclusion(f"Smallest: {_costs(smallest, results, style)}.")
    if all(style.loses(variant.delta) for variant in smallest):
        lossless = _smallest([variant for variant in variants if not style.loses(variant.delta)])
        yield Conclusion(f"Smallest without a measurable loss: {_costs(lossless, results, style)}.")


def _smallest(variants: Sequence[Variant]) -> list[Variant]:
    least = min(variant.size_bytes for variant in variants)
    return [variant for variant in variants if variant.size_bytes <= least * (1 + SAME_SIZE)]


def _costs(group: Sequence[Variant], results: Results, style: Scores) -> str:
    size = words.size(min(variant.size_bytes for variant in group))
    names = words.listed([variant.name for variant in group])
    first = group[0]
    if results.baseline in [variant.name for variant in group]:
        return f"{names} ({size})"
    ratio = f"{words.ratio(first.compression)} smaller than {results.baseline}"
    if len(group) == 1:
        return f"{names} ({size}, {ratio}), {accuracy(first.delta, style)}"
    return f"{names}, of the same size ({size}, {ratio})"


def _speed(results: Results) -> Iterator[Conclusion]:
    """The fastest, those that cannot be told from it, and what is slower than float32."""
    speeds = {v.name: t.speedup for v in _others(results) if (t := timed(v.latency)) and t.speedup}
    measured = [variant for variant in _others(results) if variant.name in speeds]
    if not measured:
        return

    best = sorted(fastest(measured), key=lambda variant: -speeds[variant.name].value)
    if speeds[best[0].name].low > 1 and not same_speed(speeds[best[0].name]):
        told = f"Fastest: {best[0].name}, {_times(speeds[best[0].name])} faster than {results.baseline}"
        told += f"; not to be told from it: {_named(best[1:], measured)}" if best[1:] else ""
        yield Conclusion(told + ".")
    else:
        yield Conclusion(f"Nothing is measurably faster than {results.baseline}.", main=True)
    slower = [variant for variant in measured if speeds[variant.name].high < 1 and not same_speed(speeds[variant.name])]
    if slower:
        told = _measured(slower, measured, lambda v: speeds[v.name].value, words.ratio)
        yield Conclusion(f"Measurably slower than {results.baseline}, by their speed-up: {told}.")


def _times(speed: Interval) -> str:
    return f"{words.ratio(speed.value)} {words.ratio_interval(speed)}"


def _bits(results: Results) -> Iterator[Conclusion]:
    """How few bits of weights come without a measurable loss, where variants differ in them."""
    style = scores(results)
    widths = {v.name: bits for v in _others(results) if (bits := weight_bits(v)) is not None}
    if len(set(widths.values())) < 2:
        return
    lossless = [v for v in _others(results) if v.name in widths and not style.loses(v.delta)]
    if lossless:
        least = min(widths[variant.name] for variant in lossless)
        names = words.listed([variant.name for variant in lossless if widths[variant.name] == least])
        yield Conclusion(f"Fewest bits of weights without a measurable loss: {least} ({names}).")
    else:
        yield Conclusion("No width of the weights is without a measurable loss.")


def _gaps(results: Results) -> Iterator[Conclusion]:
    """On which variants the metric of another split is measurably better than the one that judges."""
    style = scores(results)
    for split in also_splits(results):
        found = {v.name: one.gap for v in results.variants for one in v.also if one.split == split}
        measured = [variant for variant in results.variants if variant.name in found]
        better = [v for v in measured if found[v.name].excludes(0) and style.gain(found[v.name]) > 0]
        if better:
            names = _measured(better, measured, partial(_gap, found), style.difference)
            told = f"Measurably better on the {split} split than on the evaluation split: {names}."
        else:
            told = f"No {style.noun} is measurably better on the {split} split than on the evaluation split."
        yield Conclusion(told)


def _gap(gaps: dict[str, Interval], variant: Variant) -> float:
    return gaps[variant.name].value


def _time(results: Results) -> Iterator[Conclusion]:
    """How long variants took to make, by method: times that were taken once, so there is no word of a difference."""
    took: dict[str, list[float]] = {}
    for variant in _others(results):
        if variant.seconds is not None:
            took.setdefault(variant.method, []).append(variant.seconds)
    if not took:
        return
    spans = [f"{method} {_span(times)}" for method, times in took.items()]
    training = results.training_seconds
    before = "" if training is None else f"; training {results.baseline} took {words.seconds(training)}"
    yield Conclusion(f"Wall time of making a variant, taken once: {', '.join(spans)}{before}.")


def _span(times: Sequence[float]) -> str:
    low, high = words.seconds(min(times)), words.seconds(max(times))
    return low if low == high else f"{low} to {high}"


def _machine(results: Results) -> Iterator[Conclusion]:
    """Where times were taken, in a few words; the whole record stands elsewhere."""
    where = results.environment
    timings = [latency for variant in results.variants if (latency := timed(variant.latency))]
    if where is not None and timings:
        settings = words.listed(list(dict.fromkeys(words.setting(latency) for latency in timings)))
        yield Conclusion(f"Times were measured on {where.cpu} ({where.architecture}): {settings}.")
