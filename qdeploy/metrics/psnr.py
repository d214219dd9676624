"""PSNR: the peak signal-to-noise ratio of 8-bit images in dB, averaged over images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PEAK = 255.0
BEST = 100.0  # dB, for images without any error, whose ratio has no end


class Metric:
    """Outputs and targets are images [N, ...] in 0..1; a target of NaN is no pixel. Higher is better.

    Both are rounded to the 8 bits that an image is stored with before they are compared.
    """

    name = "psnr"
    higher_is_better = True

    def prepare(self, outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """The ratio of each image in dB, float64 [N]: 10 log10(255^2 / mean squared error), at most 100."""
        return np.array([_ratio(output, target) for output, target in zip(outputs, targets, strict=True)])

    def value(self, rows: NDArray[np.float64]) -> float:
        """The mean in dB over the rows that ``prepare`` returned."""
        return float(rows.mean())

    def decisions(self, outputs: NDArray[Any]) -> NDArray[np.uint8]:
        """The pixels in 8 bits, of the outputs' shape."""
        return _pixels(outputs).astype(np.uint8)


def _pixels(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.rint(np.clip(values.astype(np.float64), 0.0, 1.0) * PEAK)


def _ratio(output: NDArray[Any], target: NDArray[Any]) -> float:
    known = ~np.isnan(target)
    error = float(np.mean((_pixels(output[known]) - _pixels(target[known])) ** 2))
    return min(BEST, 10 * np.log10(PEAK**2 / error)) if error else BEST
