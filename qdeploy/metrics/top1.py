"""Top-1 accuracy: the share of samples whose highest output is the target's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Metric:
    """Outputs are class scores [N, classes], targets class indices [N]; higher is better."""

    name = "top1"
    higher_is_better = True

    def prepare(self, outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """What each sample contributes: 1.0 where it is right, else 0.0. float64 [N]."""
        right: NDArray[np.float64] = (self.decisions(outputs) == targets).astype(np.float64)
        return right

    def value(self, rows: NDArray[np.float64]) -> float:
        """The accuracy, 0 to 1, over the rows that ``prepare`` returned."""
        return float(rows.mean())

    def decisions(self, outputs: NDArray[Any]) -> NDArray[np.intp]:
        """The class that each sample is given, [N]. Of equal scores the first wins."""
        classes: NDArray[np.intp] = outputs.argmax(axis=1)
        return classes
