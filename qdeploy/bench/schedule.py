"""Who is timed when: each bundle in processes of its own, in interleaved blocks A B B A, after a warm-up.

One bundle at a time runs, the others' processes sleep. Whatever changes slowly (clock frequency, temperature,
neighbours) meets all bundles alike, and the rotated order gives each of them every position equally often. A few
generations of processes follow each other, because a process's memory layout is luck that lasts as long as it does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from qdeploy import runner
from qdeploy.bench import stats
from qdeploy.bench.subject import Subject, choose_baseline, read_subjects
from qdeploy.bench.traps import DOT_PRODUCT, X86, machine_traps
from qdeploy.core.errors import QDeployError
from qdeploy.core.records import Bench, BenchRow, Environment, Golden, Interval, Latency, Ratio, from_json
from qdeploy.runtimes._errors import qdeploy_errors
from qdeploy.targets._base import open_target

Progress = Callable[[str, float], None]  # what is being done, share of the whole bench that is done (0..1)

WARM_UP_SECONDS = 3.0  # at most, a bundle and setting
SECONDS_FOR_PROCESSES = 1.0
STALLED = 1.5  # a mean that is so many times the p50 tells of threads that waited for a core
NOISY = 0.10  # an interval wider than this share of its p50 is worth a warning


def run(
    bundles: Sequence[Path],
    *,
    target: str = "local",
    threads: Sequence[int] | None = None,
    batches: Sequence[int] = (1,),
    seconds: float = 2.0,
    runtime: str = "onnxruntime",
    provider: str | None = None,
    baseline: str | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    progress: Progress | None = None,
) -> Bench:
    """Time ``bundles`` (zips or unpacked folders) on ``target``, side by side, at every pair of threads and batch.

    ``threads`` None means the cores that are allowed there; ``seconds`` is the measuring time a bundle and setting;
    ``provider`` is the runtime's own ("CUDA"), None its default.
    ``baseline`` names the bundle that speed-ups refer to; by default it is the only one whose method is "float32",
    and without one there are no speed-ups. ``pairs`` are the sha256 of further bundles that are compared, first with
    second. A bundle that fails becomes a warning and the others go on; if none is left, its error is raised.
    """
    if not bundles:
        raise QDeployError("There is nothing to measure.", "Name a bundle, or a folder that `qdeploy build` made.")
    with qdeploy_errors():
        runner.check_seconds(seconds)
    if min([*batches, *(threads or [1])]) < 1:
        raise QDeployError("Threads and batches are positive numbers.", "For example --threads 1 --batch 1.")
    subjects = read_subjects(bundles)
    reference = choose_baseline(subjects, baseline)
    counts: Sequence[int | None] = threads or [None]
    settings = [(count, batch) for count in counts for batch in batches]
    runs: list[Run] = []
    with open_target(target) as place:
        start = Start(place, runtime, provider)
        for index, (count, batch) in enumerate(settings):
            report = _section(progress, index, len(settings))
            these = [Run(subject, count, batch) for subject in subjects]
            measure(these, start, seconds=seconds, progress=report)
            runs += these
        return dataclasses.replace(_bench(runs, reference, place.name), ratios=_ratios(runs, pairs))


@dataclass(frozen=True, slots=True)
class Start:
    """Where processes are started, and in what they run a bundle."""

    place: Any  # a target plugin's instance
    runtime: str
    provider: str | None


class Run:
    """One bundle at one setting: its process while it lasts, then what was measured. A failure ends only this run."""

    def __init__(self, subject: Subject, threads: int | None, batch: int) -> None:
        self.subject, self.threads, self.batch = subject, threads, batch
        self.failure: QDeployError | None = None
        self.worker: Any = None
        self.loaded: dict[str, Any] = {}
        self.load_ms: list[float] = []
        self.call_seconds = 0.0
        self.steady = True
        self.blocks: list[list[stats.Times]] = []
        self.peak_rss_bytes = 0

    def attempt(self, step: Callable[[], None]) -> None:
        """Do ``step`` unless this run has failed; an error in it is this run's failure."""
        if self.failure is None:
            try:
                step()
            except QDeployError as error:
                self.failure = error

    def start(self, how: Start, stack: ExitStack) -> None:
        """Start a process, load the bundle in it and call it until times are steady (not on an emulated CPU)."""
        opened = how.place.open(self.subject.path, name=self.subject.name, runtime=how.runtime)
        self.worker = stack.enter_context(opened)
        self.loaded = self.worker.load(threads=self.threads, batch=self.batch, provider=how.provider)
        self.load_ms.append(self.loaded["load_ms"])
        self.blocks.append([])
        if not self.emulator:
            result = self.worker.warm_up(WARM_UP_SECONDS)
            self.call_seconds, self.steady = result["call_seconds"], self.steady and result["steady"]

    def time(self, seconds: float) -> None:
        """Measure one block."""
        self.blocks[-1].append(np.asarray(self.worker.block(seconds), np.int64))

    def finish(self) -> None:
        """End the process."""
        self.peak_rss_bytes = max(self.peak_rss_bytes, self.worker.finish())

    @property
    def emulator(self) -> str | None:
        """What emulates the CPU that this ran on."""
        emulator: str | None = self.loaded["environment"]["emulator"]
        return emulator


def measure(runs: Sequence[Run], start: Start, *, seconds: float, progress: Progress) -> None:
    """Load, warm up and time ``runs`` in interleaved blocks, in several processes one after the other.

    On an emulated CPU one process answers, and nothing is timed.
    """
    count = process_count(seconds)
    rounds, block_seconds = 0, 0.0
    for process in range(count):
        report = _section(progress, process, count)
        with ExitStack() as stack:
            for i, one in enumerate(runs):
                report(f"load {one.subject.name}", 0.3 * i / len(runs))
                one.attempt(partial(one.start, start, stack))
            timed = [one for one in runs if one.failure is None and not one.emulator]
            if process == 0:
                total, block_seconds = runner.plan_blocks(
                    seconds, max((one.call_seconds for one in timed), default=0.0)
                )
                rounds = math.ceil(total / count)
            for index in range(rounds if timed else 0):
                report("measure", 0.3 + 0.7 * index / rounds)
                for position in order(len(timed), process * rounds + index):
                    one = timed[position]
                    one.attempt(partial(one.time, block_seconds))
            for one in runs:
                one.attempt(one.finish)
        if not timed:
            return


def process_count(seconds: float) -> int:
    """How many processes measure a bundle, one after the other; one if starting several would take longer than that."""
    return stats.PROCESSES if seconds >= SECONDS_FOR_PROCESSES else 1


def order(count: int, index: int) -> list[int]:
    """The order of ``count`` bundles in round ``index``: rotated every second round, reversed in between.

    Over 2 * count rounds each bundle has every position twice, and follows its neighbours from both sides.
    """
    shift = (index // 2) % max(count, 1)
    rotated = [(i + shift) % count for i in range(count)]
    return rotated[::-1] if index % 2 else rotated


def _section(progress: Progress | None, index: int, count: int) -> Progress:
    def report(what: str, share: float) -> None:
        if progress is not None:
            progress(what, (index + share) / count)

    return report


def _bench(runs: Sequence[Run], reference: Subject | None, target: str) -> Bench:
    done = [one for one in runs if one.failure is None]
    failed = [one for one in runs if one.failure is not None]
    if not done:
        raise next(one.failure for one in failed if one.failure)
    environment = from_json(Environment, done[0].loaded["environment"], "the worker's environment")
    rows = tuple(_row(one, _base(one, done, reference)) for one in done)
    warnings = [f"{one.subject.name} was not measured. {one.failure}".replace("\n", " ") for one in failed]
    if reference is None and len({one.subject.name for one in done if one.subject.method == "float32"}) > 1:
        warnings.append("There are several float32 bundles, so no speed-up was computed. Name one with --baseline.")
    warnings += _setting_warnings(done, environment) + _noise_warnings(done, rows)
    if any(len(one.blocks) == 1 and one.blocks[0] for one in done):
        warnings.append(
            "Short: every bundle was measured in one process, and two processes of the same bundle can differ by a per "
            f"cent or two. Use --seconds {SECONDS_FOR_PROCESSES:g} or more."
        )
    name = reference.name if reference and any(one.subject is reference for one in done) else None
    return Bench(target, environment, name, rows, tuple(dict.fromkeys(warnings)))


def _base(one: Run, done: Sequence[Run], reference: Subject | None) -> Run | None:
    """The baseline's run at the same setting; None for the baseline itself."""
    if reference is None or one.subject is reference:
        return None
    same = (r for r in done if r.subject is reference and (r.threads, r.batch) == (one.threads, one.batch))
    return next(same, None)


def _ratios(runs: Sequence[Run], pairs: Sequence[tuple[str, str]]) -> tuple[Ratio, ...]:
    """How many times faster the first of each pair is than the second, at every setting at which both were timed."""
    timed = {(r.subject.sha256, r.loaded["threads"], r.batch): r for r in runs if r.failure is None and not r.emulator}
    return tuple(
        Ratio(first, second, threads, batch, stats.ratio_interval(timed[second, threads, batch].blocks, one.blocks))
        for first, second in pairs
        for (digest, threads, batch), one in timed.items()
        if digest == first and (second, threads, batch) in timed
    )


def _row(one: Run, base: Run | None) -> BenchRow:
    subject = one.subject
    latency = _withheld(one) if one.emulator else _latency(one, base)
    metric, share = subject.metric, subject.integer_mac_share
    golden = golden_of(one.loaded)
    return BenchRow(subject.name, str(subject.path), subject.size_bytes, metric, share, latency, golden)


def golden_of(loaded: Mapping[str, Any]) -> Golden:
    """What a worker's reply to "load" says of the golden vectors."""
    return Golden(**{field.name: loaded["golden"][field.name] for field in dataclasses.fields(Golden)})


def _latency(one: Run, base: Run | None) -> Latency:
    p90, p99 = (value / 1e6 for value in stats.percentiles(one.blocks, [90, 99]))
    p50 = stats.median_interval(one.blocks)
    blocks = [block for process in one.blocks for block in process]
    calls, total_ns = sum(map(len, blocks)), sum(int(block.sum()) for block in blocks)
    return Latency(
        runtime=one.loaded["runtime"],
        threads=one.loaded["threads"],
        batch=one.batch,
        p50_ms=Interval(p50.value / 1e6, p50.low / 1e6, p50.high / 1e6),
        p90_ms=p90,
        p99_ms=p99,
        throughput_per_s=one.batch * calls / total_ns * 1e9,
        load_ms=median(one.load_ms),
        peak_rss_bytes=one.peak_rss_bytes,
        calls=calls,
        blocks=len(blocks),
        speedup=stats.ratio_interval(base.blocks, one.blocks) if base else None,
        bundle_sha256=one.subject.sha256,
    )


def _withheld(one: Run) -> Latency:
    return Latency(
        runtime=one.loaded["runtime"],
        threads=one.loaded["threads"],
        batch=one.batch,
        p50_ms=Interval(0.0, 0.0, 0.0),
        p90_ms=0.0,
        p99_ms=0.0,
        throughput_per_s=0.0,
        load_ms=0.0,
        peak_rss_bytes=0,
        calls=0,
        blocks=0,
        speedup=None,
        bundle_sha256=one.subject.sha256,
        withheld=f"the CPU is emulated ({one.emulator})",
    )


def _setting_warnings(done: Sequence[Run], environment: Environment) -> list[str]:
    warnings = [str(trap) for trap in machine_traps(environment)]
    allowed = environment.cores_allowed
    for threads in sorted({one.loaded["threads"] for one in done if one.loaded["threads"] > allowed}):
        warnings.append(
            f"{threads} threads were used where {allowed} cores are allowed ({environment.cores_reason}): threads "
            f"waited for each other. Use --threads {allowed} or fewer."
        )
    for one in done:
        golden, note = one.loaded["golden"], one.loaded["note"]
        if note:
            warnings.append(f"{one.subject.name}: {note}.")
        if not golden["passed"]:
            hint = _answer_hint(environment)
            warnings.append(
                f"{one.subject.name} gives other answers here than where it was built: {golden['differing']} of "
                f"{golden['values']} golden values differ, by up to {golden['max_difference']:.3g}. {hint}"
            )
    return warnings


def _answer_hint(environment: Environment) -> str:
    isa = set(environment.isa)
    if environment.architecture in X86 and "avx2" in isa and not isa & set(DOT_PRODUCT):
        return "CPUs without VNNI saturate full-range int8 weights: build it with portable: true."
    return "Do not deploy it here before you know why."


def _noise_warnings(done: Sequence[Run], rows: Sequence[BenchRow]) -> list[str]:
    noisy = {
        row.name
        for row in rows
        if row.latency.calls and row.latency.p50_ms.high - row.latency.p50_ms.low > NOISY * row.latency.p50_ms.value
    }
    stalled = sorted(
        {row.name for row in rows if row.latency.calls and _mean_ms(row) > STALLED * row.latency.p50_ms.value}
    )
    unsettled = {one.subject.name for one in done if not one.steady} - noisy
    warnings = []
    if noisy:
        warnings.append(
            f"Noisy: the p50 of {', '.join(sorted(noisy))} is uncertain by more than {NOISY:.0%}. Stop other programs, "
            "pin this one (taskset), or raise --seconds."
        )
    if stalled:
        warnings.append(
            f"Stalls: the mean time of a call of {', '.join(stalled)} is more than {STALLED:g} times its p50: some "
            "calls wait for a core. Use fewer --threads, or stop other programs; the throughput shows what that costs."
        )
    if unsettled:
        warnings.append(
            f"The times of {', '.join(sorted(unsettled))} had not settled when the warm-up ended after "
            f"{WARM_UP_SECONDS:g} seconds. Stop other programs, or raise --seconds."
        )
    return warnings


def _mean_ms(row: BenchRow) -> float:
    return 1e3 * row.latency.batch / row.latency.throughput_per_s
