from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.datasets.cifar10 import Dataset
from qdeploy.runner import preprocess
from qdeploy.torchvision_remedy import import_torchvision


def write_archive(folder: Path, **changes) -> Path:
    generator = np.random.default_rng(0)
    arrays = {
        "x_train": generator.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8),
        "y_train": np.arange(60) % 10,
        "x_test": generator.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8),
        "y_test": np.arange(20) % 10,
    }
    arrays = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
    np.savez(folder / "cifar10.npz", **arrays)
    return folder


def test_the_archive_of_the_real_images(cifar10_npz: Path, data_loaders):
    dataset = Dataset(root=str(cifar10_npz.parent), download=False)
    train, validation = (len(dataset.split(name)[1]) for name in ("train", "validation"))
    assert train + validation == 10000
    assert abs(validation - 1000) <= 10
    raw, targets = dataset.split("evaluation")
    images, labels = data_loaders.cifar("cifar10", "test")
    assert np.array_equal(raw, images)
    assert np.array_equal(targets, labels)


def test_torchvision_reads_the_official_batches(cifar10_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The official files, less the batches of train that are not here."""
    official = import_torchvision("datasets").CIFAR10
    batches = "cifar-10-batches-py"
    (tmp_path / batches).symlink_to(cifar10_root / batches)
    here = [entry for entry in official.train_list if (cifar10_root / batches / entry[0]).is_file()]
    monkeypatch.setattr(official, "train_list", here)
    monkeypatch.setattr("qdeploy.datasets.cifar10.FILES", (*(name for name, _ in here), "test_batch", "batches.meta"))
    with np.load(cifar10_root / "cifar10.npz") as arrays:
        expected = {name: arrays[name] for name in ("x_test", "y_test")}
    dataset = Dataset(root=str(tmp_path), download=False)
    raw, targets = dataset.split("evaluation")
    assert np.array_equal(raw, expected["x_test"])
    assert np.array_equal(targets, expected["y_test"])
    assert len(dataset.split("train")[1]) + len(dataset.split("validation")[1]) == 10000 * len(here)
    names = pickle.loads((cifar10_root / batches / "batches.meta").read_bytes(), encoding="latin1")["label_names"]
    assert list(dataset.classes) == names


def test_evaluation_arrays_stay_unread(tmp_path: Path):
    dataset = Dataset(root=str(write_archive(tmp_path, x_test=None)), download=False, calibration=10)
    for split in ("train", "validation", "calibration"):
        dataset.split(split)
    with pytest.raises(QDeployError, match="x_test"):
        dataset.split("evaluation")


def test_mean_and_std_are_options(tmp_path: Path):
    root = str(write_archive(tmp_path))
    plain = Dataset(root=root, calibration=10)
    other = Dataset(root=root, calibration=10, mean=[0.5, 0.5, 0.5], std=[0.25, 0.5, 1.0])
    raw = np.full((1, 32, 32, 3), 255, np.uint8)
    assert np.allclose(preprocess(raw, other.preprocessing)[0, :, 0, 0], [2.0, 1.0, 0.5])
    assert np.allclose(preprocess(raw, plain.preprocessing)[0, :, 0, 0], [2.24891, 2.42857, 2.64], atol=1e-4)
    assert plain.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"mean": [0.5]}, r"data.mean is \[0.5\]"), ({"std": [1, 1, 0]}, r"data.std is \[1, 1, 0\]")],
)
def test_wrong_mean_or_std(options, said):
    with pytest.raises(QDeployError, match=said):
        Dataset(**options)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x_train": np.zeros((60, 3, 32, 32), np.uint8)}, r"uint8\[60, 3, 32, 32\]"),
        ({"x_train": np.zeros((60, 32, 32, 3), np.float32)}, r"float32\[60, 32, 32, 3\]"),
        ({"y_train": np.full(60, 10)}, r"targets 10\.\.10"),
        ({"y_train": np.array([object()])}, "cannot be read"),
    ],
)
def test_an_archive_of_something_else(tmp_path: Path, changes, said):
    with pytest.raises(QDeployError, match=said):
        Dataset(root=str(write_archive(tmp_path, **changes)), download=False).split("train")


def test_an_archive_that_is_none(tmp_path: Path):
    (tmp_path / "cifar10.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(QDeployError, match="cannot be read"):
        Dataset(root=str(tmp_path), download=False).split("train")


def test_a_failed_download_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(import_torchvision("datasets").CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(QDeployError, match=r"Data set cifar10 could not be downloaded(.|\n)*data_batch_1") as error:
        Dataset(root=str(tmp_path)).split("train")
    assert "data.root" in error.value.hint
