"""docs/architecture.md agrees with the code where the two can be compared."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from qdeploy.bundle import archive
from qdeploy.core import plugins


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_kinds_of_plugins(page: str) -> None:
    rows = re.findall(r"^\| ([a-z ]+) \| (qdeploy/\S+) \| `(\w+)` \|$", page, re.MULTILINE)
    assert rows == [(k.label, k.package.replace(".", "/"), k.symbol) for k in plugins.KINDS.values()]


def test_the_layers(page: str, repository: Path) -> None:
    contracts = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    shown = page.split("## Layers")[1].split("- `core`")[0]
    drawn = [line.split("   ")[0].strip() for line in (line[4:] for line in shown.splitlines() if line[:4] == "    ")]
    assert drawn == [layer.replace("qdeploy.", "") for layer in layers]


def test_the_files_of_a_bundle(page: str) -> None:
    shown = re.findall(r"^\| (\S+\.\w+) \|", page.split("## The bundle")[1], re.MULTILINE)
    assert sorted(shown) == sorted(archive.MEMBERS)


def test_files_and_folders_that_it_names_exist(page: str, repository: Path) -> None:
    """`quant/fusion_table.py` and the like, relative to the package."""
    named = set(re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?)`", page))
    assert {"quant/fusion_table.py", "bundle/manifest.py", "core/records.py"} <= named
    missing = [
        name for name in named if not (repository / "qdeploy" / name).exists() and not (repository / name).exists()
    ]
    assert not missing
