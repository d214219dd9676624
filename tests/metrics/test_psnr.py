from __future__ import annotations

import numpy as np
import pytest
import torch

from qdeploy.metrics.psnr import BEST, Metric
from qdeploy.torchvision_remedy import make_importable


def test_each_image_is_torchmetrics_on_8_bits():
    make_importable()  # torchmetrics imports torchvision
    from torchmetrics.functional.image import peak_signal_noise_ratio

    generator = np.random.default_rng(0)
    targets = generator.integers(0, 256, (5, 1, 12, 9)).astype(np.float32) / 255
    outputs = targets + generator.normal(scale=0.2, size=targets.shape).astype(np.float32)
    stored = np.rint(outputs.clip(0, 1).astype(np.float64) * 255)
    expected = [
        peak_signal_noise_ratio(torch.from_numpy(o), torch.from_numpy(t) * 255, data_range=255.0).item()
        for o, t in zip(stored, targets.astype(np.float64), strict=True)
    ]
    rows = Metric().prepare(outputs, targets)
    assert rows == pytest.approx(expected, abs=1e-4)
    assert Metric().value(rows) == pytest.approx(np.mean(expected), abs=1e-4)


def test_what_is_nan_in_the_target_does_not_count():
    targets = np.zeros((1, 1, 4, 4), np.float32)
    targets[0, 0, :, 2:] = np.nan
    outputs = np.zeros((1, 1, 4, 4), np.float32)
    outputs[0, 0, :, 2:] = 1.0
    assert Metric().prepare(outputs, targets).tolist() == [BEST]
    outputs[0, 0, 0, 0] = 1.0  # one of eight pixels is as wrong as can be
    assert Metric().prepare(outputs, targets) == pytest.approx([10 * np.log10(8)])


def test_decisions_are_the_stored_pixels():
    outputs = np.array([[-0.2, 0.0, 0.5, 1.0, 1.7]], np.float32)
    decided = Metric().decisions(outputs)
    assert decided.tolist() == [[0, 0, 128, 255, 255]]
    assert decided.dtype == np.uint8
