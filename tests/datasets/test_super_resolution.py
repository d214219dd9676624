from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qdeploy.core.errors import QDeployError
from qdeploy.datasets import super_resolution
from qdeploy.datasets.super_resolution import Dataset
from qdeploy.metrics.psnr import Metric


@pytest.fixture
def dataset(super_resolution_root: Path) -> Dataset:
    return Dataset(root=str(super_resolution_root), download=False, calibration=8, turned=False)


def test_luminance_is_that_of_ycbcr_for_video(dataset: Dataset):
    pixels = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert super_resolution._luminance(pixels).tolist() == [[16, 235, 81, 145, 41]]


def test_every_image_stands_whole_on_its_canvas(dataset: Dataset, super_resolution_root: Path):
    raw, targets = dataset.split("evaluation")
    for name, low, target in zip(super_resolution.NAMES["Set5"], raw, targets, strict=True):
        with Image.open(super_resolution_root / "sr" / "Set5" / f"{name}.webp") as image:
            width, height = image.size
        rows, columns = height // 3, width // 3
        assert np.isfinite(target[0]).sum() == (3 * rows - 6) * (3 * columns - 6)
        assert np.isfinite(target[0, 3 : 3 * rows - 3, 3 : 3 * columns - 3]).all()
        assert (low[rows:, :columns] == low[rows - 1, :columns]).all()
        assert (low[:, columns:] == low[:, columns - 1 : columns]).all()


@pytest.mark.parametrize(("evaluation", "published"), [("Set5", 30.39), ("Set14", 27.54)])
def test_bicubic_interpolation_gives_the_published_psnr(super_resolution_root: Path, evaluation, published):
    """Shi et al. 2016, table 1; within what their 8-bit rounding and PIL's leave open."""
    dataset = Dataset(root=str(super_resolution_root), download=False, evaluation=evaluation)
    raw, targets = dataset.split("evaluation")
    sizes = [(3 * raw.shape[2], 3 * raw.shape[1])] * len(raw)
    large = [Image.fromarray(low).resize(size, Image.Resampling.BICUBIC) for low, size in zip(raw, sizes, strict=True)]
    outputs = np.stack(large)[:, None].astype(np.float32) / 255
    assert Metric().value(Metric().prepare(outputs, targets)) == pytest.approx(published, abs=0.1)


def test_patches_lie_over_their_targets(dataset: Dataset):
    raw, targets = dataset.split("train")
    high = targets[:, 0, 3:-3, 3:-3].reshape(len(targets), 15, 3, 15, 3).mean((2, 4)) * 255
    assert np.abs(high - raw[:, 1:-1, 1:-1]).mean() < 4
    assert np.isnan(targets[:, 0, :3]).all()


def test_patches_are_turned_with_their_targets(super_resolution_root: Path):
    dataset = Dataset(root=str(super_resolution_root), download=False, calibration=8, train_samples=800)
    raw, targets = dataset.split("train")
    high = targets[:, 0, 3:-3, 3:-3].reshape(len(targets), 15, 3, 15, 3).mean((2, 4)) * 255
    assert np.abs(high - raw[:, 1:-1, 1:-1]).mean() < 4


def test_no_image_is_in_train_and_validation(dataset: Dataset):
    dataset.split("train")
    images = [set(dataset._image_of[dataset._indices[name]]) for name in ("train", "validation")]
    assert not images[0] & images[1]
    assert len(images[1]) == 9
    assert len(images[0] | images[1]) == 91


def test_smaller_copies_give_more_patches(super_resolution_root: Path):
    counts = [
        len(Dataset(root=str(super_resolution_root), download=False, turned=False, **o)._read_training()[0])
        for o in ({}, {"scales": [1.0, 0.5]}, {"stride": 11})
    ]
    assert counts[0] < counts[1] < counts[2]


def test_other_pixels_are_refused(super_resolution_root: Path, tmp_path: Path):
    (tmp_path / "sr" / "Set5").mkdir(parents=True)
    for file in (super_resolution_root / "sr" / "Set5").iterdir():
        with Image.open(file) as image:
            pixels = np.array(image)
        pixels[0, 0, 0] ^= 1
        Image.fromarray(pixels).save(tmp_path / "sr" / "Set5" / f"{file.stem}.png")
    with pytest.raises(QDeployError, match="pixels of Set5 are not the known ones"):
        Dataset(root=str(tmp_path), download=False).split("evaluation")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"evaluation": "Set6"}, "data.evaluation"), ({"stride": 0}, "data.stride"), ({"scales": []}, "data.scales"),
     ({"scales": [2.0]}, "data.scales")],
)  # fmt: skip
def test_wrong_options(options, said):
    with pytest.raises(QDeployError, match=said):
        Dataset(**options)


def test_scales_that_leave_no_patch(super_resolution_root: Path):
    for scale in (0.01, 0.05):
        dataset = Dataset(root=str(super_resolution_root), download=False, scales=[scale])
        with pytest.raises(QDeployError, match="no image is left as large as a patch"):
            dataset.split("train")


def test_missing_images_are_named(tmp_path: Path):
    with pytest.raises(QDeployError, match=r"missing in .*T91: t1.bmp, t2.bmp"):
        Dataset(root=str(tmp_path), download=False).split("train")
