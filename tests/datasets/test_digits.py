from __future__ import annotations

from functools import cached_property

import numpy as np

from qdeploy.datasets.digits import Dataset
from qdeploy.runner import preprocess


def test_sizes_and_values():
    dataset = Dataset(validation=0.1, calibration=512)
    sizes = {name: len(dataset.split(name)[1]) for name in ("train", "validation", "calibration", "evaluation")}
    assert sizes["train"] + sizes["validation"] + sizes["evaluation"] == 1797
    assert sizes["calibration"] == 512
    assert 350 <= sizes["evaluation"] <= 370
    raw, targets = dataset.split("train")
    assert (raw.dtype, raw.shape[1:], raw.min(), raw.max()) == (np.uint8, (8, 8), 0, 16)
    assert set(targets) == set(range(10))


def test_the_input_is_one_channel_in_0_to_1():
    dataset = Dataset()
    raw, _ = dataset.split("train")
    made = preprocess(raw, dataset.preprocessing)
    assert (made.dtype, made.shape[1:]) == (np.float32, (1, 8, 8))
    assert np.array_equal(made[:, 0] * 16, raw)


def test_evaluation_is_stratified_and_the_same_for_every_seed():
    evaluation = [Dataset(seed=seed, validation=v).split("evaluation") for seed, v in ((0, 0.1), (7, 0.3))]
    assert np.array_equal(evaluation[0][0], evaluation[1][0])
    counts = np.bincount(evaluation[0][1])
    assert counts.max() - counts.min() <= 3


class Poisoned(Dataset):
    """The digits, with every evaluation image replaced by noise."""

    @cached_property
    def _arrays(self):
        images, targets = (array.copy() for array in Dataset()._arrays)
        rows = Dataset()._halves[1]
        images[rows] = np.random.default_rng(0).integers(0, 17, images[rows].shape)
        return images, targets


def test_no_evaluation_image_reaches_another_split():
    clean, poisoned = Dataset(), Poisoned()
    for split in ("train", "validation", "calibration"):
        for left, right in zip(clean.split(split), poisoned.split(split), strict=True):
            assert np.array_equal(left, right)
    assert not np.array_equal(clean.split("evaluation")[0], poisoned.split("evaluation")[0])
    assert clean.fingerprint() != poisoned.fingerprint()
