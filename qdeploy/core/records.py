"""Frozen, versioned results. They are what a build and a bench leave behind and the only thing that reports read.

A record holds measured facts and nothing derived for display. ``to_json`` and ``from_json`` are inverse; reading a
file of another version, or one with missing or unknown keys, is one clear error.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import types
import typing
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError
from qdeploy.core.files import write_json

RESULTS_SCHEMA = "qdeploy.results/1"
BENCH_SCHEMA = "qdeploy.bench/1"
ANSWERS_SCHEMA = "qdeploy.answers/1"
MOST_DECISIONS = 100_000_000  # samples of one split


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its two-sided 95% interval, in the unit of the field that holds it."""

    value: float
    low: float
    high: float

    def excludes(self, reference: float) -> bool:
        """Whether ``reference`` lies outside the interval, that is, whether the difference from it is real."""
        return not self.low <= reference <= self.high

    def negative(self) -> Interval:
        """The interval of minus the value: a difference taken the other way around."""
        return Interval(0.0 - self.value, 0.0 - self.high, 0.0 - self.low)

    def inverse(self) -> Interval:
        """The interval of one over the value, which is positive: a ratio taken the other way around."""
        return Interval(1 / self.value, 1 / self.high, 1 / self.low)


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine and software that a measurement was made with. Made by ``runner.environment()``."""

    cpu: str
    architecture: str  # platform.machine(): x86_64, aarch64, arm64
    isa: tuple[str, ...]  # the flags that matter to integer kernels: avx2, avx512_vnni, amx_int8, asimddp, i8mm ...
    cores_present: int
    cores_allowed: int
    cores_reason: str  # what limits cores_allowed: "affinity mask", "cgroup quota", "SLURM_CPUS_PER_TASK", "all cores"
    memory_bytes: int
    governor: str | None  # cpufreq scaling governor, None where the system does not say
    emulator: str | None  # "qemu" when the CPU is emulated: times are then withheld
    system: str
    python: str
    onnxruntime: str
    numpy: str


@dataclass(frozen=True, slots=True)
class Metric:
    """The deployed metric: the artifact run in a runtime over a whole evaluation split."""

    name: str  # the metric plugin, "top1"
    value: float  # a fraction for accuracies: 0.9173
    low: float  # 95% bootstrap interval over evaluation samples
    high: float
    samples: int
    higher_is_better: bool = True

    @property
    def is_fraction(self) -> bool:
        """Whether it lies in 0..1 and grows with quality, so that a difference is so many percentage points."""
        return self.higher_is_better and self.low >= 0 and self.high <= 1


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts in equal bins over [low, high], with the range that the quantizer chose."""

    counts: tuple[int, ...]
    low: float
    high: float
    range_low: float
    range_high: float


@dataclass(frozen=True, slots=True)
class Layer:
    """One compute layer of an artifact, as onnxruntime runs it and as the integer reference checks it."""

    name: str  # the PyTorch module's name: "layer1.0.conv1"
    op: str  # the ONNX operator in the artifact: "Conv"
    kernel: str  # the operator in onnxruntime's optimized graph: "QLinearConv"
    integer: bool
    reason: str  # why it runs in float32; empty for an integer layer
    macs: int  # multiply-accumulates for one sample
    weight_bits: int | None = None
    activation_bits: int | None = None
    outputs_checked: int | None = None  # output codes compared with the integer reference
    differing_codes: int | None = None
    max_step: int | None = None  # the largest difference, in codes
    sqnr_db: float | None = None  # deployed output against float32 on the same model input (cumulative)
    sqnr_local_db: float | None = None  # this layer alone quantized, float32 inputs
    weights: Histogram | None = None
    activations: Histogram | None = None  # of the layer's output


@dataclass(frozen=True, slots=True)
class Latency:
    """One bundle timed at one setting. Times are milliseconds a call; a call runs ``batch`` samples."""

    runtime: str  # the runtime plugin and provider: "onnxruntime (CPU)"
    threads: int
    batch: int
    p50_ms: Interval
    p90_ms: float
    p99_ms: float
    throughput_per_s: float  # samples a second
    load_ms: float
    peak_rss_bytes: int
    calls: int
    blocks: int
    speedup: Interval | None  # float32's p50 over this p50, same run, threads and batch; None for the baseline itself
    bundle_sha256: str
    withheld: str | None = None  # why times must not be read (an emulated CPU): then all of them are 0


@dataclass(frozen=True, slots=True)
class HalfPrecision:
    """What storing one float32 weight in 16 bits did to its values. All counts are of values."""

    name: str  # of the initializer: "layer1.0.conv1.weight"
    values: int
    largest: float  # the largest magnitude in float32
    overflows: int  # beyond the type's range
    zeros: int  # not 0 before, 0 now
    subnormals: int  # stored with fewer digits than the type has
    relative_error: float  # the largest |stored - value| / |value| of those that are neither 0 now nor beyond range


@dataclass(frozen=True, slots=True)
class SplitMetric:
    """The deployed metric on another split than the one that judges: "train" or "validation"."""

    split: str
    metric: Metric
    gap: Interval  # this metric minus the evaluation split's, bootstrap over independent samples


@dataclass(frozen=True, slots=True)
class Summary:
    """What a variant wins and costs against float32, under the names that other tools look for.

    ``speedup`` is float32's p50 over this p50 in onnxruntime on the CPU, same threads, batch 1.
    ``accuracy_drop_percent`` is float32's metric minus this one's in percentage points, paired; None where the metric
    is no fraction.
    """

    compression_ratio: float
    speedup: Interval
    accuracy_drop_percent: Interval | None


@dataclass(frozen=True, slots=True)
class Variant:
    """Everything known about one variant of a build."""

    name: str
    method: str  # float32, ptq, qat ...
    metric: Metric
    delta: Interval | None  # metric minus float32's on the same samples, paired bootstrap; None for the baseline
    agreement: float | None  # share of evaluation samples on which it decides as float32 does
    size_bytes: int  # of model.onnx
    compression: float  # float32's model.onnx over this one
    bundle: str  # path of the bundle, relative to the results file
    bundle_sha256: str
    integer_mac_share: float  # 0..1
    differing_codes: int  # over all layers that must be exact
    layers: tuple[Layer, ...]
    latency: Latency | None = None
    seconds: float | None = None  # wall time of making it: calibration, rounding or training on, export
    unportable: int | None = None  # integer layers that some CPU computes otherwise; None where none is integer
    quantization: dict[str, Any] = field(default_factory=dict)  # the recipe's settings; {} where nothing is quantized
    half_precision: tuple[HalfPrecision, ...] = ()  # of the weights that are stored in 16 bits
    also: tuple[SplitMetric, ...] = ()
    summary: Summary | None = None  # None for the baseline, and until latencies were measured
    comparison: str = "exact"  # how golden outputs are compared elsewhere; "close" where anything is float32


@dataclass(frozen=True, slots=True)
class Refusal:
    """A variant of a recipe that cannot be made, and why: it is reported and never approximated.

    ``kind``: "not representable" (it has no exact integer form) or "not applicable" (there is nothing for it to do).
    """

    name: str
    method: str
    reason: str
    kind: str = "not representable"  # or "not applicable": the words in the place of a number
    quantization: dict[str, Any] = field(default_factory=dict)  # the recipe's settings


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two variants beside each other, as the recipe's ``contrasts`` ask. How long each took to make is in Variant."""

    first: str
    second: str
    difference: Interval  # the first one's metric minus the second one's on the same samples, paired bootstrap
    agreement: float  # the share of evaluation samples that both decide alike
    speedup: Interval | None = None  # the second one's p50 over the first one's, same run; None until it was measured


# Options of a data set that say where its files are on one machine: they are not kept, and a results.json from
# elsewhere chooses no folder to read from and nothing to download.
PLACES = frozenset({"root", "path", "download"})


@dataclass(frozen=True, slots=True)
class Results:
    """What ``qdeploy build`` leaves in results.json. ``environment`` is None until a latency was measured."""

    name: str
    baseline: str  # the variant that deltas, compression and speed-ups refer to
    variants: tuple[Variant, ...]
    environment: Environment | None = None
    dataset: str = ""
    created_by: str = ""  # "qdeploy 0.1.0"
    refusals: tuple[Refusal, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    parameters: int | None = None  # numbers that training set in the float32 model
    training_seconds: float | None = None  # wall time of training it; None where a checkpoint was given
    profile: str = ""  # of the recipe's profiles, the one that was built
    data_options: dict[str, Any] = field(default_factory=dict)  # the recipe's, without places of files (PLACES)
    schema: str = RESULTS_SCHEMA


@dataclass(frozen=True, slots=True)
class Golden:
    """How a bundle's golden outputs compared: ``differing`` of ``values``, over ``samples`` samples."""

    passed: bool
    samples: int
    values: int
    differing: int
    max_difference: float
    comparison: str  # "exact" or "close"


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One bundle at one setting."""

    name: str
    bundle: str
    size_bytes: int
    metric: Metric | None  # copied from the bundle's manifest
    integer_mac_share: float | None
    latency: Latency
    golden: Golden | None = None  # of the first samples, as many as one call took


@dataclass(frozen=True, slots=True)
class Ratio:
    """The second bundle's p50 over the first one's at one setting: how many times faster the first one is."""

    first: str  # a bundle's sha256
    second: str
    threads: int
    batch: int
    speedup: Interval


@dataclass(frozen=True, slots=True)
class Bench:
    """What ``qdeploy bench`` measured on one target, in one interleaved run."""

    target: str
    environment: Environment
    baseline: str | None  # the row that speed-ups refer to
    rows: tuple[BenchRow, ...]
    warnings: tuple[str, ...] = field(default=())
    ratios: tuple[Ratio, ...] = ()  # of the pairs that were asked for, beside the baseline's
    schema: str = BENCH_SCHEMA


@dataclass(frozen=True, slots=True)
class Answer:
    """What one bundle answers in one place. The last fields are None where the evaluation split was not run."""

    name: str
    bundle: str
    bundle_sha256: str
    method: str  # float32, ptq, qat ...
    golden: Golden
    metric: Metric | None = None
    delta: Interval | None = None  # metric minus float32's in the same place, paired bootstrap; None for float32 itself
    outputs_sha256: str | None = None  # of all outputs for the whole split: equal where every bit is
    decisions: str | None = None  # one integer a sample (or a pixel), as ``pack_decisions`` writes them
    note: str | None = None  # what the answers needed there


@dataclass(frozen=True, slots=True)
class Answers:
    """What ``qdeploy verify`` and ``qdeploy accuracy`` found on one target, in one runtime."""

    target: str
    runtime: str
    environment: Environment
    rows: tuple[Answer, ...]
    dataset: str = ""  # whose evaluation split was run
    warnings: tuple[str, ...] = ()
    schema: str = ANSWERS_SCHEMA


def pack_decisions(decisions: NDArray[Any]) -> str:
    """Integers [N] as text: their int32 bytes (little endian), deflated, in base64."""
    return base64.b64encode(zlib.compress(decisions.astype("<i4").tobytes(), 9)).decode()


def unpack_decisions(text: str) -> NDArray[np.int32]:
    """The inverse of ``pack_decisions``. QDeployError for any other text."""
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text, validate=True), MOST_DECISIONS * 4)
        if not unpacker.eof:
            raise ValueError("it is cut off, or too long")
        return np.frombuffer(data, "<i4")
    except (ValueError, zlib.error) as error:
        raise QDeployError(
            f"These are no decisions: {error}.", "Write the file again with `qdeploy accuracy`."
        ) from None


Record = TypeVar("Record")


def to_json(record: Any) -> dict[str, Any]:
    """A record as plain JSON data."""
    return dataclasses.asdict(record)


def from_json(cls: type[Record], data: Any, where: str = "record") -> Record:
    """The record of type ``cls`` that ``data`` describes; ``where`` names it in errors."""
    return typing.cast(Record, _decode(cls, data, where))


def save(record: Any, path: Path) -> None:
    """Write a record as JSON, atomically."""
    write_json(path, to_json(record))


def load(cls: type[Record], path: Path) -> Record:
    """Read a record of type ``cls`` from ``path``."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QDeployError(f"There is no file {path}.", "`qdeploy build` writes it.") from None
    except (ValueError, OSError) as error:
        raise QDeployError(f"{path} cannot be read as JSON: {error}.") from error
    expected = next((f.default for f in dataclasses.fields(cls) if f.name == "schema"), None)  # type: ignore[arg-type]
    found = data.get("schema") if isinstance(data, dict) else None
    if expected is not None and found != expected:
        raise QDeployError(
            f"{path} has schema {found!r}, this version of qdeploy reads {expected!r}.",
            "Write it again with this version.",
        )
    return from_json(cls, data, str(path))


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if data is None else _decode(options[0], data, where)
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise QDeployError(f"{where}: expected a list, found {type(data).__name__}.")
        item = typing.get_args(kind)[0]
        return tuple(_decode(item, value, f"{where}[{i}]") for i, value in enumerate(data))
    if origin is dict:
        kind = dict  # plain JSON data, whatever it holds
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, where)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise QDeployError(f"{where}: expected {kind.__name__}, found {data!r}.")
    return data


def _decode_dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise QDeployError(f"{where}: expected an object, found {type(data).__name__}.")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise QDeployError(f"{where}: unknown key {unknown[0]!r}.")
    values = {}
    for name, spec in fields.items():
        if name in data:
            values[name] = _decode(hints[name], data[name], f"{where}.{name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise QDeployError(f"{where}: key {name!r} is missing.")
    return kind(**values)
