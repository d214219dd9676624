"""NDCG at 10: how near the top of all items the next item stands, logarithmically (Jarvelin and Kekalainen 2002)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.metrics._ranks import ranks


class Metric:
    """Outputs are scores of all items [N, items], targets item indices [N]; higher is better."""

    name = "ndcg10"
    higher_is_better = True

    def prepare(self, outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """What each sample contributes: 1 / log2(place + 1) for a place of 1 to 10, else 0. float64 [N].

        With one right item the ideal ranking's gain is 1, so this is normalized.
        """
        place = ranks(outputs, targets) + 1
        return np.where(place <= 10, 1 / np.log2(place + 1), 0.0)

    def value(self, rows: NDArray[np.float64]) -> float:
        """The mean, 0 to 1, over the rows that ``prepare`` returned."""
        return float(rows.mean())

    def decisions(self, outputs: NDArray[Any]) -> NDArray[np.intp]:
        """The item that is recommended first, [N]."""
        items: NDArray[np.intp] = outputs.argmax(axis=1)
        return items
