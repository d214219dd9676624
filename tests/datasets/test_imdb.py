from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.datasets.imdb import Dataset, tokens

REVIEWS = {
    "train": {"neg": ["Bad, bad film!", "It's bad."] * 5, "pos": ["A good film.<br /><br />Good?", "good"] * 5},
    "test": {"neg": ["an unseen word"], "pos": ["good good film"]},
}


def write_folder(root: Path) -> Path:
    for part, labels in REVIEWS.items():
        for label, texts in labels.items():
            folder = root / "aclImdb" / part / label
            folder.mkdir(parents=True)
            for number, text in enumerate(texts):
                (folder / f"{number}_{7 if label == 'pos' else 2}.txt").write_text(text, encoding="utf-8")
    return root


def write_archive(root: Path, folder: Path) -> Path:
    root.mkdir()
    with tarfile.open(root / "aclImdb_v1.tar.gz", "w:gz") as archive:
        archive.add(folder / "aclImdb", "aclImdb")
        evil = tarfile.TarInfo("../evil_1.txt")
        archive.addfile(evil, io.BytesIO())
    return root


def write_tables(root: Path) -> Path:
    import csv
    import lzma

    root.mkdir()
    for part, labels in REVIEWS.items():
        with lzma.open(root / f"imdb_{part}.csv.xz", "wt", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "label", "rating", "text"])
            for label, texts in labels.items():
                writer.writerows([i, int(label == "pos"), 5, text] for i, text in enumerate(texts))
    return root


def made(root: Path, **options) -> Dataset:
    return Dataset(**{"root": str(root), "download": False, "calibration": 3, "length": 4, **options})


def test_three_layouts_are_the_same_reviews(tmp_path: Path):
    folder = write_folder(tmp_path / "folder")
    roots = folder, write_archive(tmp_path / "archive", folder), write_tables(tmp_path / "tables")
    splits = [[made(root).split(name) for name in ("train", "validation", "evaluation")] for root in roots]
    for other in splits[1:]:
        for (raw, targets), (raw_too, targets_too) in zip(splits[0], other, strict=True):
            assert np.array_equal(raw, raw_too)
            assert np.array_equal(targets, targets_too)
    assert sorted(path.name for path in (tmp_path / "archive").iterdir()) == ["aclImdb_v1.tar.gz"]


def test_tokens():
    assert tokens("It's GREAT!<br />10/10, isn't it?") == ["it's", "great", "!", "10", "10", "isn't", "it", "?"]


def test_ids_are_by_frequency_in_the_training_part(tmp_path: Path):
    dataset = made(write_folder(tmp_path))
    words = dataset.words
    assert sorted(words.values()) == list(range(2, 2 + len(words)))
    assert list(words)[:2] == ["bad", "good"]  # 15 times each: by the alphabet
    assert "unseen" not in words
    assert dataset.encode(["good unseen", "film good bad good bad", ""]).tolist() == [
        [0, 0, words["good"], 1],
        [words["good"], words["bad"], words["good"], words["bad"]],
        [0, 0, 0, 0],
    ]


def test_the_first_tokens_can_be_kept_and_few_words_known(tmp_path: Path):
    dataset = made(write_folder(tmp_path), keep="first", vocabulary=3)
    assert dataset.words == {"bad": 2}
    assert dataset.encode(["bad good bad good bad"]).tolist() == [[2, 1, 2, 1]]
    assert dataset.raw_range == (0, 2)


def test_evaluation_reviews_give_no_words(tmp_path: Path):
    root = write_folder(tmp_path)
    words = made(root).words
    (root / "aclImdb" / "test" / "pos" / "0_7.txt").write_text("entirely other words")
    assert made(root).words == words


def test_the_fingerprint_covers_words_and_options(tmp_path: Path):
    root = write_folder(tmp_path)
    prints = [made(root, **o).fingerprint() for o in ({}, {"length": 5}, {"keep": "first"}, {"vocabulary": 5})]
    assert len(set(prints)) == 4


def test_real_reviews(imdb_root: Path):
    dataset = Dataset(root=str(imdb_root), download=False, calibration=8)
    raw, targets = dataset.split("evaluation")
    assert np.bincount(targets).tolist() == [150, 150]
    assert raw.shape == (300, 200)
    assert list(dataset.words)[:3] == ["the", "and", "a"]
    shorter = raw[:, 0] == 0
    assert 0.2 < shorter.mean() < 0.9
    assert (np.diff((raw != 0).astype(int), axis=1) >= 0).all()  # padding stands in front


@pytest.mark.parametrize(
    ("options", "said"),
    [({"vocabulary": 2}, "data.vocabulary"), ({"length": 0}, "data.length"), ({"keep": "middle"}, "data.keep")],
)
def test_wrong_options(options, said):
    with pytest.raises(QDeployError, match=said):
        Dataset(**options)


def test_nothing_there(tmp_path: Path):
    with pytest.raises(QDeployError, match=r"aclImdb_v1.tar.gz"):
        made(tmp_path).split("train")


def test_a_damaged_archive(tmp_path: Path):
    (tmp_path / "aclImdb_v1.tar.gz").write_bytes(b"no archive")
    with pytest.raises(QDeployError, match="cannot be read"):
        made(tmp_path).split("train")


@pytest.mark.parametrize("label", ["neg", "pos"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_folder_that_was_half_unpacked(tmp_path: Path, part: str, label: str):
    root = write_folder(tmp_path)
    for file in (root / "aclImdb" / part / label).iterdir():
        file.unlink()
    missing = {"neg": "negative", "pos": "positive"}[label]
    with pytest.raises(QDeployError, match=f"no {missing} reviews in {part}"):
        made(root).split("train" if part == "train" else "evaluation")
