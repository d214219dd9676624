"""Hit rate at 10: the share of samples whose next item is among the ten highest scores of all items."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.metrics._ranks import ranks


class Metric:
    """Outputs are scores of all items [N, items], targets item indices [N]; higher is better."""

    name = "hit_rate10"
    higher_is_better = True

    def prepare(self, outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """What each sample contributes: 1.0 where fewer than ten items score as high, else 0.0. float64 [N]."""
        return (ranks(outputs, targets) < 10).astype(np.float64)

    def value(self, rows: NDArray[np.float64]) -> float:
        """The rate, 0 to 1, over the rows that ``prepare`` returned."""
        return float(rows.mean())

    def decisions(self, outputs: NDArray[Any]) -> NDArray[np.intp]:
        """The item that is recommended first, [N]."""
        items: NDArray[np.intp] = outputs.argmax(axis=1)
        return items
