"""torchvision's models, random weights: captured, quantized, exported; all integer, no code differs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qdeploy.export import artifact
from qdeploy.runtimes.onnxruntime import Runtime
from qdeploy.torchvision_remedy import import_torchvision
from qdeploy.verify.coverage import coverage
from qdeploy.verify.parity import parity


def random_model(name: str) -> nn.Module:
    """Random weights and batch norm statistics that are not the identity."""
    torch.manual_seed(0)
    model: nn.Module = getattr(import_torchvision().models, name)(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
            module.bias.data.normal_(0, 0.1)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 64), ("resnet50", 64), ("mobilenet_v2", 64), ("vgg11_bn", 224)]
)
def test_all_integer_and_no_differing_code(name: str, size: int) -> None:
    model = random_model(name)
    inputs = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    quantized = artifact.quantized(model, inputs[:2], [inputs], portable=False)
    found = coverage(quantized.model)
    assert found.integer_mac_share >= 0.99
    samples = inputs[: 1 if size == 224 else 4].numpy()
    seen = parity(quantized.model, [{Runtime(quantized.model).inputs[0]: samples}])
    assert seen.outputs_checked > 10_000
    assert seen.differing_codes == 0
    assert {layer.name for layer in found.layers} <= {layer.name for layer in seen.layers}
    assert all(layer.max_step <= 1 for layer in seen.layers)
