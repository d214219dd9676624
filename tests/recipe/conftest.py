from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.recipe.load import load
from qdeploy.recipe.schema import Recipe

Load = Callable[..., Recipe]
Refused = Callable[..., str]

MODEL = """
from torch import nn

def net(width: int = 4, *, names: list[str] = ()):
    return nn.Linear(width, width)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models/net.py and recipes/, which is the working directory."""
    (tmp_path / "models").mkdir()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "models" / "net.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def read(project: Path) -> Load:
    """Write a recipe's text and load it."""

    def run(text: str, *overrides: str, only: tuple[str, ...] = (), **options: Any) -> Recipe:
        path = Path("recipes") / "mine.yaml"
        path.write_text(textwrap.dedent(text))
        return load(path, overrides, only, **options)

    return run


@pytest.fixture
def refused(read: Load) -> Refused:
    """What the one error says about a recipe that is wrong: its message and its hint."""

    def run(text: str, *overrides: str, only: tuple[str, ...] = (), **options: Any) -> str:
        with pytest.raises(QDeployError) as error:
            read(text, *overrides, only=only, **options)
        return str(error.value)

    return run


@pytest.fixture
def weights(project: Path) -> Path:
    """weights.pth in the working directory: what net() of models/net.py starts with, saved."""
    import torch

    from qdeploy.train.reference import load_model

    torch.save(load_model("models/net.py:net").state_dict(), "weights.pth")
    return Path("weights.pth")
