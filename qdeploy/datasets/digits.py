"""Handwritten digits, 1,797 images of 8x8 (scikit-learn's load_digits): inside the package, nothing to download."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from qdeploy.core.errors import QDeployError
from qdeploy.datasets._base import Raw, Targets
from qdeploy.datasets._held_out import HeldOutDataset


class Dataset(HeldOutDataset):
    """Raw samples are uint8 [8, 8] with values 0..16; the model's input is float32 [1, 8, 8] in 0..1."""

    name = "digits"
    classes = tuple("0123456789")
    raw_shape = (8, 8)
    raw_range = (0, 16)

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """Scale to 0..1, add the channel, put it first."""
        return [
            {"op": "scale", "factor": 1 / 16},
            {"op": "channel"},
            {"op": "layout", "from": "HWC", "to": "CHW"},
        ]

    @cached_property
    def _arrays(self) -> tuple[Raw, Targets]:
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError as error:
            raise QDeployError(
                "The digits come with scikit-learn, which is not installed.",
                'Install what building needs: pip install "qdeploy[build]".',
            ) from error
        bunch = load_digits()
        return bunch.images.astype(np.uint8), bunch.target.astype(np.int64)

    def _content(self) -> Iterable[bytes]:
        return (array.tobytes() for array in self._arrays)
