"""CIFAR-10 ResNet-20 from its published checkpoint: the artifacts' accuracy on all 10,000 test images."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdeploy import pipeline
from qdeploy.core.records import Variant
from qdeploy.recipe.load import load

RECIPE = Path(__file__).parents[1] / "recipes" / "cifar10_resnet20.yaml"


@pytest.fixture(scope="module")
def variants(shared_data: Path, cifar10_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Variant]:
    checkpoint = shared_data / "pretrained" / "resnet20-12fca82f.th"
    overrides = [f"model.checkpoint={checkpoint}", f"data.root={cifar10_npz.parent}", "data.download=false"]
    recipe = load(RECIPE, overrides=overrides, only=["w8a8-nearest", "w4a8-gptq", "w2a8-gptq"])
    results = pipeline.build(recipe, tmp_path_factory.mktemp("resnet20"), measure=False)
    return {variant.name: variant for variant in results.variants}


@pytest.mark.slow
def test_float32_is_reproduced(variants: dict[str, Variant]) -> None:
    assert variants["fp32"].metric.samples == 10_000
    assert variants["fp32"].metric.value == pytest.approx(0.9173, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "accuracy", "size"), [("w8a8-nearest", 0.916, 0.29), ("w4a8-gptq", 0.912, 0.17), ("w2a8-gptq", 0.89, 0.11)]
)
def test_what_is_quantized_keeps_it(variants: dict[str, Variant], name: str, accuracy: float, size: float) -> None:
    variant = variants[name]
    assert variant.metric.value >= accuracy
    assert variant.differing_codes == 0
    assert variant.integer_mac_share == 1.0
    assert variant.size_bytes <= size * variants["fp32"].size_bytes


@pytest.mark.slow
def test_the_logits_of_8_bits_are_within_29_decibels(variants: dict[str, Variant]) -> None:
    logits = variants["w8a8-nearest"].layers[-1]
    assert logits.name == "linear"
    assert logits.sqnr_db is not None
    assert logits.sqnr_db >= 29.0
