from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from qdeploy.datasets.cifar10 import Dataset
from qdeploy.metrics.top1 import Metric
from qdeploy.runner import preprocess
from qdeploy.train import checkpoint
from qdeploy.train.reference import load_model


@pytest.mark.parametrize(
    ("name", "layers", "millions"),
    [("resnet20", 20, 0.27), ("resnet32", 32, 0.46), ("resnet44", 44, 0.66), ("resnet56", 56, 0.85),
     ("resnet110", 110, 1.7)],
)  # fmt: skip
def test_layers_and_parameters_are_the_papers(repository: Path, name, layers, millions):
    model = load_model(f"models/resnet_cifar.py:{name}", base=repository)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == layers
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05 * millions)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_shortcut_moves_values_and_computes_none(repository: Path):
    model = load_model("models/resnet_cifar.py:resnet20", base=repository)
    x = torch.randn(2, 16, 6, 6)
    out = model.layer2[0].shortcut(x)
    assert out.shape == (2, 32, 3, 3)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


@pytest.mark.slow
def test_the_published_checkpoint_gives_its_published_accuracy(repository: Path, shared_data: Path, cifar10_root: Path):
    model = load_model("models/resnet_cifar.py:resnet20", base=repository)
    checkpoint.load(shared_data / "pretrained" / "resnet20-12fca82f.th", model)
    data = Dataset(root=str(cifar10_root), download=False)
    raw, targets = data.split("evaluation")
    images = torch.from_numpy(preprocess(raw, data.preprocessing))
    with torch.inference_mode():
        outputs = torch.cat([model.eval()(batch) for batch in images.split(250)])
    rows = Metric().prepare(outputs.numpy(), targets)
    assert len(rows) == 10000
    assert Metric().value(rows) == pytest.approx(0.9173, abs=1.5e-4)
