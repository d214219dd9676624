"""Layer parity can fail: a code, a bias or a scale that is off by one is found, in the layer that it is in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from qdeploy.export import artifact
from qdeploy.verify import parity as parity_module
from qdeploy.verify.parity import parity, sqnr_db


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu, self.classifier = nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.first(x))
        y = self.relu(self.second(y) + y)
        return self.classifier(y.mean((2, 3)))


@pytest.fixture(scope="module")
def models() -> tuple[bytes, bytes, np.ndarray]:
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(16, 3, 8, 8)
    return artifact.quantized(model, x[:2], [x]).model, artifact.float32(model, x[:2]).model, x.numpy()


def test_an_honest_artifact_has_no_differing_code(models: tuple[bytes, bytes, np.ndarray]) -> None:
    quantized, floats, x = models
    seen = parity(quantized, [{"x": x[:8]}, {"x": x[8:]}], float_model=floats)
    assert seen.samples == 16
    assert seen.differing_codes == 0
    names = {layer.name: layer for layer in seen.layers}
    assert {"first", "second", "add", "classifier"} <= set(names)
    assert names["classifier"].kernel == "QGemm"
    assert all(layer.sqnr_db is None or layer.sqnr_db > 20 for layer in seen.layers)
    assert names["add"].sqnr_local_db is not None


@pytest.mark.parametrize(
    ("initializer", "change", "layer"),
    [
        ("second.weight", lambda codes: codes + (codes < 100).astype(np.int8), "second"),
        ("second.bias", lambda codes: codes + np.int32(5000), "second"),
        ("first.weight.scale", lambda scale: scale * np.float32(1.02), "first"),
        ("classifier.bias", lambda codes: codes + np.int32(1), "classifier"),
    ],
)
def test_a_wrong_constant_is_found_in_its_layer(
    models: tuple[bytes, bytes, np.ndarray],
    initializer: str,
    change: Callable[[np.ndarray], np.ndarray],
    layer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """onnxruntime runs one model while the reference reads another that differs in one constant."""
    quantized, _, x = models
    proto = onnx.load_from_string(quantized)
    (tensor,) = [t for t in proto.graph.initializer if t.name == initializer]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), initializer))
    other = parity_module.integer_layers(proto)
    monkeypatch.setattr(parity_module, "integer_layers", lambda _: other)
    seen = parity(quantized, [{"x": x}])
    assert {result.name for result in seen.layers if result.differing_codes} == {layer}
    assert seen.differing_codes > 0


def test_sqnr_is_ten_times_the_logarithm_of_the_power_ratio() -> None:
    signal = np.full(100, 2.0)
    assert sqnr_db(signal, signal + 0.2) == pytest.approx(20.0)
    assert sqnr_db(signal, signal) == np.inf
