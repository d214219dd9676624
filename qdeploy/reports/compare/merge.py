"""Records of several machines, merged into one comparison."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from qdeploy.core.errors import QDeployError
from qdeploy.core.records import Answer, Answers, Bench, Latency, Results
from qdeploy.reports import words
from qdeploy.reports.compare import answers
from qdeploy.reports.compare.comparability import warnings_about
from qdeploy.reports.compare.facts import Bundle, Comparison, Machine, Part, Timing, joined
from qdeploy.reports.compare.machines import machines_of, runtime_name

DIGEST = 8  # letters of a digest that tell two bundles of one name apart


def compare(sources: Sequence[tuple[str, Results | Bench | Answers]]) -> Comparison:
    """Merge records, each with the name of its file; the first one that holds answers is the reference for the others'.

    QDeployError where they hold nothing, or decisions that cannot be read.
    """
    benched = {_bare(row.latency) for _, record in sources if isinstance(record, Bench) for row in record.rows}
    parts = [_part(source, record, benched) for source, record in sources]
    bundles = _bundles(parts)
    if not bundles:
        files = ", ".join(source for source, _ in sources)
        raise QDeployError(f"There is nothing to compare: no bundle is recorded in {files or 'no file at all'}.",
                           "Write records with `qdeploy bench ... --json FILE` on each machine.")  # fmt: skip
    machines, places = machines_of(parts)
    names = {bundle.sha256: bundle.label for bundle in bundles}
    timings, notes = _timings(parts, places, names)
    cells = answers.gather(parts, places)
    reference = answers.choose_reference(cells)
    verified = answers.verify(cells, reference)
    doubts = [*warnings_about(parts, bundles, machines, timings, verified), *answers.unrepeated(cells, names)]
    said = [f"{places[i].label}: {text}" for i, part in enumerate(parts) if i in places for text in part.warnings]
    return Comparison(
        machines,
        bundles,
        tuple(timings),
        tuple(verified),
        reference,
        tuple(answers.alerts(verified, names)),
        warnings=(*doubts, *dict.fromkeys(said)),
        notes=(*notes, *answers.notes(verified, names)),
    )


def _part(source: str, record: Results | Bench | Answers, benched: Collection[Latency]) -> Part:
    if isinstance(record, Results):
        return _build_part(source, record, benched)
    if isinstance(record, Bench):
        bases = [r.latency.bundle_sha256 for r in record.rows if r.name == record.baseline and not r.latency.speedup]
        return Part(
            source,
            record.target,
            record.environment,
            tuple(Bundle(row.name, row.latency.bundle_sha256, row.size_bytes, row.metric) for row in record.rows),
            tuple((row.latency.bundle_sha256, row.latency) for row in record.rows),
            answers=tuple(
                Answer(row.name, row.bundle, row.latency.bundle_sha256, "", row.golden)
                for row in record.rows
                if row.golden
            ),
            runtime=record.rows[0].latency.runtime if record.rows else "",
            baseline=next(iter(bases), None),
            warnings=record.warnings,
        )
    return Part(
        source,
        record.target,
        record.environment,
        tuple(Bundle(row.name, row.bundle_sha256) for row in record.rows),
        answers=record.rows,
        runtime=record.runtime,
        dataset=record.dataset,
        warnings=record.warnings,
    )


def _build_part(source: str, results: Results, benched: Collection[Latency]) -> Part:
    """A build's part. It is about a machine only if it holds times that are not those of a bench beside it.

    ``qdeploy bench`` of a build folder leaves its times in results.json too, which does not say on which target.
    """
    pairs = [(v.bundle_sha256, v.latency) for v in results.variants if v.latency is not None]
    own = tuple((digest, latency) for digest, latency in pairs if _bare(latency) not in benched)
    bases = [v.bundle_sha256 for v in results.variants if v.name == results.baseline]
    return Part(
        source,
        "local",
        results.environment if own else None,
        tuple(Bundle(v.name, v.bundle_sha256, v.size_bytes, v.metric, results.dataset) for v in results.variants),
        own,
        baseline=next(iter(bases), None),
    )


def _bare(latency: Latency) -> Latency:
    """Without the speed-up, which a build leaves out where it refers to a bundle of another build."""
    return dataclasses.replace(latency, speedup=None)


def _bundles(parts: Iterable[Part]) -> tuple[Bundle, ...]:
    """One for each digest, with what any of the records knows about it; names that several have get their digest."""
    found: dict[str, Bundle] = {}
    for bundle in (bundle for part in parts for bundle in part.bundles):
        known = found.setdefault(bundle.sha256, bundle)
        found[bundle.sha256] = dataclasses.replace(
            known,
            size_bytes=bundle.size_bytes if known.size_bytes is None else known.size_bytes,
            metric=known.metric or bundle.metric,
            dataset=known.dataset or bundle.dataset,
        )
    shared = Counter(bundle.name for bundle in found.values())
    order = list(shared)  # bundles of one name stand together
    digits = DIGEST
    while len({digest[:digits] for digest in found}) < len(found):
        digits += 1
    return tuple(
        dataclasses.replace(b, label=f"{b.name} ({b.sha256[:digits]})" if shared[b.name] > 1 else b.name)
        for b in sorted(found.values(), key=lambda bundle: order.index(bundle.name))
    )


def _timings(parts: Sequence[Part], places: Mapping[int, Machine], names: Mapping[str, str]
) -> tuple[list[Timing], list[str]]:  # fmt: skip
    """The times that may be read, one for each bundle, machine and setting, and notes about the others."""
    best: dict[tuple[str, str, str], Timing] = {}
    withheld: dict[str, list[str]] = {}
    again: list[str] = []
    for index, machine in places.items():
        emulated = f"the CPU is emulated ({machine.environment.emulator})" if machine.environment.emulator else None
        for digest, found in parts[index].latencies:
            if reason := emulated or found.withheld:
                withheld.setdefault(reason.rstrip("."), []).append(machine.label)
                continue
            latency = dataclasses.replace(found, runtime=runtime_name(found.runtime, machine.environment))
            timing = Timing(digest, machine.label, latency, parts[index].baseline, parts[index].source)
            other = best.setdefault((digest, machine.label, words.setting(latency)), timing)
            if other.latency != latency:
                again.append(f"{names[digest]} on {machine.label}")
                if other.latency.calls < latency.calls:
                    best[digest, machine.label, words.setting(latency)] = timing
    notes = [f"Times on {joined(labels)} are withheld: {reason}." for reason, labels in withheld.items()]
    runs: dict[tuple[str, str], list[str]] = {}
    for (_, label, setting), timing in best.items():
        runs.setdefault((label, setting), []).append(timing.source)
    notes += [
        f"Times on {label} ({setting}) are of several runs, which differ by more than their intervals say: "
        f"{joined(files)}. A speed-up compares times of one run."
        for (label, setting), files in runs.items()
        if len(set(files)) > 1
    ]
    if again:
        notes.append(f"Timed more than once at one setting, of which the measurement with more calls is shown: "
                     f"{joined(again)}.")  # fmt: skip
    return list(best.values()), notes
