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

    Where a width would come twice in it, one an algorithm; where that is not enough, one for each value of the
    settings that differ.
    """
    parts: dict[str, list[Series]] = {}
    for found in by_algorithm(results):
        parts.setdefault(found.variants[0].method, []).append(found)
    return [made for group in parts.values() for made in _merged(group)]


def by_algorithm(results: Results) -> list[Series]:
    """The same with at least one series an algorithm."""
    groups: dict[str, list[Variant]] = {}
    for variant in results.variants:
        if variant.name != results.baseline and weight_bits(variant) is not None:
            groups.setdefault(label(variant), []).append(variant)
    return [made for name, group in groups.items() for made in _split(name, group)]


def labels(results: Results) -> dict[str, str]:
    """The label of the series of its algorithm that each variant is in, by the variant's name."""
    return {variant.name: found.label for found in by_algorithm(results) for variant in found.variants}


def _merged(group: list[Series]) -> list[Series]:
    """Series of one method as one, where no width comes twice."""
    variants = [variant for one in group for variant in one.variants]
    if len(group) == 1 or len({weight_bits(variant) for variant in variants}) < len(variants):
        return group
    names = dict.fromkeys(name for variant in variants if (name := algorithm(variant)))
    text = " ".join([variants[0].method, *(["/".join(names)] if names else [])])
    return [Series(text, text, _ordered(variants))]


def _ordered(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    return tuple(sorted(variants, key=lambda variant: -(weight_bits(variant) or 0)))


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
    return [Series(text, name, _ordered(part)) for text, part in parts.items()]
