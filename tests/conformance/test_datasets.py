"""Every data set keeps the contract: the folder is the list."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qdeploy.core import plugins
from qdeploy.datasets._base import SPLITS
from qdeploy.runner import preprocess

NAMES = plugins.names("dataset")


@pytest.fixture
def dataset(request: pytest.FixtureRequest, torchvision_root: Path):
    return plugins.load("dataset", request.param)(root=str(torchvision_root), download=False, calibration=64)


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_the_common_options(name):
    parameters = inspect.signature(plugins.load("dataset", name)).parameters.values()
    assert {"root", "download", "seed", "validation", "calibration"} <= {p.name for p in parameters}
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name):
    made = plugins.load("dataset", name)()
    assert made.name == name
    assert made.metric in plugins.names("metric")
    assert len(set(made.classes)) == len(made.classes)
    assert plugins.summary("dataset", name).endswith(".")


@pytest.mark.parametrize("dataset", NAMES, indirect=True)
def test_splits_are_what_it_says_and_fit_its_preprocessing(dataset):
    for name in SPLITS:
        raw, targets = dataset.split(name)
        assert raw.shape[1:] == tuple(dataset.raw_shape)
        assert str(raw.dtype) == dataset.raw_dtype
        assert targets.dtype == np.int64
        assert len(raw) == len(targets) > 0
        assert set(np.unique(targets)) <= set(range(len(dataset.classes)))
    assert len(dataset.split("calibration")[0]) == 64
    made = preprocess(dataset.split("calibration")[0], dataset.preprocessing)
    assert made.dtype == np.float32
    assert np.isfinite(made).all()


@pytest.mark.parametrize("dataset", NAMES, indirect=True)
def test_its_fingerprint_is_stable_and_reads_no_split(dataset):
    again = type(dataset)(root=dataset.root, download=False, calibration=64)
    assert dataset.fingerprint() == again.fingerprint()
    assert not dataset.accessed


def test_importing_and_making_them_needs_no_torch():
    code = f"""
import sys
from qdeploy.core import plugins
for name in {NAMES}:
    plugins.load("dataset", name)()
heavy = sorted(set(sys.modules) & {{"torch", "torchvision", "sklearn"}})
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
