"""What every runtime promises, whatever it is: a new one is tested here by lying in its folder."""

from __future__ import annotations

import numpy as np
import pytest

from qdeploy import runner
from qdeploy.core import plugins
from qdeploy.core.errors import QDeployError
from tests.bundles import float_model, integer_model

FEED = {"input": np.random.default_rng(0).uniform(0, 1, (3, 1, 8, 8)).astype(np.float32)}


@pytest.fixture(params=plugins.names("runtime"))
def runtime(request):
    """The plugin's class."""
    return plugins.load("runtime", request.param)


@pytest.mark.parametrize("model", [float_model(), integer_model()], ids=["float32", "integer"])
def test_it_computes_what_the_model_says(runtime, model, tmp_path):
    expected = runner.make_session(model, 1).run(["output"], FEED)[0]
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    for source in (model, path):
        loaded = runtime(source, threads=1)
        assert (loaded.inputs, loaded.outputs) == (("input",), ("output",))
        result = loaded.run(FEED)
        assert list(result) == ["output"]
        np.testing.assert_allclose(result["output"], expected, atol=1e-4)
        assert result["output"].dtype == np.float32


def test_it_says_what_it_is(runtime):
    name, version = runtime(float_model(), threads=1).describe().split()[:2]
    assert name
    assert version[0].isdigit()


def test_wrong_calls_and_models_are_qdeploy_errors(runtime, tmp_path):
    loaded = runtime(float_model(), threads=1)
    for feeds, outputs in (({}, None), ({**FEED, "other": FEED["input"]}, None), (FEED, ["outpt"])):
        with pytest.raises(QDeployError):
            loaded.run(feeds, outputs)
    with pytest.raises(QDeployError):
        loaded.run({"input": FEED["input"][:, :, :5]})
    for model in (b"no model", tmp_path / "missing.onnx"):
        with pytest.raises(QDeployError):
            runtime(model, threads=1)
