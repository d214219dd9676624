from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.datasets.sequences import Dataset

LINES = "1 11\n2 21\n1 12\n1 13\n3 31\n2 22\n1 14\n3 32\n1 15\n2 23\n"


def made(root: Path, lines: str = LINES, **options) -> Dataset:
    (root / "sequences").mkdir(exist_ok=True)
    (root / "sequences" / "Video.txt").write_text(lines)
    return Dataset(**{"root": str(root), "download": False, "calibration": 1, "length": 3, **options})


def questions(dataset: Dataset, split: str) -> set[tuple[tuple[int, ...], int]]:
    raw, targets = dataset.split(split)
    return {(tuple(row), int(item)) for row, item in zip(raw, targets, strict=True)}


def test_the_last_item_is_evaluated_the_one_before_validated(tmp_path: Path):
    """Users 1 (11 to 15) and 2 (21 to 23); user 3 has two items only."""
    dataset = made(tmp_path)
    assert questions(dataset, "evaluation") == {((12, 13, 14), 15), ((0, 21, 22), 23)}
    assert questions(dataset, "validation") == {((11, 12, 13), 14), ((0, 0, 21), 22)}
    assert questions(dataset, "train") == {((0, 0, 11), 12), ((0, 11, 12), 13)}
    assert dataset.items == 32
    assert dataset.raw_range == (0, 32)


def test_the_last_prefixes_train(tmp_path: Path):
    dataset = made(tmp_path, prefixes=1)
    assert questions(dataset, "train") == {((0, 11, 12), 13)}
    assert questions(dataset, "validation") == questions(made(tmp_path), "validation")


def test_no_answer_is_in_what_is_trained_on(sequences_root: Path):
    dataset = Dataset(root=str(sequences_root), download=False, calibration=8, length=20)
    pairs = np.loadtxt(sequences_root / "sequences" / "Video.txt", dtype=np.int64)
    by_user = [pairs[pairs[:, 0] == user, 1] for user in np.unique(pairs[:, 0])]
    kept = [items for items in by_user if len(items) >= 3]
    assert np.array_equal(dataset.split("evaluation")[1], [items[-1] for items in kept])
    assert np.array_equal(dataset.split("validation")[1], [items[-2] for items in kept])
    assert len(dataset.split("train")[1]) == sum(len(items) - 3 for items in kept)
    raw, _ = dataset.split("evaluation")
    for row, items in list(zip(raw, kept, strict=True))[:50]:
        assert row[row > 0].tolist() == items[:-1][-20:].tolist()


def test_a_cut_keeps_what_is_validated_apart(sequences_root: Path):
    whole = Dataset(root=str(sequences_root), download=False, calibration=8)
    cut = Dataset(root=str(sequences_root), download=False, calibration=8, train_samples=500, evaluation_samples=50)
    for split in ("train", "validation"):
        assert questions(cut, split) <= questions(whole, split)
    assert sum(len(cut.split(split)[1]) for split in ("train", "validation")) == 500
    assert len(cut.split("evaluation")[1]) == 50


def test_a_compressed_file_holds_the_same(tmp_path: Path):
    expected = questions(made(tmp_path), "train")
    plain = tmp_path / "sequences" / "Video.txt"
    plain.with_name("Video.txt.xz").write_bytes(lzma.compress(plain.read_bytes()))
    plain.unlink()
    assert questions(Dataset(root=str(tmp_path), download=False, calibration=1, length=3), "train") == expected


def test_the_fingerprint_covers_the_options(tmp_path: Path):
    assert len({made(tmp_path, **o).fingerprint() for o in ({}, {"length": 4}, {"prefixes": 1})}) == 3


def test_ids_that_do_not_fit(tmp_path: Path):
    """Raw samples are int32: a higher id would become another one."""
    assert made(tmp_path, LINES.replace("15", str(2**31 - 1))).items == 2**31 - 1
    with pytest.raises(QDeployError, match=r"Video.txt, line 9: the item id 2147483648 is above 2147483647") as error:
        made(tmp_path, LINES.replace("15", str(2**31))).split("train")
    assert "Number the items from 1" in error.value.hint


@pytest.mark.parametrize("lines", ["", "1 2 3\n4\n", "1 a\n", "0 5\n", "1 2 1 3\n"])
def test_other_files(tmp_path: Path, lines):
    with pytest.raises(QDeployError, match="cannot be read"):
        made(tmp_path, lines).split("train")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"file": "../x"}, "data.file"), ({"length": 0}, "data.length"), ({"prefixes": 0}, "data.prefixes")],
)  # fmt: skip
def test_wrong_options(options, said):
    with pytest.raises(QDeployError, match=said):
        Dataset(**options)


def test_a_file_without_a_source_is_not_downloaded(tmp_path: Path):
    with pytest.raises(QDeployError, match=r"could not be downloaded: no source is known for mine.txt"):
        Dataset(root=str(tmp_path), file="mine.txt").split("train")
