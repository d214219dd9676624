"""Whether machines answer alike: golden vectors, bits and decisions, beside those of the reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError
from qdeploy.core.records import Answer, unpack_decisions
from qdeploy.reports.compare.facts import Machine, Part, Place, Verified, joined
from qdeploy.reports.compare.machines import runtime_name

Run = tuple[Answer, Part]  # an answer and the file it is from
Cells = Mapping[tuple[str, str, str], Sequence[Run]]  # by digest, machine and runtime


def gather(parts: Sequence[Part], places: Mapping[int, Machine]) -> Cells:
    """All answers of each bundle on each machine in each runtime."""
    cells: dict[tuple[str, str, str], list[Run]] = {}
    for index, machine in places.items():
        runtime = runtime_name(parts[index].runtime, machine.environment)
        for answer in parts[index].answers:
            cells.setdefault((answer.bundle_sha256, machine.label, runtime), []).append((answer, parts[index]))
    return cells


def choose_reference(cells: Cells) -> Place | None:
    """The first place whose answers for an evaluation split are recorded; None where there is no second one."""
    ran = dict.fromkeys(
        Place(label, runtime)
        for (_, label, runtime), runs in cells.items()
        if any(answer.outputs_sha256 or answer.decisions for answer, _ in runs)
    )
    return next(iter(ran)) if len(ran) > 1 else None


def verify(cells: Cells, reference: Place | None) -> list[Verified]:
    """One outcome a cell, beside the reference's. QDeployError for decisions that cannot be read."""
    outcomes = []
    for (digest, label, runtime), runs in cells.items():
        base = cells.get((digest, reference.machine, reference.runtime), ()) if reference else ()
        outcomes.append(_outcome(runs, () if base is runs else base, label, runtime))
    return outcomes


def _outcome(runs: Sequence[Run], base: Sequence[Run], label: str, runtime: str) -> Verified:
    """Golden vectors as the worst of the runs found them, the rest of the run that knows most about the split."""
    answer, part = _fullest(runs)
    identical, agreement, differing = _agreement((answer, part), _fullest(base)) if base else (None, None, None)
    notes = dict.fromkeys(run.note for run, _ in runs if run.note)
    return Verified(
        answer.bundle_sha256,
        label,
        runtime,
        min((run.golden for run, _ in runs), key=lambda golden: golden.passed),
        answer.metric,
        answer.delta,
        identical,
        agreement,
        differing,
        " ".join(notes) or None,
        part.source,
    )


def _fullest(runs: Sequence[Run]) -> Run:
    def known(run: Run) -> int:
        answer, _ = run
        return sum(fact is not None for fact in (answer.metric, answer.outputs_sha256, answer.decisions))

    return max(runs, key=known)


def _agreement(run: Run, base: Run) -> tuple[bool | None, float | None, int | None]:
    """Whether two runs are bit-identical, the share of samples decided alike, and how many are not."""
    (a, part), (b, other) = run, base
    if _split(run) != _split(base):
        return None, None, None
    identical = a.outputs_sha256 == b.outputs_sha256 if a.outputs_sha256 and b.outputs_sha256 else None
    if identical:
        return True, 1.0, 0
    if a.decisions is None or b.decisions is None:
        return identical, None, None
    left, right = _decisions(a.decisions, a.name, part.source), _decisions(b.decisions, b.name, other.source)
    if len(left) != len(right) or not len(left):
        return identical, None, None
    differing = int(np.count_nonzero(left != right))
    return identical, 1 - differing / len(left), differing


def _split(run: Run) -> tuple[str, int | None]:
    """What tells evaluation splits apart."""
    answer, part = run
    return part.dataset, answer.metric.samples if answer.metric else None


def _decisions(text: str, name: str, source: str) -> NDArray[np.int32]:
    try:
        return unpack_decisions(text)
    except QDeployError as error:
        raise QDeployError(f"{source}: the decisions of {name} cannot be read. {error.message}", error.hint) from error


def alerts(outcomes: Iterable[Verified], names: Mapping[str, str]) -> list[str]:
    """What must be said first: golden vectors that do not come out."""
    outcomes = list(outcomes)
    runtimes = {machine: {one.runtime for one in outcomes if one.machine == machine} for machine in
                {one.machine for one in outcomes}}  # fmt: skip
    return [
        f"{names[one.bundle_sha256]} gives other answers on {one.machine}"
        f"{f' in {one.runtime}' if len(runtimes[one.machine]) > 1 else ''} than where it was built: "
        f"{one.golden.differing:,} of {one.golden.values:,} golden values differ, by up to "
        f"{one.golden.max_difference:.3g}."
        for one in outcomes
        if not one.golden.passed
    ]


def unrepeated(cells: Cells, names: Mapping[str, str]) -> list[str]:
    """Warnings about runs of one bundle in one place that did not give the same bits."""
    warnings = []
    for (digest, label, _), runs in cells.items():
        ran = [run for run in runs if run[0].outputs_sha256]
        if len({(_split(run), run[0].outputs_sha256) for run in ran}) > len({_split(run) for run in ran}):
            files = joined(part.source for _, part in ran)
            warnings.append(f"Two runs of {names[digest]} on {label} gave different outputs: {files}.")
    return warnings


def notes(outcomes: Iterable[Verified], names: Mapping[str, str]) -> list[str]:
    """What answers needed, once for all bundles of a machine that needed the same."""
    needed: dict[tuple[str, str], list[str]] = {}
    for one in outcomes:
        if one.note:
            needed.setdefault((one.machine, one.note), []).append(names[one.bundle_sha256])
    return [f"{joined(bundles)} on {machine}: {note}" for (machine, note), bundles in needed.items()]
