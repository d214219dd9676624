"""ROC AUC: how often a positive sample scores higher than a negative one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Metric:
    """Outputs are scores [N, 2] (negative, positive), targets 0 or 1 [N]; higher is better."""

    name = "roc_auc"
    higher_is_better = True

    def prepare(self, outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """The score and the target of each sample, float64 [N, 2]. The score is the positive output's lead.

        A difference of logits ranks samples as their softmax does, without its rounding to 0 and 1. ValueError: outputs
        that are no pairs.
        """
        if outputs.ndim != 2 or outputs.shape[1] != 2:
            raise ValueError(f"roc_auc takes outputs [N, 2], not {list(outputs.shape)}")
        pairs = outputs.astype(np.float64)
        return np.stack([pairs[:, 1] - pairs[:, 0], targets.astype(np.float64)], axis=1)

    def value(self, rows: NDArray[np.float64]) -> float:
        """The share of pairs (positive, negative) in which the positive one scores higher; equals count half.

        0.5, which says nothing, where one of the two is missing.
        """
        positive = rows[:, 1] > 0
        high, low = np.sort(rows[positive, 0]), np.sort(rows[~positive, 0])
        if len(high) == 0 or len(low) == 0:
            return 0.5
        # Sorted, both searches walk through the cache in order: a bootstrap asks 2,000 times.
        won = np.searchsorted(low, high, side="left").sum() + np.searchsorted(low, high, side="right").sum()
        return float(won) / (2.0 * len(high) * len(low))

    def decisions(self, outputs: NDArray[Any]) -> NDArray[np.intp]:
        """The class that each sample is given, [N]. Of equal scores the first wins."""
        classes: NDArray[np.intp] = outputs.argmax(axis=1)
        return classes
