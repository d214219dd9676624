from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qdeploy.datasets.digits import Dataset
from qdeploy.recipe.load import load
from qdeploy.runner import preprocess
from qdeploy.train.fit import fit
from qdeploy.train.reference import load_model


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (9, 13), (2, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_of_image(repository: Path, size, channels):
    model = load_model("models/simple_cnn.py:SimpleCNN", base=repository, channels=4, in_channels=channels, classes=6)
    assert model(torch.zeros(3, channels, *size)).shape == (3, 6)


def test_it_is_captured_with_a_dynamic_batch(repository: Path):
    model = load_model("models/simple_cnn.py:SimpleCNN", base=repository, channels=4).eval()
    example = torch.randn(2, 1, 8, 8)
    captured = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    five = torch.randn(5, 1, 8, 8)
    assert torch.allclose(captured(five), model(five), atol=1e-6)


@pytest.mark.slow
def test_the_recipe_for_digits_reaches_97_percent(repository: Path):
    recipe = load(repository / "recipes" / "digits.yaml", ["train.epochs=5", "train.device=cpu"])
    model = load_model(recipe.model.factory, base=recipe.base, seed=recipe.train.seed, **recipe.model.arguments)
    data = Dataset(**recipe.data.options)
    fit(model, data, **recipe.train.dump())
    raw, targets = data.split("evaluation")
    with torch.no_grad():
        decided = model(torch.from_numpy(preprocess(raw, data.preprocessing))).argmax(1).numpy()
    assert (decided == targets).mean() >= 0.97
