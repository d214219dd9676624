from __future__ import annotations

import numpy as np
import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.datasets._base import ArrayDataset, stratified


class Bands(ArrayDataset):
    """40 samples, 10 of each of 4 classes; a sample's pixel is its row, evaluation's are 100 and more."""

    name = "bands"
    classes = ("a", "b", "c", "d")
    raw_shape = (1, 1)
    preprocessing = [{"op": "scale", "factor": 1.0}]  # noqa: RUF012
    evaluation_is_there = True

    def _read_training(self):
        return np.arange(40, dtype=np.uint8).reshape(-1, 1, 1), np.arange(40) % 4

    def _read_evaluation(self):
        assert self.evaluation_is_there
        return np.arange(100, 108, dtype=np.uint8).reshape(-1, 1, 1), np.arange(8) % 4

    def _content(self):
        return [b"bands"]


def rows(dataset: ArrayDataset, split: str) -> list[int]:
    return dataset.split(split)[0].ravel().tolist()


def test_train_and_validation_divide_the_training_part():
    dataset = Bands(validation=0.2, calibration=5)
    train, validation = rows(dataset, "train"), rows(dataset, "validation")
    assert sorted(train + validation) == list(range(40))
    assert len(validation) == 8
    assert np.bincount(dataset.split("validation")[1]).tolist() == [2, 2, 2, 2]


def test_calibration_is_a_part_of_train():
    dataset = Bands(validation=0.2, calibration=5)
    calibration = rows(dataset, "calibration")
    assert len(set(calibration)) == 5
    assert set(calibration) <= set(rows(dataset, "train"))


def test_fewer_calibration_samples_are_some_of_more():
    few, more = rows(Bands(calibration=4), "calibration"), rows(Bands(calibration=9), "calibration")
    assert more[:4] == few


def test_targets_stay_with_their_samples():
    for split in ("train", "validation", "calibration"):
        raw, targets = Bands(calibration=7).split(split)
        assert (raw.ravel() % 4 == targets).all()


def test_the_seed_decides_and_nothing_else():
    splits = [[rows(Bands(seed=seed, calibration=5), s) for s in ("train", "validation")] for seed in (3, 3, 4)]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2]


def test_evaluation_is_read_when_asked_for_and_not_before():
    dataset = Bands(calibration=5)
    dataset.evaluation_is_there = False
    for split in ("train", "validation", "calibration"):
        dataset.split(split)
    dataset.fingerprint()
    assert dataset.accessed == ["train", "validation", "calibration"]
    with pytest.raises(AssertionError):
        dataset.split("evaluation")
    assert dataset.accessed[-1] == "evaluation"


def test_splits_are_copies():
    dataset = Bands(calibration=5)
    dataset.split("train")[0][:] = 0
    assert len(set(rows(dataset, "train"))) == len(rows(dataset, "train"))


def test_the_fingerprint_covers_options():
    prints = [Bands(), Bands(), Bands(seed=1), Bands(validation=0.3), Bands(calibration=3)]
    digests = [dataset.fingerprint() for dataset in prints]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
    assert len(digests[0]) == 64


def test_where_files_lie_is_not_in_the_fingerprint():
    assert Bands(root="a", download=False).fingerprint() == Bands(root="b").fingerprint()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"validation": 0.0}, "data.validation is 0.0"),
        ({"validation": 1.0}, "data.validation is 1.0"),
        ({"calibration": 0}, "data.calibration is 0"),
        ({"seed": -1}, "data.seed is -1"),
    ],
)
def test_options_out_of_range(options, said):
    with pytest.raises(QDeployError, match=said):
        Bands(**options)


def test_more_calibration_samples_than_there_are():
    with pytest.raises(QDeployError, match=r"data.calibration is 37, but data set bands has 36") as error:
        Bands(calibration=37).split("train")
    assert "36 or fewer" in error.value.hint


def test_an_unknown_split_suggests_the_nearest():
    with pytest.raises(QDeployError, match="no split 'eval'") as error:
        Bands().split("eval")
    assert "evaluation" in error.value.hint


def test_data_that_is_not_what_the_plugin_says():
    class Wrong(Bands):
        raw_shape = (2, 2)

    class TooManyClasses(Bands):
        classes = ("a", "b", "c")

    with pytest.raises(QDeployError, match=r"uint8\[40, 1, 1\] samples"):
        Wrong().split("train")
    with pytest.raises(QDeployError, match=r"targets 0\.\.3"):
        TooManyClasses().split("train")


def test_stratified_gives_each_class_its_share():
    targets = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    rest, part = stratified(targets, 0.1, seed=0)
    assert np.bincount(targets[part], minlength=4).tolist() == [10, 1, 1, 0]
    assert sorted([*rest, *part]) == list(range(113))
    assert (np.diff(part) > 0).all()
    assert (np.diff(rest) > 0).all()
