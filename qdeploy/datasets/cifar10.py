"""CIFAR-10, 60,000 colour images, 32x32, in 10 classes (Krizhevsky 2009; through torchvision, or one cifar10.npz)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from qdeploy.core.errors import QDeployError
from qdeploy.datasets._base import ArrayDataset, CommonOptions, Raw, Targets
from qdeploy.datasets._download import data_root, ensure_files, reading
from qdeploy.torchvision_remedy import import_torchvision

FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")


class Dataset(ArrayDataset):
    """Raw samples are uint8 [32, 32, 3]; the model's input is float32 [3, 32, 32], normalized by ``mean`` and ``std``.

    ``root`` holds cifar-10-batches-py/, as torchvision writes it, or a file cifar10.npz with the arrays x_train,
    x_test (uint8 [N, 32, 32, 3]), y_train and y_test (integers [N]), which is taken where both exist. The default
    ``mean`` and ``std`` (red, green, blue; of pixels in 0..1) are ImageNet's, which published CIFAR models use.
    """

    name = "cifar10"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    raw_shape = (32, 32, 3)

    def __init__(
        self,
        *,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**common)
        for option, values in (("mean", mean), ("std", std)):
            if len(values) != 3:
                raise QDeployError(f"data.{option} is {list(values)}.", "Give three numbers: red, green, blue.")
        if min(std) <= 0:
            raise QDeployError(f"data.std is {list(std)}.", "Standard deviations are positive.")
        self.mean = [float(value) for value in mean]
        self.std = [float(value) for value in std]

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """Scale to 0..1, normalize each channel, channels first."""
        return [
            {"op": "scale", "factor": 1 / 255},
            {"op": "normalize", "mean": self.mean, "std": self.std},
            {"op": "layout", "from": "HWC", "to": "CHW"},
        ]

    @property
    def _archive(self) -> Path:
        return data_root(self.root) / "cifar10.npz"

    def _files(self) -> list[Path]:
        folder = data_root(self.root) / "cifar-10-batches-py"
        return [self._archive] if self._archive.is_file() else [folder / file for file in FILES]

    def _open(self, train: bool) -> tuple[Raw, Targets]:
        if self._archive.is_file():
            part = "train" if train else "test"
            with reading(self.name, self._archive.parent), self._archive.open("rb") as file:
                arrays = np.load(file, allow_pickle=False)  # only the arrays that are asked for are read
                return arrays[f"x_{part}"], arrays[f"y_{part}"].astype(np.int64)
        self._ensure()
        root = data_root(self.root)
        with reading(self.name, root), warnings.catch_warnings():
            # The official files are pickles of 2009, whose dtypes say align=0 where numpy now wants a bool.
            warnings.filterwarnings("ignore", message=r".*align should be passed as Python or NumPy boolean.*")
            data = import_torchvision("datasets").CIFAR10(root, train=train, download=False)
        return data.data, np.asarray(data.targets, dtype=np.int64)

    def _ensure(self) -> None:
        def fetch() -> None:
            import_torchvision("datasets").CIFAR10(data_root(self.root), download=True)

        ensure_files(self.name, self._files(), self.download, fetch)

    def _read_training(self) -> tuple[Raw, Targets]:
        return self._open(train=True)

    def _read_evaluation(self) -> tuple[Raw, Targets]:
        return self._open(train=False)

    def _content(self) -> Iterable[bytes]:
        self._ensure()
        return (file.read_bytes() for file in self._files())
