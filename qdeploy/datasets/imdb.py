"""IMDB, 50,000 film reviews as token ids, in 2 classes: negative, positive (Maas et al. 2011)."""

from __future__ import annotations

import csv
import gzip
import hashlib
import lzma
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np

from qdeploy.core.errors import QDeployError, nearest
from qdeploy.datasets._base import ArrayDataset, CommonOptions, Raw, Targets
from qdeploy.datasets._download import data_root, ensure_files, reading
from qdeploy.datasets._fetch import fetch

URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
SIZE = 84125825
SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"

PADDING, UNKNOWN, FIRST_WORD = 0, 1, 2  # token ids
BREAK = re.compile(r"<br\s*/?>")
WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[!?]")
KEEP = ("first", "last")
MEMBER = re.compile(r"aclImdb/(train|test)/(neg|pos)/(\d+)_\d+\.txt")

Review = tuple[str, int]  # the text, 1 where it is positive


class Dataset(ArrayDataset):
    """Raw samples are int32 [length], token ids of 0 to ``vocabulary`` - 1; the model's input is the same in int64.

    Making tokens of text is a part of this data set, not of a bundle: ``encode`` does it. Text is lower-cased, line
    breaks (<br />) are dropped, and a token is a word of letters and digits (with an apostrophe inside), "!" or "?".
    Ids 2, 3, ... are the most frequent words of the training part, 1 is any other, 0 pads in front. Of longer
    reviews the ``keep`` ("last" or "first") ``length`` tokens stay.

    ``root`` holds aclImdb_v1.tar.gz (which is downloaded, and read without unpacking it), the folder aclImdb/ that it
    unpacks to, or imdb_train.csv.xz and imdb_test.csv.xz with the columns id, label (0, 1) and text.
    """

    name = "imdb"
    classes = ("negative", "positive")
    raw_dtype = "int32"
    metric = "roc_auc"

    def __init__(
        self,
        *,
        vocabulary: int = 20_000,
        length: int = 200,
        keep: Literal["first", "last"] = "last",
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**common)
        if vocabulary < FIRST_WORD + 1:
            raise QDeployError(f"data.vocabulary is {vocabulary}.", "Give the number of token ids, such as 20000.")
        if length < 1:
            raise QDeployError(f"data.length is {length}.", "Give the number of tokens of a sample, such as 200.")
        if keep not in KEEP:
            raise QDeployError(f"data.keep is {keep!r}.", nearest(keep, KEEP))
        self.vocabulary = vocabulary
        self.length = length
        self.keep = keep
        self.raw_shape = (length,)
        self.raw_range = (0, vocabulary - 1)  # type: ignore[misc]

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """Token ids as an embedding takes them."""
        return [{"op": "cast", "dtype": "int64"}]

    @cached_property
    def words(self) -> dict[str, int]:
        """The token id of every known word: the most frequent ones of the training part; of equals, by the alphabet."""
        counts = Counter(word for text, _ in self._reviews("train") for word in tokens(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return {word: i for i, word in enumerate(ranked[: self.vocabulary - FIRST_WORD], start=FIRST_WORD)}

    def encode(self, texts: Iterable[str]) -> Raw:
        """Raw samples, int32 [N, length], of the reviews ``texts``."""
        words, rows = self.words, []
        for text in texts:
            found = [words.get(word, UNKNOWN) for word in tokens(text)]
            kept = found[-self.length :] if self.keep == "last" else found[: self.length]
            rows.append([PADDING] * (self.length - len(kept)) + kept)
        return np.array(rows, np.int32).reshape(-1, self.length)

    def _read_training(self) -> tuple[Raw, Targets]:
        return self._encoded("train")

    def _read_evaluation(self) -> tuple[Raw, Targets]:
        return self._encoded("test")

    def _encoded(self, part: str) -> tuple[Raw, Targets]:
        reviews = self._reviews(part)
        return self.encode(text for text, _ in reviews), np.array([label for _, label in reviews], np.int64)

    def _files(self) -> list[Path]:
        """What is read: one of the three layouts, the archive where there is none."""
        root = data_root(self.root)
        tables = [root / f"imdb_{part}.csv.xz" for part in ("train", "test")]
        if all(table.is_file() for table in tables):
            return tables
        return sorted((root / "aclImdb").glob("t*/*/*_*.txt")) or [root / Path(URL).name]

    def _ensure(self) -> list[Path]:
        archive = data_root(self.root) / Path(URL).name
        ensure_files(
            self.name, self._files(), self.download, lambda: fetch(URL, archive, size=SIZE, sha256=SHA256)
        )  # fmt: skip
        return self._files()

    def _reviews(self, part: str) -> Sequence[Review]:
        """The reviews of ``part`` ("train", "test"): negative ones first, by their number, whatever the layout."""
        files = self._ensure()
        read = _read_tables if files[0].suffix == ".xz" else _read_archive if files[0].suffix == ".gz" else _read_folder
        with reading(self.name, data_root(self.root)):
            found = sorted(read(files, part))
            for label, kind in enumerate(self.classes):
                if not any(label == review[0] for review in found):
                    raise ValueError(f"no {kind} reviews in {part}")
        return [(text, label) for label, _, text in found]

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "tokens": [self.vocabulary, self.length, self.keep]}

    def _content(self) -> Iterable[bytes]:
        for file in self._ensure():
            yield file.name.encode() + hashlib.sha256(file.read_bytes()).digest()
        yield "\n".join(self.words).encode()


def tokens(text: str) -> list[str]:
    """The words of a review."""
    return WORD.findall(BREAK.sub(" ", text.lower()))


def _read_tables(files: Sequence[Path], part: str) -> Iterator[tuple[int, int, str]]:
    """(label, number, text) of the reviews in imdb_PART.csv.xz."""
    (table,) = (file for file in files if file.name == f"imdb_{part}.csv.xz")
    with lzma.open(table, "rt", encoding="utf-8", newline="") as text:
        for row in csv.DictReader(text):
            yield int(row["label"]), int(row["id"]), row["text"]


def _read_folder(files: Sequence[Path], part: str) -> Iterator[tuple[int, int, str]]:
    for file in files:
        match = MEMBER.fullmatch("/".join(file.parts[-4:]))
        if match and match[1] == part:
            yield int(match[2] == "pos"), int(match[3]), file.read_text(encoding="utf-8")


def _read_archive(files: Sequence[Path], part: str) -> Iterator[tuple[int, int, str]]:
    """Members are read one after the other and never written anywhere; what is damaged, gzip's checksum tells."""
    with gzip.open(files[0]) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
        for member in archive:
            match = MEMBER.fullmatch(member.name)
            if match and match[1] == part and (content := archive.extractfile(member)) is not None:
                yield int(match[2] == "pos"), int(match[3]), content.read().decode()
        while unpacked.read(2**20):  # the checksum stands at the end
            pass
