"""Made-up records that look like real ones, to test and to look at reports. Never a result of anything."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

from qdeploy.core import records
from qdeploy.core.records import Interval

SAMPLES = 10_000
SHA = "0" * 64


def environment(**changes: object) -> records.Environment:
    values = records.Environment(
        cpu="Example(R) Silver 4314 CPU @ 2.40GHz",
        architecture="x86_64",
        isa=("avx2", "avx512f", "avx512_vnni"),
        cores_present=64,
        cores_allowed=2,
        cores_reason="cgroup quota",
        memory_bytes=8_589_934_592,
        governor=None,
        emulator=None,
        system="Linux-6.1-x86_64",
        python="3.11.2",
        onnxruntime="1.31.1",
        numpy="2.3.1",
    )
    return dataclasses.replace(values, **changes)


def metric(value: float) -> records.Metric:
    half = 1.96 * (value * (1 - value) / SAMPLES) ** 0.5
    return records.Metric("top1", value, value - half, min(1.0, value + half), SAMPLES)


def latency(p50: float, speed: float | None, **changes: object) -> records.Latency:
    speedup = None if speed is None else Interval(speed, speed * 0.97, speed * 1.03)
    values = records.Latency(
        runtime="onnxruntime (CPU)",
        threads=1,
        batch=1,
        p50_ms=Interval(p50, p50 * 0.985, p50 * 1.015),
        p90_ms=p50 * 1.08,
        p99_ms=p50 * 1.31,
        throughput_per_s=1000 / p50,
        load_ms=18.4,
        peak_rss_bytes=92_100_000,
        calls=4200,
        blocks=12,
        speedup=speedup,
        bundle_sha256=SHA,
    )
    return dataclasses.replace(values, **changes)


def withheld() -> records.Latency:
    zero = dict.fromkeys(("p90_ms", "p99_ms", "throughput_per_s", "load_ms"), 0.0)
    return latency(1.0, None, p50_ms=Interval(0, 0, 0), peak_rss_bytes=0, withheld="the CPU is emulated (qemu)", **zero)


def histogram(rng: np.random.Generator, kind: str) -> records.Histogram:
    spread = float(rng.uniform(0.05, 0.4)) if kind == "weights" else float(rng.uniform(0.8, 4))
    values = rng.laplace(0, spread / 2, 6000) if kind == "weights" else np.maximum(rng.normal(-0.2, spread, 6000), 0)
    counts, edges = np.histogram(values, bins=64)
    low, high = (
        (float(np.abs(values).max()) * s for s in (-1, 1)) if kind == "weights" else (0.0, float(values.max()) * 0.8)
    )
    return records.Histogram(tuple(int(c) for c in counts), float(edges[0]), float(edges[-1]), low, high)


def resnet_names(count: int) -> list[str]:
    blocks = [f"layer{s}.{b}.{c}" for s in range(1, 40) for b in range(3) for c in ("conv1", "conv2", "add")]
    return ["conv1", *blocks[: count - 3], "avgpool", "fc"]


@functools.cache
def layers(count: int, bits: int | None, floats: tuple[str, ...] = (), seed: int = 0) -> tuple[records.Layer, ...]:
    rng = np.random.default_rng(seed)
    kernels = {
        "Conv": "QLinearConv",
        "Add": "QLinearAdd",
        "GlobalAveragePool": "QLinearGlobalAveragePool",
        "Gemm": "QGemm",
    }
    made, cumulative = [], 46.0
    for name in resnet_names(count):
        op = {"fc": "Gemm", "avgpool": "GlobalAveragePool", "add": "Add"}.get(name.split(".")[-1], "Conv")
        weighted, integer = op in ("Conv", "Gemm"), bits is not None and name not in floats
        local = (6.02 * (bits or 8) - 6 + float(rng.normal(0, 3))) if integer else None
        cumulative = max(9.0, cumulative - float(rng.uniform(0, 1.6)) - (8 - (bits or 8)) * 0.6)
        made.append(
            records.Layer(
                name=name,
                op=op,
                kernel=kernels[op] if integer else {"Conv": "FusedConv"}.get(op, op),
                integer=integer,
                reason=""
                if integer
                else "this variant is not quantized"
                if bits is None
                else "kept in float32 by the recipe (keep_float)",
                macs=int(rng.integers(2, 60)) * 100_000 if weighted else 0,
                weight_bits=bits if integer and weighted else None,
                activation_bits=8 if integer else None,
                outputs_checked=int(rng.integers(1, 90)) * 10_000 if integer else None,
                differing_codes=0 if integer else None,
                max_step=0 if integer else None,
                sqnr_db=cumulative if integer else None,
                sqnr_local_db=min(local, 52.0) if local is not None else None,
                weights=histogram(rng, "weights") if integer and weighted else None,
                activations=histogram(rng, "activations") if integer else None,
            )
        )
    return tuple(made)


def variant(
    name: str, method: str, score: float, size: int, *, base: tuple[float, int] | None = None, **changes: object
) -> records.Variant:
    difference = None if base is None else score - base[0]
    values = records.Variant(
        name=name,
        method=method,
        metric=metric(score),
        delta=None if difference is None else Interval(difference, difference - 0.0031, difference + 0.0029),
        agreement=None if base is None else 0.991,
        size_bytes=size,
        compression=1.0 if base is None else base[1] / size,
        bundle=f"{name}.qdeploy.zip",
        bundle_sha256=SHA,
        integer_mac_share=0.0 if base is None else 1.0,
        differing_codes=0,
        layers=layers(21, None if base is None else 8),
    )
    return dataclasses.replace(values, **changes)


@functools.cache  # records are frozen: one copy serves every test
def full(count: int = 21) -> records.Results:
    """Six variants with everything that a record can hold."""
    base = (0.9173, 1_118_512)
    fp32 = variant("float32", "float32", *base, latency=latency(2.31, None), layers=layers(count, None))

    def quantized(
        name: str, method: str, score: float, size: int, bits: int, time: float, **changes: object
    ) -> records.Variant:
        made = layers(count, bits, floats=changes.pop("floats", ()), seed=len(name))
        return variant(
            name, method, score, size, base=base, layers=made, latency=latency(time, base_time / time), **changes
        )

    base_time = 2.31
    variants = (
        fp32,
        quantized("ptq-int8", "ptq", 0.9166, 298_120, 8, 1.07),
        quantized("ptq-int8-mse", "ptq", 0.9169, 298_120, 8, 1.08),
        quantized("gptq-int4", "ptq", 0.9091, 161_904, 4, 1.09),
        quantized("qat-int4", "qat", 0.9152, 161_904, 4, 1.08),
        quantized("ptq-mixed", "ptq", 0.9171, 412_870, 8, 1.52, integer_mac_share=0.871, floats=("conv1", "fc")),
    )
    return records.Results("cifar10-resnet20", "float32", variants, environment(), "cifar10", "qdeploy 0.1.0")


@functools.cache
def minimal(*, timed: bool = True) -> records.Results:
    """Two variants; without a latency on request."""
    base = (0.9806, 311_744)
    fp32 = variant("fp32", "float32", *base, layers=layers(5, None), latency=latency(0.214, None) if timed else None)
    int8 = variant(
        "ptq-int8",
        "ptq",
        0.9796,
        106_020,
        base=base,
        layers=layers(5, 8),
        latency=latency(0.101, 2.12) if timed else None,
    )
    return records.Results("digits", "fp32", (fp32, int8), environment() if timed else None, "digits", "qdeploy 0.1.0")


def bench(**changes: object) -> records.Bench:
    rows = tuple(
        records.BenchRow(
            v.name, v.bundle, v.size_bytes, v.metric, v.integer_mac_share, dataclasses.replace(v.latency, batch=b)
        )
        for b in (1, 16)
        for v in full().variants
        if v.latency is not None
    )
    warning = "The frequency governor is powersave: times vary. Remedy: cpupower frequency-set -g performance."
    return dataclasses.replace(records.Bench("local", environment(), "float32", rows, (warning,)), **changes)


def sha(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


FLEET = (("fp32", 0.9173, 2.31), ("ptq-int8", 0.9166, 1.07), ("gptq-int4", 0.9091, 1.09), ("qat-int4", 0.9152, 1.08))


def arm(**changes: object) -> records.Environment:
    values = {
        "cpu": "Cortex-A72",
        "architecture": "aarch64",
        "isa": (),
        "cores_present": 4,
        "cores_allowed": 4,
        "cores_reason": "all cores",
        "governor": "ondemand",
        "system": "Linux-6.6-aarch64",
    }
    return environment(**{**values, **changes})


def machine_bench(
    target: str = "local",
    machine: records.Environment | None = None,
    *,
    factor: float = 1.0,
    threads: tuple[int, ...] = (1,),
    **changes: object,
) -> records.Bench:
    """A bench of FLEET on a machine ``factor`` times slower than the first; several threads are a little faster."""
    rows = []
    for count in threads:
        for i, (name, score, time) in enumerate(FLEET):
            p50, base = (t * factor * count**-0.8 for t in (time, FLEET[0][2]))
            found = latency(p50, None if i == 0 else base / p50, threads=count, bundle_sha256=sha(name))
            size, share = (1_118_512, 0.0) if i == 0 else (298_120, 1.0)
            rows.append(records.BenchRow(name, f"runs/x/{name}.qdeploy.zip", size, metric(score), share, found))
    machine = machine or environment()
    return dataclasses.replace(records.Bench(target, machine, FLEET[0][0], tuple(rows)), **changes)


def machine_answers(
    target: str = "local", machine: records.Environment | None = None, *, differing: int = 0, **changes: object
) -> records.Answers:
    """Answers of FLEET over its split; float32 decides ``differing`` samples otherwise than the first machine does."""
    rows = []
    for i, (name, score, _) in enumerate(FLEET):
        decisions = np.random.default_rng(i).integers(0, 10, SAMPLES)
        other = differing if i == 0 else 0
        decisions[:other] += 1
        found = metric(score - other / SAMPLES)
        rows.append(
            records.Answer(
                name,
                f"runs/x/{name}.qdeploy.zip",
                sha(name),
                "float32" if i == 0 else "ptq",
                records.Golden(True, 8, 80, 0, 0.0, "close" if i == 0 else "exact"),
                found,
                None if i == 0 else Interval(score - FLEET[0][1], score - FLEET[0][1] - 0.003, 0.001),
                sha(f"{name} {other}"),
                records.pack_decisions(decisions),
            )
        )
    machine = machine or environment()
    runtime = f"onnxruntime {machine.onnxruntime} (CPU)"
    return dataclasses.replace(records.Answers(target, runtime, machine, tuple(rows), "cifar10"), **changes)


def fleet() -> list[tuple[str, records.Results | records.Bench | records.Answers]]:
    """A server, a small ARM board and an emulated old CPU: a bench of the real ones, answers of all three."""
    board, old = arm(), environment(cpu="QEMU Haswell", isa=("avx2",), emulator="qemu")
    note = "session.x64quantprecision=1: this CPU's u8 x s8 products saturate, so a slower kernel runs."
    answers = machine_answers("qemu:Haswell", old)
    noted = tuple(dataclasses.replace(row, note=note) for row in answers.rows[1:])
    return [
        ("server-bench.json", machine_bench(threads=(1, 2))),
        ("server.json", machine_answers()),
        ("board-bench.json", machine_bench("ssh://pi@board", board, factor=9.4, threads=(1, 2))),
        ("board.json", machine_answers("ssh://pi@board", board, differing=3)),
        ("old.json", dataclasses.replace(answers, rows=(answers.rows[0], *noted))),
    ]


def settings(method: str, algorithm: str, bits: int, **train: object) -> dict[str, object]:
    """What a recipe says of a variant, as far as reports look at it."""
    how = {"fake_quant": algorithm} if method == "qat" else {"rounding": {"name": algorithm}}
    more = {"train": train} if train else {}
    return {"method": method, "weights": {"bits": bits}, "activations": {"bits": 8}, "rules": [], **how, **more}


def quantizers(dataset: str, algorithms: tuple[str, ...], refused: tuple[str, ...] = ()) -> records.Results:
    """QAT at 8 and 4 bits by several fake quantizers, of which some have no form at 4."""
    base = (0.90, 1_000_000)
    made = [variant("fp32", "float32", *base, layers=layers(5, None), latency=latency(2.0, None))]
    for name in algorithms:
        for bits in (8, 4):
            found = settings("qat", name, bits)
            changes = {"quantization": found, "layers": layers(5, bits), "latency": latency(1.0, 2.0), "seconds": 4.0}
            made.append(variant(f"qat-{name}-{bits}", "qat", 0.89, 100_000 * bits, base=base, **changes))
    reason = "APoT weights have no such levels"
    refusals = [records.Refusal(f"qat-{n}-4", "qat", reason, quantization=settings("qat", n, 4)) for n in refused]
    return records.Results(
        dataset, "fp32", tuple(made), environment(), dataset, "qdeploy 0.1.0", tuple(refusals), parameters=1000
    )


def sized(factor: int) -> records.Results:
    """A model whose loss is 2^-bits at 1,000 parameters and falls with their root; at 8 bits it cannot be measured."""
    base = (0.90, 1_000_000 * factor)
    made = [variant("fp32", "float32", *base, layers=layers(5, None), latency=latency(2.0, None))]
    for bits in (8, 4, 3, 2):
        loss = 2.0**-bits * factor**-0.5
        half = 0.01 if bits == 8 else 0.1 * loss
        changes = {"quantization": settings("ptq", "nearest", bits), "layers": layers(5, bits)}
        delta = Interval(-loss, -loss - half, -loss + half)
        found = variant(f"w{bits}", "ptq", 0.9 - loss, 1_000 * bits, base=base, **changes)
        made.append(dataclasses.replace(found, delta=delta))
    return records.Results(f"x{factor}", "fp32", tuple(made), environment(), "one", parameters=1000 * factor)


def head_to_head() -> records.Results:
    """A PTQ variant against QAT of 1, 2 and 4 epochs, all at 4 bits: worse, worse within the interval, better."""
    base = (0.90, 1_000_000)
    made = [variant("fp32", "float32", *base, layers=layers(5, None), latency=latency(2.0, None))]
    common = {"layers": layers(5, 4), "latency": latency(1.0, 2.0)}
    ptq = {"quantization": settings("ptq", "gptq", 4), "seconds": 2.0, **common}
    made.append(variant("ptq", "ptq", 0.88, 100_000, base=base, **ptq))
    contrasts = []
    for epochs, apart in ((1, -0.02), (2, -0.003), (4, 0.01)):
        found = {"quantization": settings("qat", "lsq", 4, epochs=epochs), "seconds": 10.0 * epochs, **common}
        made.append(variant(f"qat-e{epochs}", "qat", 0.88 + apart, 100_000, base=base, **found))
        contrasts.append(records.Contrast(f"qat-e{epochs}", "ptq", Interval(apart, apart - 0.005, apart + 0.005), 0.95))
    contrasts[2] = dataclasses.replace(contrasts[2], speedup=Interval(0.5, 0.4, 0.6))
    return records.Results(
        "duel", "fp32", tuple(made), environment(), "digits", contrasts=tuple(contrasts), training_seconds=12.0
    )
