"""``qdeploy build``: what its options choose. What a build does is tested in tests/test_pipeline.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

from qdeploy.cli.main import app
from qdeploy.core import records
from qdeploy.core.records import Results
from qdeploy.train import checkpoint
from qdeploy.train.reference import load_model

RECIPE = """
name: mine
model: {factory: "models/simple_cnn.py:SimpleCNN", channels: 8}
data: {name: digits, calibration: 64}
train: {epochs: 9}
variants: {fp32: {}, int8: {method: ptq}}
profiles:
  fast: {data.evaluation_samples: 50}
"""


@pytest.fixture
def work(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: recipes/deep/mine.yaml, models/ and weights.safetensors of its model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "deep").mkdir(parents=True)
    (tmp_path / "recipes" / "deep" / "mine.yaml").write_text(RECIPE)
    (tmp_path / "models").symlink_to(repository / "models")
    model = load_model("models/simple_cnn.py:SimpleCNN", channels=8, seed=7)
    checkpoint.save(tmp_path / "weights.safetensors", model.state_dict())
    return tmp_path


def build(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["build", *arguments], env={"COLUMNS": "300"})


def test_a_name_a_profile_and_pretrained_weights(work: Path) -> None:
    options = ("deep/mine", "--from-pretrained", "weights.safetensors", "--only", "fp32", "--no-bench")
    done = build(*options, "--profile", "fast")
    assert done.exit_code == 0, done.output
    assert [path.name for path in (work / "runs").iterdir()] == ["mine-fast"]
    results = records.load(Results, work / "runs" / "mine-fast" / "results.json")
    assert (results.name, results.profile) == ("mine", "fast")
    assert results.variants[0].metric.samples == 50
    given = safetensors.numpy.load_file("weights.safetensors")
    used = safetensors.numpy.load_file("runs/mine-fast/checkpoint.safetensors")
    assert set(used) == set(given)
    assert all(np.array_equal(used[name], given[name]) for name in given)  # nothing was trained
    assert "Nothing to do." in build(*options, "--profile", "fast", "--plan").output
    assert "4 stages to run." in build(*options, "--plan").output  # without the profile nothing has been built


def test_wrong_names_suggest_the_nearest_and_start_nothing(work: Path) -> None:
    for arguments, said in (
        (("deep/mien",), "'deep/mine'"),
        (("recipes/deep/mien.yaml",), "recipes/deep/mine.yaml"),
        (("deep/mine", "--profile", "fats"), "'fast'"),
        (("deep/mine", "--from-pretrained", "weights.safetensor"), "weights.safetensor"),
        (("deep/mine", "--from-pretrained", "weights.safetensors", "--set", "model.channels=16"), "does not fit"),
        (("deep/mine", "--log", "mflow"), "'mlflow'"),
        (("deep/mine", "--out", ""), "it is empty"),
        (("deep/mine", "--from-pretrained", "."), "is a folder"),
    ):
        done = build(*arguments)
        assert done.exit_code == 2, done.output
        assert said in done.output
    assert not (work / "runs").exists()
