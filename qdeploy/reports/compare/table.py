"""A comparison as tables, one a fact: a row a bundle, a column a machine. Terminal, Markdown and HTML all show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from qdeploy.core.records import Metric
from qdeploy.reports import comparison, words
from qdeploy.reports.compare.facts import Bundle, Comparison, Place, Timing, Verified
from qdeploy.reports.compare.settings import Setting, settings
from qdeploy.reports.compare.summary import agreement, summary
from qdeploy.reports.comparison import Cell, Column
from qdeploy.reports.terminal import Block, Folding, markdown
from qdeploy.reports.words import Scores

DASH = Cell("-", tone="muted")

Known = TypeVar("Known", Timing, Verified)


def compare_table(compared: Comparison) -> Folding:
    """What is wrong, then the tables, then which machines these are and why things may not be comparable."""
    return Folding(blocks(compared), tuple(notes(compared)), compared.warnings, compared.alerts)


def compare_markdown(compared: Comparison) -> str:
    """The same for a page of Markdown, with the summary before the notes."""
    return markdown(replace(compare_table(compared), notes=(*summary(compared), *notes(compared))))


def blocks(compared: Comparison) -> tuple[Block, ...]:
    """Answers, p50, speed-ups and one table a metric, as far as anything of it is known."""
    made = []
    if compared.answers:
        against = f" beside {_header(compared, compared.reference)}" if compared.reference else ""
        columns = _columns(compared, _answer_columns(compared))
        made.append(Block(f"Answers{against}", tuple(replace(column, numeric=False) for column in columns)))
    shown, common = settings(compared.timings)
    tail = f": {common}" if common else ""
    times = [(one.header, _cells(compared, one.timings, lambda t: comparison.p50(t.latency))) for one in shown]
    made.append(Block(f"p50 latency{tail}", _columns(compared, times)))
    faster = [(one.header, _cells(compared, one.timings, speedup)) for one in shown if _has_speedup(one)]
    made.append(Block(f"Speed-up{_over(compared)} on the same machine{tail}", _columns(compared, faster)))
    return tuple(block for block in (*made, *_metric_blocks(compared)) if len(block.columns) > 1)


def notes(compared: Comparison) -> list[str]:
    """How to read the tables, then the machines one by one."""
    machines = (
        f"{m.label}: {'' if m.target == m.label else f'{m.target}, '}{words.environment_line(m.environment)}"
        for m in compared.machines
    )
    return [*reading(compared), *machines]


def reading(compared: Comparison) -> list[str]:
    """What a reader of the tables must know beside them."""
    lines = list(compared.notes)
    if compared.timings:
        lines.append(
            "p50: median time of a call; [low, high] is a 95% interval. A speed-up is the p50 of the baseline over "
            f'this one, in the same run; one whose interval includes 1 is "{words.NO_DIFFERENCE}".'
        )
    if compared.reference is not None:
        lines.append(
            "bit-identical: every output for the evaluation split has the bits that it has on "
            f"{compared.reference.machine}; otherwise the share of samples that are decided as there."
        )
    if compared.answers:
        lines.append("golden: the outputs that a bundle carries for some samples, compared with those of the machine.")
    return lines


def speedup(timing: Timing) -> Cell:
    """How many times faster than the baseline of its run a bundle is."""
    if timing.latency.speedup is None and timing.baseline_sha256 != timing.bundle_sha256:
        return DASH
    return comparison.ratio_cell(timing.latency.speedup)


def answer(one: Verified) -> Cell:
    """Whether the machine answers as it should (golden vectors) and as the reference does."""
    golden, agrees, counted = one.golden, "", ""
    if one.identical:
        agrees = "bit-identical"
    elif one.differing == 0:
        agrees = "same decisions"
    elif one.agreement is not None and one.differing is not None:
        agrees = f"{agreement(one.agreement)} alike"
        counted = f", {words.plural(one.differing, 'decision')} {'differs' if one.differing == 1 else 'differ'}"
    elif one.identical is False:
        agrees = "not bit-identical"
    if not golden.passed:
        return Cell(f"{golden.differing:,} of {golden.values:,} golden differ", agrees, "bad")
    return Cell(agrees, f"golden ok{counted}") if agrees else Cell("golden ok")


def _answer_columns(compared: Comparison) -> list[tuple[str, tuple[Cell, ...]]]:
    """One a machine and runtime; that of the reference says so."""
    columns = []
    for place in _runtimes(compared):
        mine = " (reference)" if place == compared.reference else ""
        columns.append((_header(compared, place) + mine, _cells(compared, _answers_of(compared, place), answer)))
    return columns


def _metric_blocks(compared: Comparison) -> list[Block]:
    """A table a metric: as recorded when a bundle was built, then as each machine found it."""
    found = [*(bundle.metric for bundle in compared.bundles), *(one.metric for one in compared.answers)]
    made: list[Block] = []
    for name in dict.fromkeys(metric.name for metric in found if metric is not None):
        style = Scores.of(metric for metric in found if metric is not None and metric.name == name)
        columns = [("when built", tuple(_score(bundle.metric, name, style) for bundle in compared.bundles))]
        for place in _runtimes(compared):
            known = {digest: one.metric for digest, one in _answers_of(compared, place).items()}
            cells = tuple(_score(known.get(bundle.sha256), name, style) for bundle in compared.bundles)
            columns.append((_header(compared, place), cells))
        made.append(Block(_capital(style.label), _columns(compared, columns, sizes=not made)))
    return made


def _score(metric: Metric | None, name: str, style: Scores) -> Cell:
    """The metric with its interval; a dash where it is unknown, or another one."""
    return comparison.score(metric if metric is not None and metric.name == name else None, style)


def _columns(
    compared: Comparison, columns: Sequence[tuple[str, tuple[Cell, ...]]], *, sizes: bool = False
) -> tuple[Column, ...]:
    """The bundles' names, and those columns that hold anything; ``sizes`` adds the size of model.onnx."""
    names = Column("variant", "bundle", tuple(Cell(bundle.label) for bundle in compared.bundles), numeric=False)
    if sizes and any(bundle.size_bytes is not None for bundle in compared.bundles):
        columns = [("file size", tuple(_size(bundle) for bundle in compared.bundles)), *columns]
    filled = [(header, cells) for header, cells in columns if any(cell != DASH for cell in cells)]
    return (names, *(Column(f"machine-{i}", header, cells) for i, (header, cells) in enumerate(filled)))


def _cells(compared: Comparison, known: Mapping[str, Known], make: Callable[[Known], Cell]) -> tuple[Cell, ...]:
    """A cell a bundle; a dash where nothing is known of it."""
    return tuple(make(known[b.sha256]) if b.sha256 in known else DASH for b in compared.bundles)


def _size(bundle: Bundle) -> Cell:
    return DASH if bundle.size_bytes is None else Cell(words.size(bundle.size_bytes))


def _runtimes(compared: Comparison) -> list[Place]:
    """The machines and runtimes that answered, in order of the machines."""
    found = dict.fromkeys(Place(one.machine, one.runtime) for one in compared.answers)
    order = [machine.label for machine in compared.machines]
    return sorted(found, key=lambda place: order.index(place.machine))


def _answers_of(compared: Comparison, place: Place) -> dict[str, Verified]:
    return {one.bundle_sha256: one for one in compared.answers if Place(one.machine, one.runtime) == place}


def _header(compared: Comparison, place: Place) -> str:
    """The machine, and the runtime where answers are of several."""
    several = len({one.runtime for one in compared.answers}) > 1
    return f"{place.machine}, {place.runtime}" if several else place.machine


def _has_speedup(setting: Setting) -> bool:
    return any(timing.latency.speedup is not None for timing in setting.timings.values())


def _over(compared: Comparison) -> str:
    """What all speed-ups refer to, as in " over fp32"; nothing where that is not one bundle."""
    over = {timing.baseline_sha256 for timing in compared.timings if timing.latency.speedup is not None}
    names = [bundle.label for bundle in compared.bundles if bundle.sha256 in over]
    return f" over {names[0]}" if len(over) == len(names) == 1 else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
