from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qdeploy import runner
from qdeploy.core.errors import QDeployError
from qdeploy.runtimes.onnxruntime import Runtime, optimized_graph
from tests.bundles import float_model, integer_model


def operators(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(model).graph.node]


def test_the_optimized_graph_is_the_one_that_runs():
    """QDQ around Conv and Gemm becomes integer kernels; a float model has none."""
    integer, floating = operators(optimized_graph(integer_model())), operators(optimized_graph(float_model()))
    assert {"QLinearConv", "QGemm"} <= set(integer)
    assert not {"Conv", "Gemm", "FusedConv"} & set(integer)
    assert not any(op.startswith("Q") for op in floating)


def test_an_unknown_provider_names_what_is_there():
    with pytest.raises(QDeployError, match="no provider 'CUDAExecutionProvidr'") as caught:
        Runtime(float_model(), provider="CUDAExecutionProvidr")
    assert "CPU" in caught.value.hint


def test_a_provider_that_fell_back_to_the_cpu_is_an_error(monkeypatch):
    # onnxruntime lists what it was built with, not what the machine has: this one it cannot start here.
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(QDeployError, match="fell back"):
        Runtime(float_model(), provider="cuda", threads=1)


@pytest.mark.skipif("AzureExecutionProvider" not in ort.get_available_providers(), reason="no such provider here")
def test_a_provider_that_runs_no_layer_is_an_error():
    """Azure's is in every wheel, starts, and leaves the whole model to the CPU without a word."""
    feeds = {"input": np.zeros((2, 1, 8, 8), np.float32)}
    assert runner.make_session(float_model(), 1, provider="Azure").get_providers()[0] == "AzureExecutionProvider"
    with pytest.raises(runner.RunnerError, match="could not use AzureExecutionProvider and fell back"):
        runner.require_provider(float_model(), "Azure", feeds)
    runner.require_provider(float_model(), "CPU", feeds)


def test_describe_and_chosen_outputs():
    runtime = Runtime(integer_model(), threads=1, options={"session.x64quantprecision": "1"})
    assert runtime.describe() == f"onnxruntime {ort.__version__} (CPUExecutionProvider)"
    feeds = {"input": np.zeros((2, 1, 8, 8), np.float32)}
    assert runtime.run(feeds, ["output"])["output"].shape == (2, 10)


def test_inputs_need_not_be_contiguous():
    runtime = Runtime(float_model(), threads=1)
    wide = np.random.default_rng(0).uniform(0, 1, (2, 1, 8, 16)).astype(np.float32)
    strided = runtime.run({"input": wide[..., ::2]})["output"]
    assert np.array_equal(strided, runtime.run({"input": np.ascontiguousarray(wide[..., ::2])})["output"])


def test_the_runner_stays_the_only_maker_of_session_options():
    assert Runtime.worker.read_text(encoding="utf-8").count("ort.SessionOptions()") == 1
