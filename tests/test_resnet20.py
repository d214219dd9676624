"""CIFAR-10 ResNet-20 from its published checkpoint: the artifacts' accuracy on all 10,000 test images."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdeploy import pipeline
from qdeploy.recipe.load import load

RECIPE = Path(__file__).parents[1] / "recipes" / "cifar10_resnet20.yaml"


@pytest.mark.slow
def test_float32_is_reproduced_and_int8_keeps_it(shared_data: Path, cifar10_npz: Path, tmp_path: Path) -> None:
    checkpoint = shared_data / "pretrained" / "resnet20-12fca82f.th"
    overrides = [f"model.checkpoint={checkpoint}", f"data.root={cifar10_npz.parent}", "data.download=false"]
    recipe = load(RECIPE, overrides=overrides, only=["ptq-mse"])
    fp32, int8 = pipeline.build(recipe, tmp_path, measure=False).variants
    assert fp32.metric.samples == 10_000
    assert fp32.metric.value == pytest.approx(0.9173, abs=1e-9)
    assert int8.metric.value >= 0.916
    assert int8.differing_codes == 0
    assert int8.integer_mac_share == 1.0
    assert int8.size_bytes <= 0.30 * fp32.size_bytes
    logits = int8.layers[-1]
    assert logits.name == "linear"
    assert logits.sqnr_db is not None
    assert logits.sqnr_db >= 29.0
