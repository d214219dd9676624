from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.datasets.eurosat import Dataset
from qdeploy.runner import preprocess
from qdeploy.torchvision_remedy import import_torchvision


def test_images_are_torchvisions_and_every_class_has_its_fifth(eurosat_root: Path):
    dataset = Dataset(root=str(eurosat_root), download=False, calibration=10)
    images = import_torchvision("datasets").EuroSAT(str(eurosat_root), download=False)
    assert list(dataset.classes) == images.classes
    raw, targets = dataset._arrays
    assert np.array_equal(targets, images.targets)
    assert all(np.array_equal(raw[i], np.asarray(images[i][0])) for i in range(0, 200, 7))
    assert np.bincount(dataset.split("evaluation")[1]).tolist() == [4] * 10


def test_the_input_is_normalized(eurosat_root: Path):
    dataset = Dataset(root=str(eurosat_root), download=False, calibration=10)
    made = preprocess(dataset.split("train")[0], dataset.preprocessing)
    assert made.shape[1:] == (3, 64, 64)
    assert made.mean((0, 2, 3)) == pytest.approx(np.zeros(3), abs=0.2)
    assert made.std((0, 2, 3)) == pytest.approx(np.ones(3), abs=0.2)


def test_a_class_without_images_is_missing(eurosat_root: Path, tmp_path: Path):
    shutil.copytree(eurosat_root, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "eurosat" / "2750" / "River")
    with pytest.raises(QDeployError, match=r"data.download is false: .*River: River_1.jpg"):
        Dataset(root=str(tmp_path), download=False).split("train")


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_cannot_be_read_is_named(eurosat_root: Path, tmp_path: Path, kind: str):
    shutil.copytree(eurosat_root, tmp_path, dirs_exist_ok=True)
    place = tmp_path / "eurosat" / "2750" / "River" / "River_x.jpg"
    place.unlink(missing_ok=True)
    place.symlink_to(tmp_path / "nowhere") if kind == "link" else place.mkdir()
    with pytest.raises(QDeployError, match=r"Data set eurosat cannot be read: .*River_x.jpg: (No such file|Is a dir)"):
        Dataset(root=str(tmp_path), download=False).fingerprint()


def test_a_damaged_image(eurosat_root: Path, tmp_path: Path):
    shutil.copytree(eurosat_root, tmp_path, dirs_exist_ok=True)
    next((tmp_path / "eurosat" / "2750" / "River").iterdir()).write_bytes(b"no image")
    with pytest.raises(QDeployError, match="cannot be read"):
        Dataset(root=str(tmp_path), download=False).split("train")
