"""Top-5 accuracy: the share of samples whose target is among the five highest outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Metric:
    """Outputs are class scores [N, classes], targets class indices [N]; higher is better."""

    name = "top5"
    higher_is_better = True

    def prepare(self, outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """What each sample contributes: 1.0 where fewer than five scores exceed the target's, else 0.0. float64 [N].

        A score that is not a number exceeds, so a broken model is never right.
        """
        score = np.take_along_axis(outputs, targets[:, None], axis=1)
        right: NDArray[np.float64] = ((~(outputs <= score)).sum(axis=1) < 5).astype(np.float64)
        return right

    def value(self, rows: NDArray[np.float64]) -> float:
        """The accuracy, 0 to 1, over the rows that ``prepare`` returned."""
        return float(rows.mean())

    def decisions(self, outputs: NDArray[Any]) -> NDArray[np.intp]:
        """The one class that each sample is given, [N]: its highest score."""
        classes: NDArray[np.intp] = outputs.argmax(axis=1)
        return classes
