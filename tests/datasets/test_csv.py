from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.datasets import csv as csv_module
from qdeploy.datasets.csv import Dataset
from qdeploy.runner import preprocess

HEADER = "age,city,height,grade"


def table(path: Path, rows: list[str] | None = None, header: str = HEADER, **options: Any) -> Dataset:
    if rows is None:
        generator = np.random.default_rng(0)
        rows = [
            f"{generator.integers(18, 60)},{'Rome' if i % 3 else ' Oslo'},{generator.normal():.3f},{'ab'[i % 2]}"
            for i in range(50)
        ]
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return Dataset(path=str(path), target="grade", calibration=5, **{"categorical": ["city"], **options})


def test_students(csv_options):
    dataset = Dataset(**csv_options)
    assert dataset.classes == ["Dropout", "Enrolled", "Graduate"]
    sizes = {name: len(dataset.split(name)[1]) for name in ("train", "validation", "evaluation")}
    assert sum(sizes.values()) == 4424
    assert sizes["evaluation"] == pytest.approx(4424 / 5, abs=2)
    assert dataset.raw_shape == (36,)
    training = np.concatenate([dataset.split(name)[0] for name in ("train", "validation")])
    made = preprocess(training, dataset.preprocessing)
    assert made.mean(0) == pytest.approx(np.zeros(36), abs=1e-4)
    assert made.std(0) == pytest.approx(np.ones(36), abs=1e-4)


def test_categories_become_features_of_0_and_1(tmp_path: Path):
    dataset = table(tmp_path / "a.csv")
    assert dataset.columns == ["age", "city=Oslo", "city=Rome", "height"]
    raw, _ = dataset.split("train")
    assert raw.shape[1:] == dataset.raw_shape == (4,)
    assert (raw[:, 1] + raw[:, 2] == 1).all()
    assert np.array_equal(preprocess(raw, dataset.preprocessing)[:, 1:3], raw[:, 1:3])


def test_statistics_and_categories_are_the_training_parts(tmp_path: Path):
    dataset = table(tmp_path / "a.csv")
    rows = (tmp_path / "a.csv").read_text().splitlines()[1:]
    for row in dataset._halves[1]:
        rows[row] = f"9999,Paris,0,{rows[row][-1]}"
    other = table(tmp_path / "b.csv", rows)
    assert other.preprocessing == dataset.preprocessing
    assert other.columns == dataset.columns
    raw, _ = other.split("evaluation")
    assert (raw[:, 0] == 9999).all()
    assert not raw[:, 1:3].any()  # a value that training never saw


def test_columns_are_chosen(tmp_path: Path):
    assert table(tmp_path / "a.csv", drop=["city"]).columns == ["age", "height"]
    assert table(tmp_path / "a.csv", features=["height", "age"]).columns == ["height", "age"]


def test_a_column_that_never_changes_is_zero(tmp_path: Path):
    dataset = table(tmp_path / "a.csv", [f"30,Rome,{i},{'ab'[i % 2]}" for i in range(30)])
    assert not preprocess(dataset.split("train")[0], dataset.preprocessing)[:, 0].any()


def test_compressed_files_hold_the_same(tmp_path: Path):
    dataset = table(tmp_path / "a.csv")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    packed = Dataset(path=str(tmp_path / "a.csv.gz"), target="grade", calibration=5, categorical=["city"])
    assert packed.fingerprint() == dataset.fingerprint()
    assert np.array_equal(packed.split("train")[0], dataset.split("train")[0])


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("xz", lzma.compress)])
def test_one_flipped_byte(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]):
    """Wherever it is: the file is refused, or holds what it held (names and times in the header)."""
    table(tmp_path / "a.csv")
    content = (tmp_path / "a.csv").read_bytes()
    good, damaged = compress(content), tmp_path / f"a.csv.{suffix}"
    refused: list[str] = []
    for place in range(len(good)):
        damaged.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            assert Dataset(path=str(damaged), target="grade")._bytes == content
        except QDeployError as error:
            refused.append(error.message)
    assert len(refused) > 0.9 * len(good)
    assert all("cannot be read" in message for message in refused)


def test_a_column_of_names_is_no_category(tmp_path: Path):
    """At most 1,000 values in the training part, four fifths of the rows."""
    assert len(table(tmp_path / "a.csv", [f"{i},{i},1,{'ab'[i % 2]}" for i in range(1250)]).columns) == 1002
    more = table(tmp_path / "a.csv", [f"{i},{i},1,{'ab'[i % 2]}" for i in range(1260)])
    with pytest.raises(QDeployError, match="column 'city': 1008 values are too many") as error:
        more.split("train")
    assert "data.drop" in error.value.hint


def test_features_are_made_in_32_bits(tmp_path: Path):
    dataset = table(tmp_path / "a.csv")
    cells = dataset._cells("city", "features")
    assert {str(column.dtype) for column in dataset._one_hot("city", cells).values()} == {"float32"}
    assert dataset.split("train")[0].dtype == np.float32


def test_the_fingerprint_covers_the_options(tmp_path: Path):
    made = [table(tmp_path / "a.csv"), table(tmp_path / "a.csv", drop=["age"]), table(tmp_path / "a.csv", seed=1)]
    assert len({dataset.fingerprint() for dataset in made}) == 3


GOOD = ["30,Rome,1.5,a", "31,Rome,1.6,b", "32,Rome,1.7,a", "33,Rome,1.8,b"]


@pytest.mark.parametrize(
    ("rows", "options", "said", "hint"),
    [
        (GOOD, {"target": "grad"}, "data.target: .* no column 'grad'", "'grade'"),
        (GOOD, {"features": ["hight"]}, "data.features: .* no column 'hight'", "'height'"),
        (GOOD, {"drop": ["x"]}, "data.drop: .* no column 'x'", "age"),
        (GOOD, {"categorical": ["cities"]}, "data.categorical: .* no column 'cities'", "'city'"),
        (GOOD, {"features": ["city"], "drop": ["city"]}, "no features left", "data.features"),
        (GOOD, {"features": ["age", "grade"]}, "data.features names 'grade', which is data.target", "never a feature"),
        (GOOD, {"drop": ["grade"]}, "data.drop names 'grade', which is data.target", "never a feature"),
        (GOOD, {"categorical": ["city", "grade"]}, "data.categorical names 'grade'", "never a feature"),
        (GOOD, {"features": ["age", "age"]}, "data.features names the column 'age' twice", "once"),
        (GOOD, {"target": "grad", "categorical": []}, "data.target: .* no column 'grad'", "'grade'"),
        (GOOD, {"categorical": []}, r"line 2, column 'city': 'Rome' is no number \(so in 4 of 4", "data.categorical"),
        ([*GOOD, "nan,Rome,1,a"], {}, "line 6, column 'age': 'nan' is no number", "data.drop"),
        ([*GOOD, "1e99,Rome,1,a"], {}, "line 6, column 'age': '1e99' is no number", "data.drop"),
        ([*GOOD, ",Rome,1,a"], {}, "line 6, column 'age': a cell is empty", "Fill it in"),
        ([*GOOD, "1,,1,a"], {}, "line 6, column 'city': a cell is empty", "Fill it in"),
        ([*GOOD, "1,Rome,1,"], {}, "line 6, column 'grade': a cell is empty", "Fill it in"),
        ([*GOOD, "1,Rome,1"], {}, "line 6 has 3 cells, the header 4", "separated by ','"),
        (GOOD[::2], {}, "have the class 'a'", "data.target is 'grade'"),
        ([], {}, "no rows below a header", "csv"),
        ([*GOOD, '1,"Rome,1,a', "2,Rome,1,a", "3,Rome,1,b"], {}, "line 6: unexpected end", "quotes"),
        ([*GOOD, "1_000,Rome,1,a"], {}, "line 6, column 'age': '1_000' is no number", "data.drop"),
        (
            [f"{1.7e12 + i},Rome,1,{'ab'[i % 2]}" for i in range(9)],
            {},
            "column 'age': its values .* less than a model",
            "Shift or scale",
        ),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path: Path, rows, options, said, hint):
    dataset = table(tmp_path / "a.csv", rows)
    wrong = Dataset(**{"path": str(dataset.path), "target": "grade", "categorical": ["city"], **options})
    with pytest.raises(QDeployError, match=said) as error:
        wrong.split("train")
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "has no file"),
        ({"path": "nowhere.csv", "target": "x"}, "no file nowhere.csv"),
        ({"path": "a.csv"}, "has no target"),
        ({"path": "a.csv.xz", "target": "grade"}, "cannot be read"),
        ({"path": "latin.csv", "target": "grade"}, "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options, said):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "a.csv")
    Path("a.csv.xz").write_bytes(b"not xz")
    Path("latin.csv").write_bytes("grade,x\né,1\n".encode("latin-1"))
    with pytest.raises(QDeployError, match=said):
        Dataset(**options).split("train")


def test_a_column_twice(tmp_path: Path):
    with pytest.raises(QDeployError, match="column 'age' twice"):
        table(tmp_path / "a.csv", GOOD, header="age,city,age,grade").split("train")


def test_a_separator_of_several_characters():
    with pytest.raises(QDeployError, match=r"data.separator is ';;'"):
        Dataset(separator=";;")


def test_rows_without_a_cell_are_left_out(tmp_path: Path):
    plain = table(tmp_path / "a.csv", [*GOOD, *GOOD])
    other = table(tmp_path / "b.csv", [*GOOD, "", ",,,", " , ,,", *GOOD])
    assert np.array_equal(plain._arrays[0], other._arrays[0])


@pytest.mark.parametrize(
    ("text", "separator", "cells"),
    [
        ('"height;cm;x","weight;kg;y",grade\n1,2,a\n', ",", 3),
        ("p|a|b,q|c,grade\n1,2,a\n", ",", 3),
        ('"a\nx";b;grade\n1;2;a\n', ";", 3),
        (",,\n\na;b;grade\n1;2;a\n", ";", 3),
        ("a,b;c,d;e\n1,5;2,5;x\n", ",", 3),
        ("a b;c;e\n1,5;2,5;x\n", ";", 3),
        ("grade\n1\n", ",", 1),
    ],
)
def test_separators_within_names(tmp_path: Path, text: str, separator: str, cells: int):
    (tmp_path / "a.csv").write_text(text)
    assert csv_module._separator(text) == separator
    assert len(Dataset(path=str(tmp_path / "a.csv"), target="grade")._header) == cells


def test_unnamed_columns_that_nobody_reads(tmp_path: Path):
    rows = [f"{i},{i}.5,{'ab'[i % 2]},," for i in range(20)]
    header = "age,height,grade,,"
    assert table(tmp_path / "a.csv", rows, header, drop=[""], categorical=[]).columns == ["age", "height"]
    assert table(tmp_path / "a.csv", rows, header, features=["age"], categorical=[]).columns == ["age"]


def test_one_number_written_in_several_ways_is_one(tmp_path: Path):
    rows = [f"{('0.3', '0.30000000000000004')[i % 2]},Rome,{i},{'ab'[i % 2]}" for i in range(20)]
    dataset = table(tmp_path / "a.csv", rows)
    assert not preprocess(dataset.split("train")[0], dataset.preprocessing)[:, 0].any()


def test_numbers_that_float32_rounds_a_little(tmp_path: Path):
    rows = [f"{1e9 + 1000 * i},Rome,0.1234567890123,{'ab'[i % 2]}" for i in range(20)]
    assert table(tmp_path / "a.csv", rows).split("train")[0].shape[1] == 3


def test_a_column_without_a_name(tmp_path: Path):
    rows = [f"{i},30,Rome,{i}.5,{'ab'[i % 2]}" for i in range(20)]
    with pytest.raises(QDeployError, match="column 1 has no name") as error:
        table(tmp_path / "a.csv", rows, header=f",{HEADER}").split("train")
    assert "data.drop=['']" in error.value.hint
    dropped = table(tmp_path / "a.csv", rows, header=f",{HEADER}", drop=[""])
    assert dropped.columns == ["age", "city=Rome", "height"]


@pytest.mark.parametrize("separator", ['"', "\n", "\r", ";;", ""])
def test_separators_that_are_none(separator: str):
    with pytest.raises(QDeployError, match=r"data\.separator is"):
        Dataset(path="a.csv", target="grade", separator=separator)


def test_a_folder_is_no_table(tmp_path: Path):
    with pytest.raises(QDeployError, match="is a folder"):
        Dataset(path=str(tmp_path), target="grade").split("train")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(tmp_path: Path, separator: str):
    rows = ["a, b,grade", "1,2,x", "2,3,y", "3,4,x", "4,5,y"]
    (tmp_path / "a.csv").write_text("\n".join(row.replace(",", separator) for row in rows))
    found = Dataset(path=str(tmp_path / "a.csv"), target="grade", calibration=1)
    assert found.columns == ["a", "b"]
    assert found._table == Dataset(path=str(found.path), target="grade", separator=separator)._table


def test_cells_of_other_separators_are_cells(tmp_path: Path):
    (tmp_path / "a.csv").write_text('mark,grade\n";",yes\n"|","no"\n";","|"\n,\n1,yes\n')
    found = Dataset(path=str(tmp_path / "a.csv"), target="grade", separator=",")
    assert [row for _, row in found._table[1]] == [[";", "yes"], ["|", "no"], [";", "|"], ["1", "yes"]]
