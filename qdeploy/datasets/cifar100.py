"""CIFAR-100, 60,000 colour images, 32x32, in 100 classes (Krizhevsky 2009; through torchvision)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy.datasets._base import ArrayDataset, Raw, Targets
from qdeploy.datasets._download import data_root, ensure_files, reading
from qdeploy.torchvision_remedy import import_torchvision

NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""


class Dataset(ArrayDataset):
    """Raw samples are uint8 [32, 32, 3]; the model's input is float32 [3, 32, 32] of zero mean and unit deviation.

    ``root`` holds cifar-100-python/, as torchvision writes it. The classes are the 100 fine ones.
    """

    name = "cifar100"
    classes = tuple(NAMES.split())
    raw_shape = (32, 32, 3)

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """Scale to 0..1, normalize each channel by the training set's mean and deviation, channels first."""
        return [
            {"op": "scale", "factor": 1 / 255},
            {"op": "normalize", "mean": [0.5071, 0.4865, 0.4409], "std": [0.2673, 0.2564, 0.2762]},
            {"op": "layout", "from": "HWC", "to": "CHW"},
        ]

    def _files(self) -> list[Path]:
        folder = data_root(self.root) / "cifar-100-python"
        return [folder / file for file in ("train", "test", "meta")]

    def _open(self, train: bool) -> tuple[Raw, Targets]:
        self._ensure()
        root = data_root(self.root)
        with reading(self.name, root), warnings.catch_warnings():
            # The official files are pickles of 2009, whose dtypes say align=0 where numpy now wants a bool.
            warnings.filterwarnings("ignore", message=r".*align should be passed as Python or NumPy boolean.*")
            data = import_torchvision("datasets").CIFAR100(root, train=train, download=False)
        return data.data, np.asarray(data.targets, dtype=np.int64)

    def _ensure(self) -> None:
        def fetch() -> None:
            import_torchvision("datasets").CIFAR100(data_root(self.root), download=True)

        ensure_files(self.name, self._files(), self.download, fetch)

    def _read_training(self) -> tuple[Raw, Targets]:
        return self._open(train=True)

    def _read_evaluation(self) -> tuple[Raw, Targets]:
        return self._open(train=False)

    def _content(self) -> Iterable[bytes]:
        self._ensure()
        return (file.read_bytes() for file in self._files())
