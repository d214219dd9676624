"""Fashion-MNIST, 70,000 grey images of clothes, 28x28, in 10 classes (Xiao 2017; through torchvision)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy.datasets._base import ArrayDataset, Raw, Targets
from qdeploy.datasets._download import data_root, ensure_files, reading
from qdeploy.torchvision_remedy import import_torchvision

FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


class Dataset(ArrayDataset):
    """Raw samples are uint8 [28, 28]; the model's input is float32 [1, 28, 28] of zero mean and unit deviation.

    ``root`` holds FashionMNIST/raw/*-ubyte. A training file with fewer samples than the official 60,000 is fine.
    """

    name = "fashion_mnist"
    classes = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    raw_shape = (28, 28)

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """Scale to 0..1, normalize by the training set's mean and deviation, channel first."""
        return [
            {"op": "scale", "factor": 1 / 255},
            {"op": "channel"},
            {"op": "normalize", "mean": [0.286], "std": [0.353]},
            {"op": "layout", "from": "HWC", "to": "CHW"},
        ]

    def _files(self) -> list[Path]:
        folder = data_root(self.root) / "FashionMNIST" / "raw"
        return [folder / file for file in FILES]

    def _open(self, train: bool) -> tuple[Raw, Targets]:
        root = data_root(self.root)
        self._ensure()
        with reading(self.name, root):
            data = import_torchvision("datasets").FashionMNIST(root, train=train, download=False)
            return data.data.numpy(), data.targets.numpy().astype(np.int64)

    def _ensure(self) -> None:
        def fetch() -> None:
            import_torchvision("datasets").FashionMNIST(data_root(self.root), download=True)

        ensure_files(self.name, self._files(), self.download, fetch)

    def _read_training(self) -> tuple[Raw, Targets]:
        return self._open(train=True)

    def _read_evaluation(self) -> tuple[Raw, Targets]:
        return self._open(train=False)

    def _content(self) -> Iterable[bytes]:
        self._ensure()
        return (file.read_bytes() for file in self._files())
