"""Any table in a csv file: numbers and categories to classes, one fifth held out (a local file)."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError, nearest
from qdeploy.datasets._base import CommonOptions, Raw, Targets
from qdeploy.datasets._held_out import HeldOutDataset

OPENERS: dict[str, Callable[[bytes], bytes]] = {".xz": lzma.decompress, ".gz": gzip.decompress}
SEPARATORS = ",;\t|"
MOST_VALUES = 1000  # of a categorical column
MOST_ROUNDING = 0.01  # of a column's deviation
NOISE = 1e-14  # of its largest value: a column that differs by less is one number, written in several ways


class Dataset(HeldOutDataset):
    """Raw samples are float32 [features]; the model's input is the same, standardized.

    ``path`` is a csv file with a header, UTF-8, plain or compressed (.gz, .xz). ``separator`` stands between its cells:
    by default the one of comma, semicolon, tab and bar that divides header and first row into as many cells, and most.
    The classes are the values of the column ``target``, sorted. ``features`` are the columns that the model sees
    (default: all others), less those in ``drop``. All hold numbers but the ``categorical`` ones: each of these becomes
    one feature of 0 or 1 for every value that the training part has (1,000 at most), in the place of the column.
    ``columns`` names the features of a raw sample in their order.

    Numbers are standardized by the mean and the deviation of the training part, which go into the manifest. A
    fifth of the rows of every class, always the same ones, is the evaluation part.
    """

    name = "csv"
    raw_dtype = "float32"

    def __init__(
        self,
        *,
        path: str = "",
        target: str = "",
        separator: str | None = None,
        features: Sequence[str] | None = None,
        drop: Sequence[str] = (),
        categorical: Sequence[str] = (),
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**common)
        if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
            raise QDeployError(f"data.separator is {separator!r}.", "Give one character, such as ',', ';' or a tab.")
        self.path = Path(path).expanduser() if path else None
        self.target = target
        self.separator = separator
        self.features = None if features is None else list(features)
        self.drop = list(drop)
        self.categorical = list(categorical)

    @property
    def classes(self) -> Sequence[str]:  # type: ignore[override]
        """The values of the target column, sorted."""
        return self._classes[0]

    @property
    def raw_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """[features]."""
        return (len(self.columns),)

    @property
    def columns(self) -> list[str]:
        """What each number of a raw sample is: a column, or COLUMN=VALUE."""
        return self._encoded[0]

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """Subtract the training part's mean, divide by its deviation; categories stay 0 and 1."""
        rows = self._encoded[1][self._halves[0]].astype(np.float64)
        number = self._encoded[2]
        mean, std = np.where(number, rows.mean(0), 0.0), np.where(number, rows.std(0), 1.0)
        std[std == 0] = 1.0  # a column that never changes says nothing, and must not divide by zero
        return [{"op": "normalize", "mean": _float32(mean), "std": _float32(std)}]

    @property
    def _arrays(self) -> tuple[Raw, Targets]:
        labels = self._labels
        return self._encoded[1], labels

    @property
    def _labels(self) -> Targets:
        return self._classes[1]

    @cached_property
    def _bytes(self) -> bytes:
        if self.path is None:
            raise QDeployError("Data set csv has no file.", "Set data.path to a csv file, and data.target.")
        if not self.path.is_file():
            found = f"{self.path} is a folder." if self.path.is_dir() else f"There is no file {self.path}."
            raise QDeployError(found, "Set data.path to a csv file.")
        try:
            return OPENERS.get(self.path.suffix, bytes)(self.path.read_bytes())
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise QDeployError(f"{self.path} cannot be read: {error}.", "It is damaged.") from error

    @cached_property
    def _table(self) -> tuple[list[str], list[tuple[int, list[str]]]]:
        """The header, and the rows with their line numbers; cells without surrounding blanks."""
        try:
            text = self._bytes.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise QDeployError(f"{self.path} is not UTF-8: {error}.", "Save it as UTF-8.") from error
        separator = self.separator or _separator(text)
        rows = self._rows_of(text, separator)
        if len(rows) < 2:
            raise QDeployError(f"{self.path} has no rows below a header.", "Give a csv file whose first line is names.")
        (_, header), *body = rows
        if "" in header and "" not in self.drop and self.features is None:
            raise QDeployError(
                f"{self.path}, column {header.index('') + 1} has no name in the header.",
                "Name it, or leave it out with data.drop=['']: tables that pandas wrote begin with such an index.",
            )
        for line, row in body:
            if len(row) != len(header):
                raise QDeployError(
                    f"{self.path}, line {line} has {len(row)} cells, the header {len(header)}.",
                    f"Cells are separated by {separator!r}: mend the line, or set data.separator.",
                )
        if twice := {name for name in header if name and header.count(name) > 1}:
            raise QDeployError(f"{self.path} has the column {sorted(twice)[0]!r} twice.", "Rename one.")
        return header, body

    def _rows_of(self, text: str, separator: str) -> list[tuple[int, list[str]]]:
        """The first line and the cells of every row that has any; one of nothing but other separators has none."""
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows: list[tuple[int, list[str]]] = []
        line = 1
        try:
            for row in reader:
                cells = [cell.strip() for cell in row]
                if any(cells) and (len(cells) > 1 or _says_something(cells)):
                    rows.append((line, cells))
                line = reader.line_num + 1
        except csv.Error as error:
            hint = f"Check its quotes; cells are separated by {separator!r}, unless data.separator says otherwise."
            raise QDeployError(f"{self.path}, line {line}: {error}.", hint) from error
        return rows

    @property
    def _header(self) -> list[str]:
        return self._table[0]

    def _cells(self, column: str, option: str) -> list[str]:
        """One column's text. QDeployError: the option ``option`` names no column."""
        header, rows = self._table
        if column not in header:
            raise QDeployError(f"data.{option}: {self.path} has no column {column!r}.", nearest(column, header))
        place = header.index(column)
        return [row[place] for _, row in rows]

    @cached_property
    def _classes(self) -> tuple[list[str], Targets]:
        """The classes, and the class of every row."""
        if not self.target:
            known = ", ".join(self._header)
            raise QDeployError("Data set csv has no target.", f"Set data.target to the column of classes: {known}.")
        cells = np.array(self._cells(self.target, "target"))
        self._require_filled(self.target, cells)
        classes, targets = np.unique(cells, return_inverse=True)
        if len(classes) < 2:
            raise QDeployError(
                f"All rows of {self.path} have the class {str(classes[0])!r}.",
                f"data.target is {self.target!r}: is it right?",
            )
        return classes.tolist(), targets.astype(np.int64)

    @cached_property
    def _encoded(self) -> tuple[list[str], Raw, NDArray[np.bool_]]:
        """The names of all features, their values, float32 [rows, features], and which are a column's own numbers."""
        self._require_names()
        wanted = [name for name in self._header if name != self.target] if self.features is None else self.features
        chosen = [name for name in wanted if name not in self.drop]
        if not chosen:
            raise QDeployError("Data set csv has no features left.", "Check data.features and data.drop.")
        names: list[str] = []
        values: list[NDArray[np.float32]] = []
        for column in chosen:
            cells = self._cells(column, "features")
            made = (
                self._one_hot(column, cells) if column in self.categorical else {column: self._numbers(column, cells)}
            )
            names += made
            values += made.values()
        return names, np.stack(values, axis=1), np.array([name in chosen for name in names])

    def _require_names(self) -> None:
        """Refuse options that name what is no column, a column twice, or the target as a feature."""
        self._cells(self.target, "target")
        options = {"features": self.features or [], "drop": self.drop, "categorical": self.categorical}
        for option, names in options.items():
            for name in names:
                self._cells(name, option)
                if names.count(name) > 1:
                    raise QDeployError(f"data.{option} names the column {name!r} twice.", "Name it once.")
            if self.target in names:
                raise QDeployError(
                    f"data.{option} names {self.target!r}, which is data.target.",
                    "The column of classes is never a feature: take it off that list.",
                )

    def _numbers(self, column: str, cells: list[str]) -> NDArray[np.float32]:
        values = np.array([_number(cell) for cell in cells])
        if (wrong := np.flatnonzero(~(np.abs(values) <= np.finfo(np.float32).max))).size:
            line, cell = self._table[1][wrong[0]][0], cells[wrong[0]]
            found = f"{cell!r} is no number" if cell else "a cell is empty"
            raise QDeployError(
                f"{self.path}, line {line}, column {column!r}: {found} (so in {wrong.size} of {len(cells)} rows).",
                "Fill it in, or name the column in data.categorical or data.drop.",
            )
        rounded = values.astype(np.float32)
        lost = np.abs(rounded - values).max()
        if lost > MOST_ROUNDING * values.std() and np.ptp(values) > NOISE * np.abs(values).max():
            raise QDeployError(
                f"{self.path}, column {column!r}: its values (around {values.mean():.10g}) differ by less than a model "
                "can tell apart, which computes in float32.",
                "Shift or scale them in the file, or name the column in data.drop.",
            )
        return rounded

    def _one_hot(self, column: str, cells: list[str]) -> dict[str, NDArray[np.float32]]:
        """0 or 1 for every value that the training part has; another value is 0 in all of them."""
        text = np.array(cells)
        self._require_filled(column, text)
        known = np.unique(text[self._halves[0]])
        if len(known) > MOST_VALUES:
            raise QDeployError(
                f"{self.path}, column {column!r}: {len(known)} values are too many categories (at most {MOST_VALUES}).",
                "Name the column in data.drop, or group its values; a column of numbers is not for data.categorical.",
            )
        return {f"{column}={value}": (text == value).astype(np.float32) for value in known}

    def _require_filled(self, column: str, cells: NDArray[np.str_]) -> None:
        if (empty := np.flatnonzero(cells == "")).size:
            line = self._table[1][empty[0]][0]
            raise QDeployError(
                f"{self.path}, line {line}, column {column!r}: a cell is empty (so in {empty.size} rows).",
                "Fill it in.",
            )

    def _options(self) -> dict[str, Any]:
        chosen = [self.target, self.separator, self.features, self.drop, self.categorical]
        return {**super()._options(), "csv": chosen}

    def _content(self) -> Iterable[bytes]:
        return [self._bytes]


def _separator(text: str) -> str:
    """The separator with which header and first row have as many cells, and most of them; a comma where none has."""
    return max(SEPARATORS, key=lambda separator: _cells_with(text, separator))


def _cells_with(text: str, separator: str) -> tuple[bool, int]:
    """Whether the first two rows have as many cells, more than one, and how many the header has."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header, first = itertools.islice(filter(_says_something, reader), 2)
    except (csv.Error, ValueError):
        return False, 0
    return len(header) == len(first) > 1, len(header)


def _says_something(cells: Sequence[str]) -> bool:
    """Whether a row holds more than blanks and separators, whichever separates it."""
    return any(cell.strip(SEPARATORS + " ") for cell in cells)


def _number(cell: str) -> float:
    try:
        return float("nan" if "_" in cell else cell)  # Python reads 1_000 as a number; a table means something else
    except ValueError:
        return float("nan")


def _float32(values: NDArray[np.float64]) -> list[float]:
    """What the runner computes with, so that the manifest says the same."""
    return [float(value) for value in values.astype(np.float32)]
