"""What a variant was asked for, by its recorded settings: its bits, its algorithm, and which variants form a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdeploy.core.records import Refusal, Results, Variant

STORED = {"float32": 32, "fp16": 16, "bf16": 16}  # bits of a weight where nothing is quantized


@dataclass(frozen=True, slots=True)
class Series:
    """Variants of one method, by the bits of their weights, most bits first."""

    label: str  # the method, and what tells it from another series of that method: "qat lsq, train.epochs 3"
    method: str  # "qat lsq"
    variants: tuple[Variant, ...]


def weight_bits(variant: Variant | Refusal) -> int | None:
    """The bits that the recipe gives most weights; None where rules give several, or nobody knows.

    Of records without settings: the bits of most of the work.
    """
    if variant.method in STORED:
        return STORED[variant.method]
    if variant.quantization:
        mixed = any(rule.get("weights") for rule in variant.quantization.get("rules", ()))
        return None if mixed else int(variant.quantization["weights"]["bits"])
    if isinstance(variant, Refusal):
        return None
    work: Counter[int] = Counter()
    for layer in variant.layers:
        if layer.weight_bits is not None:
            work[layer.weight_bits] += layer.macs
    return work.most_common(1)[0][0] if work else None


def algorithm(variant: Variant | Refusal) -> str:
    """The fake quantizer or the rounding: "lsq", "gptq"; nothing for what is not quantized."""
    settings = variant.quantization
    name = settings.get("fake_quant") if variant.method == "qat" else settings.get("rounding", {}).get("name")
    dynamic = settings.get("activations", {}).get("range") == "dynamic"
    return " ".join([*([str(name)] if name else []), *(["dynamic"] if dynamic else [])])


def label(variant: Variant | Refusal) -> str:
    """Method and algorithm: "qat lsq", "ptq nearest", "fp16"."""
    return " ".join(part for part in (variant.method, algorithm(variant)) if part)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def series(results: Results) -> list[Series]:
    """The variants whose bits are known, without the baseline: one series a method.

    Where a width would come twice in it, one series for each value of the settings that differ.
    """
    groups: dict[str, list[Variant]] = {}
    for variant in results.variants:
        if variant.name != results.baseline and weight_bits(variant) is not None:
            groups.setdefault(label(variant), []).append(variant)
    return [made for name, group in groups.items() for made in _split(name, group)]


def labels(results: Results) -> dict[str, str]:
    """The label of the series that each variant is in, by the variant's name."""
    return {variant.name: found.label for found in series(results) for variant in found.variants}


def _split(name: str, group: Sequence[Variant]) -> list[Series]:
    settings = {variant.name: flat(variant.quantization) for variant in group}
    differing = sorted({
        key
        for one in group
        for other in group
        if weight_bits(one) == weight_bits(other)
        for key in {*settings[one.name], *settings[other.name]}
        if settings[one.name].get(key) != settings[other.name].get(key)
    })  # fmt: skip
    parts: dict[str, list[Variant]] = {}
    for variant in group:
        told = [f"{key} {settings[variant.name].get(key)}" for key in differing]
        parts.setdefault(", ".join([name, *told]), []).append(variant)
    return [
        Series(text, name, tuple(sorted(part, key=lambda v: -(weight_bits(v) or 0)))) for text, part in parts.items()
    ]
