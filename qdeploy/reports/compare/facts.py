"""What records of several machines say together, as facts: the only thing that the views of a comparison read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qdeploy.core.records import Answer, Environment, Golden, Interval, Latency, Metric

COMPARISON_SCHEMA = "qdeploy.comparison/1"


@dataclass(frozen=True, slots=True)
class Machine:
    """A place where something was measured: records of the same target, hardware, system and onnxruntime."""

    label: str  # short, and like no other machine's
    target: str
    environment: Environment
    sources: tuple[str, ...]  # the files that it was read from


@dataclass(frozen=True, slots=True)
class Bundle:
    """A row. Its digest tells it from other bundles, also from those of the same name."""

    name: str
    sha256: str
    size_bytes: int | None = None  # of model.onnx
    metric: Metric | None = None  # as recorded when it was built: not measured on any of the machines
    dataset: str = ""
    label: str = ""  # its name, with a part of its digest where another bundle here has that name too


@dataclass(frozen=True, slots=True)
class Timing:
    """A bundle's times on a machine at one setting; ``latency.runtime`` is written without onnxruntime's version."""

    bundle_sha256: str
    machine: str  # its label
    latency: Latency
    baseline_sha256: str | None  # the bundle that the speed-up refers to
    source: str


@dataclass(frozen=True, slots=True)
class Verified:
    """A bundle's answers on a machine in one runtime, beside those of the reference.

    ``identical``, ``agreement`` and ``differing`` are None where either side did not run the evaluation split, or ran
    another one, and for the reference itself.
    """

    bundle_sha256: str
    machine: str
    runtime: str  # without onnxruntime's version
    golden: Golden
    metric: Metric | None
    delta: Interval | None  # metric minus float32's on the same machine
    identical: bool | None  # whether all outputs for the split are those of the reference, bit for bit
    agreement: float | None  # share of the samples that it decides as the reference does
    differing: int | None  # samples that it decides otherwise
    note: str | None  # what its answers needed there
    source: str


@dataclass(frozen=True, slots=True)
class Place:
    """A machine and a runtime on it: who answers."""

    machine: str
    runtime: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that the records say together. Times of emulated CPUs are not in it."""

    machines: tuple[Machine, ...]
    bundles: tuple[Bundle, ...]
    timings: tuple[Timing, ...] = ()
    answers: tuple[Verified, ...] = ()
    reference: Place | None = None  # whose answers the others' are compared with: the first that were recorded
    alerts: tuple[str, ...] = ()  # answers that are wrong: to be said first
    warnings: tuple[str, ...] = ()  # why something here may not be comparable
    notes: tuple[str, ...] = ()
    schema: str = COMPARISON_SCHEMA


@dataclass(frozen=True, slots=True)
class Part:
    """What one file says, whichever kind of record it holds."""

    source: str
    target: str
    environment: Environment | None  # None: nothing was measured
    bundles: tuple[Bundle, ...]
    latencies: tuple[tuple[str, Latency], ...] = ()  # with their bundle's digest
    baseline: str | None = None  # digest of the bundle that speed-ups refer to
    answers: tuple[Answer, ...] = ()
    runtime: str = ""
    dataset: str = ""
    warnings: tuple[str, ...] = ()


def joined(names: Iterable[str]) -> str:
    """Each of ``names`` once, as in "a, b and c"."""
    *most, last = dict.fromkeys(names)
    return f"{', '.join(most)} and {last}" if most else last
