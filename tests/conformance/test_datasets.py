"""Every data set keeps the contract: the folder is the list."""

from __future__ import annotations

import contextlib
import inspect
import subprocess
import sys

import numpy as np
import pytest

from qdeploy.core import plugins
from qdeploy.datasets._base import SPLITS, CommonOptions
from qdeploy.recipe.signature import check_arguments
from qdeploy.runner import preprocess
from qdeploy.train.losses import LOSSES

NAMES = plugins.names("dataset")
SLOW = {"cifar100"}  # writing what it reads takes 20 seconds
READ = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES]


@pytest.fixture
def dataset(request: pytest.FixtureRequest):
    """The data set on real data: where it has files or options that it cannot do without, fixtures name them."""
    options = {}
    with contextlib.suppress(pytest.FixtureLookupError):
        options["root"] = str(request.getfixturevalue(f"{request.param}_root"))
    with contextlib.suppress(pytest.FixtureLookupError):
        options |= request.getfixturevalue(f"{request.param}_options")
    return lambda **more: plugins.load("dataset", request.param)(download=False, calibration=64, **options, **more)


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_the_common_options(name):
    make = plugins.load("dataset", name)
    options = dict.fromkeys(CommonOptions.__annotations__)
    assert not [p for p in check_arguments(make, options, ("data",)) if "unknown" in p.message]
    assert check_arguments(make, {"no_such_option": 1}, ("data",))
    parameters = inspect.signature(make).parameters.values()
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in named)


@pytest.mark.parametrize("dataset", READ, indirect=True)
def test_it_says_what_it_is(dataset):
    made = dataset()
    name = made.name
    assert name in NAMES
    assert made.metric in plugins.names("metric")
    assert len(set(made.classes)) == len(made.classes)
    assert plugins.summary("dataset", name).endswith(".")


@pytest.mark.parametrize("dataset", READ, indirect=True)
def test_splits_are_what_it_says_and_fit_its_preprocessing(dataset):
    dataset = dataset()
    for name in SPLITS:
        raw, targets = dataset.split(name)
        shapes = dataset.raw_shape, dataset.target_shape
        if name != "evaluation":
            shapes = dataset.training_shapes or shapes
        assert (raw.shape[1:], targets.shape[1:]) == shapes
        assert (str(raw.dtype), str(targets.dtype)) == (dataset.raw_dtype, dataset.target_dtype)
        assert len(raw) == len(targets) > 0
        if dataset.classes:
            assert set(np.unique(targets)) <= set(range(len(dataset.classes)))
    assert len(dataset.split("calibration")[0]) == 64
    made = preprocess(dataset.split("calibration")[0], dataset.preprocessing)
    assert made.dtype in (np.float32, np.int64)  # numbers, or the indices that an embedding takes
    assert np.isfinite(made).all()
    assert dataset.task in LOSSES


@pytest.mark.parametrize("dataset", READ, indirect=True)
def test_its_fingerprint_is_stable_and_reads_no_split(dataset):
    first, again = dataset(), dataset()
    assert first.fingerprint() == again.fingerprint()
    assert not first.accessed


@pytest.mark.parametrize("dataset", READ, indirect=True)
def test_a_cut_of_the_training_part_is_a_part_of_it(dataset):
    def samples(made):
        parts = [made.split(name) for name in ("train", "validation")]
        return [(x.tobytes(), y.tobytes()) for raw, targets in parts for x, y in zip(raw, targets, strict=True)]

    few, everything = samples(dataset(train_samples=100)), set(samples(dataset()))
    assert len(few) == 100
    assert set(few) <= everything


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
