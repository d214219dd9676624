"""Builds of models whose activations are quantized at run time, from a recipe to bundles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qdeploy import pipeline, runner
from qdeploy.core.errors import QDeployError
from qdeploy.core.records import Results
from qdeploy.recipe.load import load

MODELS = '''
from torch import nn


class Rows(nn.Module):
    """Reads a digit row by row."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 16, 2, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        return self.fc(self.lstm(x[:, 0])[0][:, -1])


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x):
        return self.layers(x)
'''
RECIPE = """
name: {name}
model: {{factory: "{file}:{model}"}}
data: {{name: digits, calibration: 64}}
train: {{epochs: {epochs}, lr: 0.01}}
variants:
  fp32: {{}}
"""
LSTM = """
  int8: {method: ptq}
  gptq4: {method: ptq, weights: {bits: 4}, rounding: gptq, first_last_bits: null}
  lsq4: {method: qat, fake_quant: lsq, weights: {bits: 4}, activations: {bits: 4}, train: {epochs: 1}}
  pact4: {method: qat, fake_quant: pact, weights: {bits: 4}, activations: {bits: 4}, train: {epochs: 1}}
"""
DYNAMIC = "\n  dynamic: {method: ptq, activations: {range: dynamic}}\n"


def recipe(folder: Path, model: str, variants: str, epochs: int) -> Path:
    (folder / "models.py").write_text(MODELS)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(name=model.lower(), file=folder / "models.py", model=model, epochs=epochs) + variants)
    return path


@pytest.fixture(scope="module")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("rows")
    return pipeline.build(load(recipe(folder, "Rows", LSTM, 5)), folder / "out", measure=False), folder / "out"


@pytest.mark.slow
def test_lstm_classifiers_keep_their_accuracy_in_integer_kernels(lstm):
    results, _ = lstm
    found = {variant.name: variant for variant in results.variants}
    assert set(found) == {"fp32", "int8", "gptq4", "lsq4"}
    for name, kept, bits in (("int8", 0.02, [8, 8]), ("gptq4", 0.06, [4, 4]), ("lsq4", 0.06, [8, 4])):
        variant = found[name]
        assert variant.metric.value > found["fp32"].metric.value - kept, name
        assert variant.integer_mac_share == 1
        layers = [layer for layer in variant.layers if layer.op == "DynamicQuantizeLSTM"]
        assert [layer.weight_bits for layer in layers] == bits
        assert [layer.activation_bits for layer in layers] == [None, None]
    assert found["gptq4"].size_bytes < found["int8"].size_bytes < found["fp32"].size_bytes


@pytest.mark.slow
def test_a_method_of_ranges_is_said_to_be_not_applicable(lstm):
    (refusal,) = lstm[0].refusals
    assert (refusal.name, refusal.kind) == ("pact4", "not applicable")
    assert "'lstm.1'" in refusal.reason


@pytest.mark.slow
def test_a_bundle_of_an_lstm_checks_and_answers_one_sample_at_a_time(lstm):
    bundle = runner.read_bundle(lstm[1] / "int8.qdeploy.zip")
    assert runner.selftest(bundle, threads=2)["passed"]
    session, _ = runner.open_bundle(bundle, 2)
    sizes: list[int] = []

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sizes.append(len(next(iter(feeds.values()))))
        return runner.run_session(session, feeds)

    outputs = runner.run_batched(run, bundle["manifest"], runner.golden_feeds(bundle))
    assert sizes == [1] * 8
    np.testing.assert_array_equal(outputs["output"], bundle["golden"]["output.output"])


def test_a_linear_model_with_ranges_of_the_call_needs_no_calibrated_ones(tmp_path):
    results = pipeline.build(load(recipe(tmp_path, "MLP", DYNAMIC, 4)), tmp_path / "out", measure=False)
    floating, dynamic = results.variants
    assert dynamic.metric.value > floating.metric.value - 0.02
    assert [layer.kernel for layer in dynamic.layers] == ["DynamicQuantizeMatMul"] * 2
    assert dynamic.integer_mac_share == 1
    assert runner.selftest(tmp_path / "out" / "dynamic.qdeploy.zip")["passed"]


@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        ("{method: qat, activations: {range: dynamic}}", "trains ranges"),
        ("{method: ptq, activations: {range: dynamic, observer: mse}}", "activations.observer"),
        ("{method: ptq, activations: {range: dynamic}, learn_ranges: true}", "no ranges to learn"),
    ],
)
def test_what_ranges_at_run_time_cannot_be_combined_with(tmp_path, variant, complaint):
    with pytest.raises(QDeployError, match=complaint):
        load(recipe(tmp_path, "MLP", f"\n  a: {variant}\n", 1))
