"""Where the right item stands among all items."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError


def ranks(outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.intp]:
    """The place of the target's score among all scores [N, items], 0 for the highest; equals stand before it.

    So neither a model that scores everything alike nor a score that is not a number is ever right.
    """
    if targets.max(initial=0) >= outputs.shape[1]:
        raise QDeployError(
            f"The model scores {outputs.shape[1]:,} items, and the right one is item {targets.max():,}.",
            "A model of ids has a row for each up to the highest: model.items is the highest id.",
        )
    score = np.take_along_axis(outputs, targets[:, None], axis=1)
    places: NDArray[np.intp] = np.count_nonzero(~(outputs < score), axis=1) - (score[:, 0] == score[:, 0])
    return places
