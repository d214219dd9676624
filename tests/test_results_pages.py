"""Results pages say what their JSON says, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest

from qdeploy.core import records
from tests.reports import sample

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def made() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_pages", ROOT / "benchmarks" / "results_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(made: ModuleType) -> dict[Path, str]:
    return made.every_page(PAGES, ROOT / "README.md")


def test_every_page_is_made_from_its_json(pages: dict[Path, str]) -> None:
    assert len(pages) > 1
    stale = [path.name for path, content in pages.items() if path.read_text(encoding="utf-8") != content]
    assert not stale, "run python benchmarks/publish.py --only-page"


def test_no_page_or_picture_without_json(pages: dict[Path, str]) -> None:
    files = {*PAGES.glob("*.md"), *PAGES.glob("*.svg")}
    strays = files - set(pages) - {path.with_suffix(".md") for path in PAGES.glob("*.json")}
    assert not [path.name for path in strays]


def test_every_picture_is_an_image_of_its_own(pages: dict[Path, str]) -> None:
    drawings = {path: text for path, text in pages.items() if path.suffix == ".svg"}
    assert drawings
    for path, text in drawings.items():
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg", path
        assert "prefers-color-scheme: dark" in text
        assert f"]({path.name} " in pages[path.with_name(path.name.partition(".")[0] + ".md")]


def test_the_index_names_every_page(pages: dict[Path, str]) -> None:
    for path in PAGES.glob("*.json"):
        assert f"]({path.stem}.md)" in pages[PAGES / "README.md"]


def one(results: records.Results, **more: object) -> dict[str, object]:
    return {"commands": ["qdeploy build x"], "build_seconds": 61.0, "results": records.to_json(results), **more}


def page_of(made: ModuleType, tmp_path: Path, data: dict[str, object]) -> str:
    (tmp_path / "x.json").write_text(json.dumps(data))
    (tmp_path / "README").write_text("")
    return made.every_page(tmp_path, tmp_path / "README")[tmp_path / "x.md"]


def test_a_page_compares_with_the_reference_that_is_its_data(made: ModuleType, tmp_path: Path) -> None:
    rows = [
        {"what": "compression", "variant": "ptq-int8", "fact": "compression", "reference": 3.77},
        {"what": "speed-up", "variant": "ptq-int8", "fact": "speedup", "reference": 2.15},
        {"what": "loss", "variant": "gptq-int4", "fact": "drop_points", "reference": 0.1},
    ]
    reference = {"source": "a table of theirs", "rows": rows}
    text = page_of(made, tmp_path, one(sample.full(), reference=reference, title="A title"))
    assert text.startswith("# A title\n")
    assert "| compression | 3.77x | 3.75x | worse |" in text
    assert "| speed-up | 2.15x | 2.16x [2.09, 2.22] | better by value, within the interval |" in text
    assert "| loss | 0.10 points | 0.82 points [0.53, 1.13] | worse |" in text
    assert "Reference: a table of theirs" in text
    assert "The build took 1 min 1 s." in text


def test_several_models_stand_beside_each_other_by_width(made: ModuleType, tmp_path: Path) -> None:
    parts = [
        {"part": "lstm", **one(sample.quantizers("imdb", ("lsq", "pact"), refused=("apot",)))},
        {"part": "cnn", **one(sample.quantizers("digits", ("lsq",)))},
    ]
    text = page_of(made, tmp_path, {"parts": parts})
    head, _, rest = text.partition("## 4 bits")
    assert "## 8 bits" in head
    table = rest.partition("## lstm")[0]
    assert "- At 4 bits the largest loss is 1.11% of the metric [0.79, 1.46] (lstm, qat lsq); " in head
    assert "| no quantization | 90.00% [" in table
    assert "| qat apot | not representable | not run |" in table
    assert "| qat pact | 89.00% [88.39, 89.61] | not run |" in table
    assert "| qat lsq | 98.89% [98.54, 99.21] | 98.89% [98.54, 99.21] |" in table  # 89 of 90 points
    assert "lstm, qat-apot-4: APoT weights have no such levels" in table


def test_one_model_in_several_sizes_gets_a_law(made: ModuleType, tmp_path: Path) -> None:
    parts = [{"part": f"x{n}", **one(sample.sized(n))} for n in (1, 2, 4)]
    text = page_of(made, tmp_path, {"parts": parts})
    assert "## Loss against bits and parameters" in text
    assert "over 12 points, 9 of them measurable losses; the largest deviation is " in text
    assert "](x.scaling.1.svg " in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a recipe or a page"),
        (["--page", "absent", "--title", "a"], "nothing to put on the page 'absent'"),
        (["--page", "../escaped", "--title", "a"], "a page is a plain name"),
        (["--only-page", "--title", "a"], "give nothing else"),
        (["recipes/digits.yaml", "--page", "qat_eval"], "has parts: name one"),
        (["recipes/digits.yaml", "--part", "a"], "has one result"),
        (["recipes/digits.yaml", "--threads", "many"], "numbers, 1 or more"),
        (["--page", "digits", "--reference", "reference.json"], "The reference names part 'absent'"),
    ],
)
def test_publishing_says_what_is_wrong_before_it_works(tmp_path: Path, words: list[str], said: str) -> None:
    """And leaves all pages as they are: those of a copy."""
    for part in ("benchmarks", "docs/results"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    row = {"what": "a", "part": "absent", "variant": "b", "fact": "size_bytes", "reference": 1}
    (tmp_path / "reference.json").write_text(json.dumps({"source": "somebody", "rows": [row]}))
    before = {path: path.read_bytes() for path in (tmp_path / "docs").rglob("*.*")}
    command = [sys.executable, "benchmarks/publish.py", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "docs").rglob("*.*")} == before
