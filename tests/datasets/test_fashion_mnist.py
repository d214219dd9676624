from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.datasets.fashion_mnist import FILES, Dataset
from qdeploy.runner import preprocess
from qdeploy.torchvision_remedy import import_torchvision


@pytest.fixture
def own_root(fashion_mnist_root: Path, tmp_path: Path) -> Path:
    """A root of links to the real files, which a test may damage."""
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).symlink_to(fashion_mnist_root / "FashionMNIST" / "raw" / name)
    return tmp_path


def replace(root: Path, name: str, content: bytes | None) -> None:
    path = root / "FashionMNIST" / "raw" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def test_splits_of_the_real_files(fashion_mnist_root: Path, data_loaders):
    dataset = Dataset(root=str(fashion_mnist_root), download=False, validation=0.1)
    sizes = {name: len(dataset.split(name)[1]) for name in ("train", "validation", "calibration", "evaluation")}
    assert sizes == {"train": 18000, "validation": 2000, "calibration": 512, "evaluation": 10000}
    raw, targets = dataset.split("evaluation")
    assert np.array_equal(raw, data_loaders.idx("t10k-images-idx3-ubyte"))
    assert np.array_equal(targets, data_loaders.idx("t10k-labels-idx1-ubyte"))
    assert dataset.classes == tuple(import_torchvision("datasets").FashionMNIST.classes)


def test_inputs_are_normalized(fashion_mnist_root: Path):
    dataset = Dataset(root=str(fashion_mnist_root), download=False)
    made = preprocess(dataset.split("train")[0], dataset.preprocessing)
    assert (made.dtype, made.shape[1:]) == (np.float32, (1, 28, 28))
    assert abs(made.mean()) < 0.02
    assert abs(made.std() - 1) < 0.02


def test_training_never_opens_the_evaluation_files(own_root: Path):
    for name in FILES[2:]:
        replace(own_root, name, b"garbage")
    dataset = Dataset(root=str(own_root), download=False)
    for split in ("train", "validation", "calibration"):
        dataset.split(split)
    with pytest.raises(QDeployError, match=r"files of data set fashion_mnist in .* cannot be read") as error:
        dataset.split("evaluation")
    assert "download them again" in error.value.hint


def test_the_fingerprint_is_that_of_the_files(own_root: Path, fashion_mnist_root: Path):
    before = Dataset(root=str(own_root), download=False).fingerprint()
    assert before == Dataset(root=str(fashion_mnist_root)).fingerprint()
    replace(own_root, "t10k-labels-idx1-ubyte", b"other")
    assert before != Dataset(root=str(own_root), download=False).fingerprint()


def test_missing_files_are_named_when_downloading_is_off(own_root: Path):
    replace(own_root, "train-labels-idx1-ubyte", None)
    with pytest.raises(QDeployError, match=r"download is false: missing in .*raw: train-labels-idx1-ubyte\.") as error:
        Dataset(root=str(own_root), download=False).split("train")
    assert "data.root" in error.value.hint


def test_a_failed_download_is_one_error(own_root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(import_torchvision("datasets").FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    replace(own_root, "train-labels-idx1-ubyte", None)
    with pytest.raises(QDeployError, match=r"could not be downloaded(.|\n)*train-labels-idx1-ubyte\.") as error:
        Dataset(root=str(own_root)).split("train")
    assert "data.root" in error.value.hint
    assert "data.download" in error.value.hint


def test_the_default_root_can_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("QDEPLOY_DATA_ROOT", str(tmp_path / "here"))
    with pytest.raises(QDeployError, match=str(tmp_path / "here")):
        Dataset(download=False).fingerprint()
    monkeypatch.delenv("QDEPLOY_DATA_ROOT")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(QDeployError, match=str(tmp_path / "home" / ".cache" / "qdeploy" / "data")):
        Dataset(download=False).fingerprint()
