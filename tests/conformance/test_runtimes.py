"""What every runtime promises, whatever it is: a new one is tested here by lying in its folder."""

from __future__ import annotations

import numpy as np
import pytest

from qdeploy import runner
from qdeploy.core import plugins
from qdeploy.core.errors import QDeployError
from qdeploy.targets.local import Target
from tests.bundles import float_model, integer_model, write_bundle
from tests.node import require_onnxruntime_web

FEED = {"input": np.random.default_rng(0).uniform(0, 1, (3, 1, 8, 8)).astype(np.float32)}
NEEDS = {"ort_web": require_onnxruntime_web}  # what has to be fetched first, beside what pip installs


@pytest.fixture(params=plugins.names("runtime"))
def name(request):
    """The plugin's name."""
    NEEDS.get(request.param, lambda: None)()
    return request.param


@pytest.fixture
def runtime(name):
    """The plugin's class."""
    return plugins.load("runtime", name)


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


def test_an_answer_does_not_depend_on_the_calls_before_or_on_the_threads(runtime):
    loaded = runtime(integer_model(), threads=2)
    first, given = loaded.run(FEED)["output"], FEED["input"].copy()
    kept = first.copy()
    other = loaded.run({"input": 1 - FEED["input"]})["output"]
    one = loaded.run({"input": FEED["input"][:1]})["output"]
    assert np.array_equal(first, kept)  # no answer is overwritten by a later one
    assert np.array_equal(FEED["input"], given)
    assert np.array_equal(one, first[:1])
    assert not np.array_equal(other, first)
    assert np.array_equal(loaded.run(FEED)["output"], first)
    assert np.array_equal(runtime(integer_model(), threads=1).run(FEED)["output"], first)


def test_inputs_need_not_be_contiguous(runtime):
    loaded = runtime(float_model(), threads=1)
    wide = np.random.default_rng(0).uniform(0, 1, (2, 1, 8, 16)).astype(np.float32)
    strided = loaded.run({"input": wide[..., ::2]})["output"]
    assert np.array_equal(strided, loaded.run({"input": np.ascontiguousarray(wide[..., ::2])})["output"])


def test_it_says_what_it_is_and_what_pip_installs_for_it(runtime):
    name, version = runtime(float_model(), threads=1).describe().split()[:2]
    assert name
    assert version[0].isdigit()
    assert all(isinstance(package, str) for package in runtime.packages)


def test_wrong_calls_and_models_are_qdeploy_errors(runtime, tmp_path):
    loaded = runtime(float_model(), threads=1)
    for feeds, outputs in (({}, None), ({**FEED, "other": FEED["input"]}, None), (FEED, ["outpt"])):
        with pytest.raises(QDeployError):
            loaded.run(feeds, outputs)
    for wrong in (FEED["input"][:, :, :5], FEED["input"][0], FEED["input"].astype(np.int64)):
        with pytest.raises(QDeployError):
            loaded.run({"input": wrong})
    loaded.run(FEED)
    with pytest.raises(QDeployError):  # the same shape as before, and another type
        loaded.run({"input": FEED["input"].astype(np.float64)})
    assert loaded.run(FEED)["output"].shape == (3, 10)  # a refused call breaks nothing
    for model in (b"no model", tmp_path / "missing.onnx"):
        with pytest.raises(QDeployError):
            runtime(model, threads=1)


@pytest.mark.parametrize("arguments", [{"provider": "nonsense"}, {"threads": 0}, {"threads": 1_000_000}], ids=str)
def test_what_a_machine_has_not_is_refused(runtime, arguments):
    with pytest.raises(QDeployError) as caught:
        runtime(float_model(), **arguments)
    assert caught.value.hint


def test_a_worker_serves_a_bundle_in_it(runtime, name, tmp_path):
    path = write_bundle(tmp_path)
    bundle = runner.read_bundle(path)
    raw = {"input": bundle["golden"]["input.input"][:3]}
    expected = runtime(bundle["model"], threads=1).run(runner.make_feeds(bundle["manifest"], raw))
    with Target() as target, target.open(path, name="ptq-int8", runtime=name) as worker:
        loaded = worker.load(threads=1, batch=2)
        assert loaded["golden"]["samples"] == 2
        # A code of the input that another rounding of a tie moves by one step is seen in the outputs, and no more.
        assert loaded["golden"]["max_difference"] < 0.01 * np.ptp(bundle["golden"]["output.output"])
        assert loaded["runtime"].startswith(name.replace("ort_", "onnxruntime-"))
        assert worker.warm_up(limit_seconds=0.2)["call_seconds"] > 0
        times = worker.block(0.02)
        assert times
        assert all(isinstance(time, int) and time > 0 for time in times)
        answer = worker.predict(raw)
        assert np.array_equal(answer["output"].view(np.uint32), expected["output"].view(np.uint32))
        assert worker.finish() > 0


def test_a_worker_tells_what_is_wrong_with_its_runtime(name, tmp_path):
    with (
        Target().open(write_bundle(tmp_path), name="ptq-int8", runtime=name) as worker,
        pytest.raises(QDeployError, match=r"ptq-int8: .*nonsense"),
    ):
        worker.load(threads=1, batch=1, provider="nonsense")
