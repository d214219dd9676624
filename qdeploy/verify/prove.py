"""What is measured on an artifact before it is bundled: coverage, layer parity, portability, the deployed metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy import runner
from qdeploy.core.errors import QDeployError
from qdeploy.core.records import Layer
from qdeploy.quant.fusion_table import reason_for_float
from qdeploy.runtimes.onnxruntime import Runtime
from qdeploy.verify.coverage import Coverage, coverage, runs_in_integers
from qdeploy.verify.evaluate import Evaluation, batch_of, evaluate
from qdeploy.verify.parity import LayerParity, Parity, parity
from qdeploy.verify.portability import Portability, portability

PARITY_BATCH = 8
GOLDEN = 8
# What golden outputs may differ by, of their size. Float kernels add in an order of their own on every CPU; a
# thousandth is far above that. Where kernels quantize what such sums give, a last bit may become a code, of 255.
CLOSE, CLOSE_CODES = 1e-3, 1e-2
LAST_BITS, SMALLEST = 1e-6, 1e-6
MASK = 100  # times what all others are: that far out, a magnitude of several answers says which ones do not count


@dataclass(frozen=True, slots=True)
class Proof:
    """What was measured on one artifact."""

    coverage: Coverage
    parity: Parity
    portability: Portability
    evaluation: Evaluation
    golden: dict[str, NDArray[Any]]
    comparison: str  # "exact" or "close"
    tolerance: float


def prove(
    model: bytes, raw: NDArray[Any], targets: NDArray[Any], *, preprocessing: Sequence[dict[str, Any]], metric: Any,
    float_model: bytes | None = None, samples: int = 64,
) -> Proof:  # fmt: skip
    """Measure an artifact on the evaluation split: ``raw`` samples [N, ...] and ``targets`` [N, ...].

    Parity runs on the first ``samples`` of them, golden vectors are the first 8, the metric takes all. A layer whose
    kernel disagrees with integer arithmetic where it must not is a QDeployError: such an artifact is not shipped.
    """
    runtime = Runtime(model)
    (name,), steps = runtime.inputs, list(preprocessing)
    chosen, found = runner.preprocess(raw[:samples], steps), coverage(model)
    size = 1 if found.answers_alone else PARITY_BATCH
    batches = [{name: chosen[i : i + size]} for i in range(0, len(chosen), size)]
    seen = parity(model, batches, float_model=float_model)
    _require_parity(seen)
    answers = _golden_answers(
        runtime, {name: runner.preprocess(raw[:GOLDEN], steps)}, 1 if found.answers_alone else GOLDEN
    )
    golden = {f"input.{name}": raw[:GOLDEN], **{f"output.{key}": value for key, value in answers.items()}}
    exact, close = found.computes_in_integers, CLOSE_CODES if found.integer_mac_share else CLOSE
    batch = batch_of(layer.kernel for layer in found.layers)
    return Proof(
        found, seen, portability(model),
        evaluate(runtime, raw, targets, preprocessing=steps, metric=metric, batch=batch),
        golden, comparison="exact" if exact else "close",
        tolerance=0.0 if exact else _tolerance(answers.values(), close),
    )  # fmt: skip


def _tolerance(answers: Iterable[NDArray[Any]], share: float) -> float:
    """``share`` of the largest magnitude among the answers, masks left out, and at least ``LAST_BITS`` of it.

    A score of -1e4 that says "not this one" would give a tolerance that takes in what is to be seen of the others.
    """
    values = np.concatenate([np.abs(value, dtype=np.float64).reshape(-1) for value in answers])
    sizes, times = np.unique(values[np.isfinite(values)], return_counts=True)
    largest = float(sizes.max(initial=SMALLEST))
    while len(sizes) > 1 and times[-1] > 1 and 0 < MASK * sizes[-2] <= sizes[-1]:
        sizes, times = sizes[:-1], times[:-1]
    return max(share * float(sizes.max(initial=SMALLEST)), LAST_BITS * largest)


def _golden_answers(runtime: Runtime, feeds: Mapping[str, NDArray[Any]], size: int) -> dict[str, NDArray[Any]]:
    """All outputs, by output name, of calls with ``size`` samples each."""
    samples = len(next(iter(feeds.values())))
    parts = [runtime.run({k: v[i : i + size] for k, v in feeds.items()}) for i in range(0, samples, size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def layer_records(
    proof: Proof, *, weights: Mapping[str, Any], activations: Mapping[str, Any], float_reasons: Mapping[str, str]
) -> tuple[Layer, ...]:
    """The records of every multiplying layer and of every layer that parity looked at, in graph order.

    ``weights`` (by layer) and ``activations`` (by value) hold ``bits`` and ``histogram``; a layer's activation is
    its output.
    """
    covered = {layer.name: layer for layer in proof.coverage.layers}
    checked = {layer.name: layer for layer in proof.parity.layers}
    records = []
    for name in _order(proof):
        layer, seen = covered.get(name), checked.get(name)
        weight, output = weights.get(name), activations.get(seen.value if seen else name)
        op, kernel = (layer.op, layer.kernel) if layer else (seen.op, seen.kernel) if seen else ("", "")
        integer = layer.integer if layer else runs_in_integers([kernel])
        reason = layer.reason if layer else reason_for_float(op)
        records.append(Layer(
            name=name, op=op, kernel=kernel, integer=integer,
            reason="" if integer else float_reasons.get(name, reason),
            macs=layer.macs if layer else 0,
            weight_bits=weight.bits if weight else None, activation_bits=output.bits if output else None,
            weights=weight.histogram if weight else None, activations=output.histogram if output else None,
            **_checked(seen),
        ))  # fmt: skip
    return tuple(records)


def _checked(seen: LayerParity | None) -> dict[str, Any]:
    if seen is None:
        return {}
    keys = ("outputs_checked", "differing_codes", "max_step", "sqnr_db", "sqnr_local_db")
    return {key: getattr(seen, key) for key in keys}


def _order(proof: Proof) -> list[str]:
    """All layers in the order of the graph, which both lists keep: what was checked, and what multiplies."""
    order = [layer.name for layer in proof.parity.layers]
    place = 0
    for layer in proof.coverage.layers:
        if layer.name not in order:
            order.insert(place, layer.name)
        place = order.index(layer.name) + 1
    return order


def _require_parity(seen: Parity) -> None:
    for layer in seen.layers:
        if layer.exact and layer.differing_codes:
            raise QDeployError(
                f"Layer {layer.name!r}: {layer.differing_codes} of {layer.outputs_checked} output codes in onnxruntime "
                f"differ from integer arithmetic, by up to {layer.max_step} steps.",
                "On x86 with AVX2 and no VNNI this is 16-bit saturation, which `qdeploy doctor` tells: build it with "
                "portable: true. Elsewhere it is a bug.",
            )
        if not layer.exact and layer.max_step > 1:
            raise QDeployError(
                f"Layer {layer.name!r} ({layer.op}) differs from its reference by {layer.max_step} steps.",
                "One step is allowed where a kernel rounds differently; more is a bug.",
            )
