"""The next item of a user: sequences of purchases in time order (McAuley 2015, as prepared for SASRec, 2018)."""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError
from qdeploy.datasets._base import ArrayDataset, CommonOptions, Indices, Raw, Targets
from qdeploy.datasets._download import data_root, ensure_files, reading
from qdeploy.datasets._fetch import fetch

# File, size and digest at a commit of the authors' repository.
URL = "https://raw.githubusercontent.com/kang205/SASRec/e3738967fddab206d6eeb4fda433e7a7034dd8b1/data/{}"
KNOWN = {"Video.txt": (3187124, "b7376fe24430743f411dc7f567285657b2adb3f74361cc7ba0aee94f3024b651")}
PADDING = 0
HIGHEST = np.iinfo(np.int32).max  # item id of a raw sample
SHORTEST = 3  # items of a user: one to evaluate, one to validate, one to start from


class Dataset(ArrayDataset):
    """Raw samples are int32 [length], item ids from 1, 0 in front where there are fewer; the model's input is int64.

    The target is the id of the next item, of 1 to ``items``. A model returns scores [N, items + 1]: column i is item i,
    column 0 is never right. Leave-one-out, as Kang and McAuley (2018) split: the evaluation part asks for the last item
    of every user (given all others), ``validation`` for the one before it, whatever its share says, and ``train`` for
    all earlier ones from the second on, or the last ``prefixes`` of them. Users with fewer than 3 items are left out.
    Metrics rank ALL items and no sample of negatives: lower numbers than that paper's, and the harder and unbiased
    question (Krichene and Rendle 2020).

    ``root`` holds sequences/``file`` or the same with .xz: lines "user item", in the order of time. Video.txt (31,013
    users, 23,715 items) is downloaded.
    """

    name = "sequences"
    raw_dtype = "int32"
    task = "ranking"
    metric = "ndcg10"

    def __init__(
        self,
        *,
        file: str = "Video.txt",
        length: int = 50,
        prefixes: int | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**common)
        if Path(file).name != file:
            raise QDeployError(f"data.file is {file!r}.", "Name a file in the folder sequences/ below data.root.")
        for option, value in (("length", length), ("prefixes", prefixes)):
            if value is not None and value < 1:
                raise QDeployError(f"data.{option} is {value}.", "Give 1 or more.")
        self.file = file
        self.length = length
        self.prefixes = prefixes
        self.raw_shape = (length,)

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """Item ids as an embedding takes them."""
        return [{"op": "cast", "dtype": "int64"}]

    @property
    def items(self) -> int:
        """The highest item id."""
        return int(self._pairs[:, 1].max())

    @property
    def raw_range(self) -> tuple[float, float]:  # type: ignore[override]
        """Padding, and the highest item id."""
        return (PADDING, self.items)

    @cached_property
    def _pairs(self) -> NDArray[np.int64]:
        """[pairs, 2]: user and item, users together, the items of each in the order of time."""
        path = self._ensure()
        with reading(self.name, path.parent):
            content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
            pairs = np.array([line.split() for line in content.decode().splitlines()], np.int64)
            if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.min() < 1:
                raise ValueError('lines are "user item", numbers from 1')
        if (highest := int(pairs[:, 1].max())) > HIGHEST:
            raise QDeployError(
                f"{path}, line {pairs[:, 1].argmax() + 1}: the item id {highest} is above {HIGHEST}.",
                "Number the items from 1, without gaps: a model has a row for every id up to the highest.",
            )
        return pairs[np.argsort(pairs[:, 0], kind="stable")]

    @cached_property
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For every pair: its place among its user's items, from 0, and how many follow."""
        _, first, counts = np.unique(self._pairs[:, 0], return_index=True, return_counts=True)
        place = np.arange(len(self._pairs)) - np.repeat(first, counts)
        after = np.repeat(counts, counts) - 1 - place
        after[np.repeat(counts, counts) < SHORTEST] = -1
        return place, after

    def _asked(self, training: bool) -> Indices:
        """The rows of ``_pairs`` that are targets in the training or in the evaluation part."""
        place, after = self._places
        if not training:
            return np.flatnonzero(after == 0)
        reach = np.inf if self.prefixes is None else self.prefixes + 1
        return np.flatnonzero((place > 0) & (after > 0) & (after <= reach))

    def _samples(self, rows: Indices) -> tuple[Raw, Targets]:
        """What came before the pairs ``rows``, and their items."""
        items, place = self._pairs[:, 1], self._places[0]
        back = np.arange(self.length, 0, -1)
        there = back <= place[rows, None]
        before = np.where(there, items[np.where(there, rows[:, None] - back, 0)], PADDING)
        return before.astype(np.int32), items[rows]

    def _read_training(self) -> tuple[Raw, Targets]:
        return self._samples(self._asked(training=True))

    def _read_evaluation(self) -> tuple[Raw, Targets]:
        return self._samples(self._asked(training=False))

    def _cut(self, name: str, raw: Raw, targets: Targets) -> tuple[Raw, Targets]:
        rows, _ = super()._cut(name, np.arange(len(raw)), targets)
        if name == "training":
            self._kept = self._asked(training=True)[rows]
        return raw[rows], targets[rows]

    def _divide(self, targets: Targets) -> dict[str, Indices]:
        """``validation`` is what was asked last of each user."""
        last = self._places[1][self._kept] == 1
        if last.all() or not last.any():
            raise QDeployError("A cut to so few samples leaves none to train or validate.", "Raise data.train_samples.")
        return self._with_calibration(np.flatnonzero(~last), np.flatnonzero(last))

    def _path(self) -> Path:
        plain = data_root(self.root) / "sequences" / self.file
        packed = plain.with_name(f"{self.file}.xz")
        return packed if packed.is_file() and not plain.is_file() else plain

    def _ensure(self) -> Path:
        def download() -> None:
            if self.file not in KNOWN:
                raise OSError(f"no source is known for {self.file}, only for {', '.join(KNOWN)}")
            size, sha256 = KNOWN[self.file]
            fetch(URL.format(self.file), self._path(), size=size, sha256=sha256)

        ensure_files(self.name, [self._path()], self.download, download)
        return self._path()

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "sequences": [self.length, self.prefixes]}

    def _content(self) -> Iterable[bytes]:
        return [self._ensure().read_bytes()]
