"""EuroSAT, 27,000 satellite images, 64x64, in 10 classes of land use (Helber et al. 2019; through torchvision)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy.datasets._base import Raw, Targets
from qdeploy.datasets._download import data_root, ensure_files, reading
from qdeploy.datasets._held_out import HeldOutDataset
from qdeploy.torchvision_remedy import import_torchvision

# Of the red, green and blue pixels of 2,700 images, a tenth of every class.
MEAN, STD = [0.346, 0.382, 0.409], [0.201, 0.138, 0.118]


class Dataset(HeldOutDataset):
    """Raw samples are uint8 [64, 64, 3] (RGB); the model's input is float32 [3, 64, 64], normalized by channel.

    ``root`` holds eurosat/2750/CLASS/*.jpg, as torchvision writes it; fewer images than the official ones are fine.
    There is no official split: one fifth of every class, always the same images, is the evaluation part.
    """

    name = "eurosat"
    classes = (
        *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
        *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
    )
    raw_shape = (64, 64, 3)

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """Scale to 0..1, normalize each channel by the images' mean and deviation, channels first."""
        return [
            {"op": "scale", "factor": 1 / 255},
            {"op": "normalize", "mean": MEAN, "std": STD},
            {"op": "layout", "from": "HWC", "to": "CHW"},
        ]

    def _files(self) -> list[list[Path]]:
        """The images of each class; where there are none, the one that every complete copy has."""
        folders = [data_root(self.root) / "eurosat" / "2750" / name for name in self.classes]
        return [sorted(folder.glob("*.jpg")) or [folder / f"{folder.name}_1.jpg"] for folder in folders]

    @cached_property
    def _arrays(self) -> tuple[Raw, Targets]:
        from PIL import Image

        self._ensure()
        images, targets = [], []
        with reading(self.name, data_root(self.root) / "eurosat"):
            for label, files in enumerate(self._files()):
                for file in files:
                    with Image.open(file) as image:
                        images.append(np.asarray(image.convert("RGB")))
                    targets.append(label)
            return np.stack(images), np.array(targets, np.int64)

    def _ensure(self) -> None:
        def fetch() -> None:
            import_torchvision("datasets").EuroSAT(data_root(self.root), download=True)

        ensure_files(self.name, [files[0] for files in self._files()], self.download, fetch)

    def _content(self) -> Iterable[bytes]:
        self._ensure()
        return (file.name.encode() + file.read_bytes() for files in self._files() for file in files)
