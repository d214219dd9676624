"""Results pages say what their JSON says, and nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def publish() -> ModuleType:
    spec = importlib.util.spec_from_file_location("publish", ROOT / "benchmarks" / "publish.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_made_from_its_json(publish: ModuleType) -> None:
    pages = publish.pages()
    assert len(pages) > 1
    stale = [path.name for path, content in pages.items() if path.read_text(encoding="utf-8") != content]
    assert not stale, "run python benchmarks/publish.py --only-page"


def test_no_page_without_json() -> None:
    pages = (ROOT / "docs" / "results").glob("*.md")
    assert not [page.name for page in pages if not page.with_suffix(".json").is_file()]
