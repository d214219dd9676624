"""Head to head: two variants compared with each other, and in how many epochs training reaches what needs none."""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.core.records import Contrast, Interval, Results, Variant
from qdeploy.reports import words
from qdeploy.reports.bits import flat
from qdeploy.reports.comparison import Cell, Column, difference, ratio_cell, scores
from qdeploy.reports.words import Scores

EPOCHS = "train.epochs"


@dataclass(frozen=True, slots=True)
class Study:
    """Variants that differ in nothing but their epochs of training, each against the same other variant, in order."""

    rival: Variant
    trained: tuple[Variant, ...]
    differences: tuple[Interval, ...]  # trained minus rival

    @property
    def epochs(self) -> tuple[int, ...]:
        """How many epochs each was trained for."""
        return tuple(flat(variant.quantization)[EPOCHS] for variant in self.trained)

    def matches(self, style: Scores) -> int | None:
        """The smallest number of epochs from which on nothing is a measurable loss; None where the last one is."""
        found = None
        for epochs, apart in reversed(list(zip(self.epochs, self.differences, strict=True))):
            if style.loses(apart):
                break
            found = epochs
        return found


def winner(contrast: Contrast, style: Scores) -> str | None:
    """The variant with the measurably better metric; None where the interval of the difference includes 0."""
    if not contrast.difference.excludes(0):
        return None
    return contrast.first if style.gain(contrast.difference) > 0 else contrast.second


def columns(results: Results) -> tuple[Column, ...]:
    """One row a contrast; nothing where the recipe asked for none."""
    style, found = scores(results), results.contrasts
    if not found:
        return ()
    variants = {variant.name: variant for variant in results.variants}
    made = [(variants[c.first].seconds, variants[c.second].seconds) for c in found]
    listed = [
        Column("first", "variant", tuple(Cell(c.first) for c in found), numeric=False),
        Column("second", "against", tuple(Cell(c.second) for c in found), numeric=False),
        Column("difference", f"{style.noun}, first - second", tuple(difference(c.difference, style) for c in found)),
        Column("winner", f"better {style.noun}", tuple(_winner(c, style) for c in found), numeric=False),
        Column("agreement", "decided alike", tuple(Cell(words.share(c.agreement)) for c in found)),
        Column("first seconds", "first made in", tuple(_seconds(first) for first, _ in made)),
        Column("second seconds", "second made in", tuple(_seconds(second) for _, second in made)),
    ]
    if any(c.speedup for c in found):
        ratios = tuple(ratio_cell(c.speedup) if c.speedup else Cell("-", tone="muted") for c in found)
        listed.append(Column("speedup", "second's p50 over first's", ratios))
    return tuple(listed)


def note(results: Results) -> str:
    """What the columns of the table say."""
    training = results.training_seconds
    before = "" if training is None else f", behind {words.seconds(training)} of float32 training that both share"
    timed = any(contrast.speedup for contrast in results.contrasts)
    ratio = " p50: medians of the same run; above 1 the first is faster." if timed else ""
    return (
        f"{scores(results).noun}: on the same evaluation samples, with a paired bootstrap 95% interval. decided alike: "
        "the share of evaluation samples that both decide alike. made in: calibration, rounding or training on, and "
        f"export{before}; measured once.{ratio}"
    )


def sentence(contrast: Contrast, results: Results) -> str:
    """Who wins, by how much, and what it took."""
    style = scores(results)
    apart, best = contrast.difference, winner(contrast, style)
    low, high = (words.fixed(x * style.factor, style.places, sign=True) for x in (apart.low, apart.high))
    bounds = f"95% interval {low} to {high}"
    if best is None:
        said = (
            f"{contrast.first} against {contrast.second}: no difference in {style.noun} "
            f"({style.difference(apart.value)}, {bounds})"
        )
    else:
        other = contrast.second if best == contrast.first else contrast.first
        said = (
            f"{best} beats {other} by {style.difference(abs(apart.value), sign=False)} of {style.noun} "
            f"({contrast.first} - {contrast.second}: {bounds})"
        )
    return said + _made(contrast, results) + _speed(contrast) + "."


def study_sentences(results: Results) -> list[str]:
    """What each study of epochs says."""
    return [study_sentence(study, scores(results)) for study in studies(results)]


def studies(results: Results) -> list[Study]:
    """The contrasts of several numbers of epochs with the same variant, which was not trained on."""
    variants = {variant.name: variant for variant in results.variants}
    groups: dict[tuple[str, str], list[tuple[Variant, Interval]]] = {}
    for contrast in results.contrasts:
        for name, other, apart in (
            (contrast.first, contrast.second, contrast.difference),
            (contrast.second, contrast.first, contrast.difference.negative()),
        ):
            settings = flat(variants[name].quantization)
            if EPOCHS in settings and EPOCHS not in flat(variants[other].quantization):
                same = repr(sorted((key, value) for key, value in settings.items() if key != EPOCHS))
                groups.setdefault((other, same), []).append((variants[name], apart))
    found = []
    for (other, _), group in groups.items():
        group.sort(key=lambda pair: flat(pair[0].quantization)[EPOCHS])
        study = Study(variants[other], tuple(v for v, _ in group), tuple(apart for _, apart in group))
        if len(set(study.epochs)) > 1:
            found.append(study)
    return found


def study_sentence(study: Study, style: Scores) -> str:
    """After how many epochs the trained variant is no longer measurably worse, and whether it becomes better."""
    method, rival = study.trained[0].method.upper(), study.rival.name
    tried = words.listed([str(epochs) for epochs in study.epochs])
    matched = study.matches(style)
    if matched is None:
        return f"{method} does not reach {rival} within {study.epochs[-1]} epochs (tried: {tried})."
    better = [
        epochs
        for epochs, apart in zip(study.epochs, study.differences, strict=True)
        if apart.excludes(0) and style.gain(apart) > 0
    ]
    first = " (the smallest number that was tried)" if matched == study.epochs[0] else ""
    tail = f"; it is measurably better at {words.listed([str(e) for e in better])}" if better else ""
    reached = f"{method} matches {rival} from {words.plural(matched, 'epoch')} on"
    return f"{reached}{first}{tail} (tried: {tried})."


def study_note(style: Scores) -> str:
    """What matching means."""
    return (
        "Matches: the smallest number of epochs tried such that there, and at every larger number tried, the 95% "
        f"interval of the difference in {style.noun} does not lie wholly on the worse side of 0. The variants differ "
        f"in {EPOCHS} only."
    )


def study_columns(study: Study, results: Results) -> tuple[Column, ...]:
    """One row a number of epochs."""
    style = scores(results)
    return (
        Column("epochs", "epochs", tuple(Cell(str(epochs)) for epochs in study.epochs)),
        Column("variant", "variant", tuple(Cell(variant.name) for variant in study.trained), numeric=False),
        Column("metric", style.label, tuple(Cell(style.value(v.metric.value)) for v in study.trained)),
        Column("delta", f"against {study.rival.name}", tuple(difference(d, style) for d in study.differences)),
        Column("seconds", "made in", tuple(_seconds(variant.seconds) for variant in study.trained)),
    )


def _winner(contrast: Contrast, style: Scores) -> Cell:
    best = winner(contrast, style)
    return Cell(words.NO_DIFFERENCE, tone="muted") if best is None else Cell(best, tone="good")


def _seconds(value: float | None) -> Cell:
    return Cell("-" if value is None else words.seconds(value), tone="muted")


def _made(contrast: Contrast, results: Results) -> str:
    took = {variant.name: variant.seconds for variant in results.variants}
    first, second = took[contrast.first], took[contrast.second]
    if first is None or second is None:
        return ""
    return f"; made in {words.seconds(first)} ({contrast.first}) and {words.seconds(second)} ({contrast.second})"


def _speed(contrast: Contrast) -> str:
    ratio = contrast.speedup
    if ratio is None:
        return ""
    if not ratio.excludes(1):
        return f"; no difference in latency ({words.ratio(ratio.value)} {words.ratio_interval(ratio)})"
    faster, slower = contrast.first, contrast.second
    if ratio.value < 1:
        faster, slower, ratio = slower, faster, ratio.inverse()
    return f"; {faster} is {words.ratio(ratio.value)} faster than {slower} {words.ratio_interval(ratio)}"
