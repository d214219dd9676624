"""What every logger promises, whatever it is: a new one is tested here by lying in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdeploy.core import plugins
from qdeploy.core.errors import QDeployError
from qdeploy.loggers._base import Log, Run
from tests.mlflow_server import require_mlflow

NEEDS = {"mlflow": require_mlflow}  # what has to be installed first
RUN = Run(
    name="a build",
    parameters={"train.lr": "0.001", "long": "x" * 5000, "odd (key)": "", **{f"p{i}": str(i) for i in range(120)}},
    metrics={"top1": 0.5},
    curves={"train_loss": [2.0, 1.0, 0.5]},
    tags={"machine.cpu": "a CPU @ 2 GHz"},
    texts={"a.json": "{}"},
    children=(Run(name="fp32"), Run(name="int8", metrics={"top1": 0.25})),
)


@pytest.fixture(params=plugins.names("logger"))
def logger(request):
    """The plugin's class."""
    NEEDS.get(request.param, lambda: None)()
    return plugins.load("logger", request.param)


def test_it_keeps_runs_in_a_folder_and_says_where(logger, tmp_path: Path):
    log = logger(str(tmp_path / "kept"))
    assert isinstance(log, Log)
    (tmp_path / "file.bin").write_bytes(b"\0\1")
    run = Run(name="a build", files=(tmp_path / "file.bin",), children=(RUN,))
    first, second = log.write("project", run), log.write("project", run)
    assert str(tmp_path / "kept") in first
    assert first != second  # nothing is overwritten
    kept = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert len([path for path in kept if path.read_bytes() == b"\0\1"]) == 2


def test_a_place_that_cannot_be_is_told_when_it_is_opened(logger, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(QDeployError) as caught:
        logger(str(tmp_path / "file" / "below"))
    assert caught.value.hint


def test_what_cannot_be_kept_is_one_error(logger, tmp_path: Path):
    log = logger(str(tmp_path / "kept"))
    with pytest.raises(QDeployError, match="a build") as caught:
        log.write("project", Run(name="a build", files=(tmp_path / "missing",)))
    assert caught.value.hint
