"""What is measured before an artifact ships, and the artifacts that must not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qdeploy import runner
from qdeploy.core.errors import QDeployError
from qdeploy.export import artifact
from qdeploy.export.artifact import Artifact
from qdeploy.metrics.top1 import Metric
from qdeploy.runtimes.onnxruntime import Runtime
from qdeploy.verify import prove as prove_module
from qdeploy.verify.prove import Proof, layer_records, prove
from tests.networks import Net, conv

STEPS = [{"op": "scale", "factor": 1 / 255}, {"op": "layout", "from": "HWC", "to": "CHW"}]
RAW = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 3)).astype(np.uint8)
TARGETS = np.random.default_rng(1).integers(0, 4, 90)
INPUTS = torch.from_numpy((RAW * np.float32(1 / 255)).transpose(0, 3, 1, 2).copy())


def classifier(activation=F.relu) -> nn.Module:
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.fc(F.max_pool2d(activation(m.b(activation(m.a(x))) + m.c(x)), 2).mean((2, 3))),
        a=conv(3), b=conv(), c=conv(3, 8, 1), fc=nn.Linear(8, 4),
    )  # fmt: skip
    return net.eval()


def made(net: nn.Module) -> tuple[Artifact, Artifact]:
    batches = artifact.batches_of(INPUTS.numpy(), 32)
    return artifact.float32(net, INPUTS[:2]), artifact.quantized(net, INPUTS[:2], batches)


@pytest.fixture(scope="module")
def artifacts() -> tuple[Artifact, Artifact]:
    return made(classifier())


@pytest.fixture(scope="module")
def proof(artifacts) -> Proof:
    floating, quantized = artifacts
    return prove(quantized.model, RAW, TARGETS, preprocessing=STEPS, metric=Metric(), float_model=floating.model)


def test_what_is_proven(proof):
    assert proof.coverage.integer_mac_share == 1
    assert proof.parity.samples == 64
    assert proof.parity.differing_codes == 0
    assert proof.evaluation.metric.samples == 90
    assert len(proof.evaluation.decisions) == 90


def test_golden_vectors_are_raw_samples_and_the_artifacts_answers(proof, artifacts):
    assert set(proof.golden) == {"input.x", "output.output"}
    np.testing.assert_array_equal(proof.golden["input.x"], RAW[:8])
    answer = Runtime(artifacts[1].model).run({"x": INPUTS[:8].numpy()})["output"]
    np.testing.assert_array_equal(proof.golden["output.output"], answer)
    assert (proof.comparison, proof.tolerance) == ("exact", 0.0)


def test_answers_with_floats_in_them_are_compared_with_a_tolerance(artifacts):
    floating = prove(artifacts[0].model, RAW, TARGETS, preprocessing=STEPS, metric=Metric())
    assert floating.comparison == "close"
    assert 0 < floating.tolerance < 0.01 * np.abs(floating.golden["output.output"]).max()
    assert floating.parity.layers == ()
    _, island = made(classifier(F.silu))
    mixed = prove(island.model, RAW, TARGETS, preprocessing=STEPS, metric=Metric(), samples=8)
    assert mixed.comparison == "close"
    assert mixed.coverage.integer_mac_share == 1
    assert mixed.parity.samples == 8


def test_records_name_every_layer_in_order(proof, artifacts):
    quantized = artifacts[1]
    records = layer_records(
        proof, weights=quantized.weights, activations=quantized.activations, float_reasons=quantized.float_reasons
    )
    assert [(r.name, r.op, r.kernel) for r in records] == [
        ("a", "Conv", "QLinearConv"), ("b", "Conv", "QLinearConv"), ("c", "Conv", "QLinearConv"),
        ("add", "Add", "QLinearAdd"), ("max_pool2d", "MaxPool", "NhwcMaxPool"),
        ("mean", "GlobalAveragePool", "QLinearGlobalAveragePool"), ("fc", "Gemm", "QGemm"),
    ]  # fmt: skip
    by_name = {record.name: record for record in records}
    assert all(record.integer and not record.reason for record in records)
    assert by_name["a"].macs == 8 * 64 * 27
    assert by_name["add"].macs == 0
    for record in records:
        assert record.differing_codes == 0
        assert record.outputs_checked > 0
        assert record.sqnr_db > 15
    for name in ("a", "b", "c", "fc"):
        assert by_name[name].weight_bits == 8
        assert sum(by_name[name].weights.counts) == {"a": 216, "b": 576, "c": 24, "fc": 32}[name]
        assert by_name[name].weights.range_high == pytest.approx(-by_name[name].weights.range_low)
    assert by_name["a"].activation_bits == 8
    assert by_name["a"].activations.range_low == 0
    assert by_name["fc"].activation_bits is None


def test_records_say_why_a_layer_is_float32():
    layers = {"a": conv(3), "up": nn.ConvTranspose2d(8, 8, 1), "b": conv()}
    net = Net(lambda m, x: m.b(m.up(m.a(x))).mean((2, 3)), **layers)
    _, quantized = made(net)
    found = prove(quantized.model, RAW, TARGETS, preprocessing=STEPS, metric=Metric(), samples=8)
    records = {
        record.name: record
        for record in layer_records(
            found, weights=quantized.weights, activations=quantized.activations, float_reasons=quantized.float_reasons
        )
    }
    assert not records["up"].integer
    assert "no integer transposed convolution" in records["up"].reason
    assert records["a"].integer


def wrong(proof: Proof, op: str, **change) -> Proof:
    layers = tuple(replace(layer, **change) if layer.op == op else layer for layer in proof.parity.layers)
    return replace(proof.parity, layers=layers)


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        ("Conv", {"differing_codes": 3, "max_step": 1}, r"Layer 'a': 3 of \d+ output codes .* differ"),
        ("Gemm", {"differing_codes": 1, "max_step": 0}, "Layer 'fc': 1 of"),
        ("GlobalAveragePool", {"differing_codes": 1, "max_step": 2}, "Layer 'mean'.*by 2 steps"),
    ],
)
def test_an_artifact_that_disagrees_is_refused(proof, artifacts, op, change, message, monkeypatch):
    monkeypatch.setattr(prove_module, "parity", lambda *args, **kwargs: wrong(proof, op, **change))
    with pytest.raises(QDeployError, match=message):
        prove(artifacts[1].model, RAW, TARGETS, preprocessing=STEPS, metric=Metric())


def test_one_step_in_a_pooling_layer_is_reported_and_shipped(proof, artifacts, monkeypatch):
    monkeypatch.setattr(
        prove_module, "parity", lambda *args, **kwargs: wrong(proof, "GlobalAveragePool", differing_codes=9, max_step=1)
    )
    found = prove(artifacts[1].model, RAW, TARGETS, preprocessing=STEPS, metric=Metric())
    assert found.parity.differing_codes == 0
    assert [layer.differing_codes for layer in found.parity.layers if not layer.exact] == [9]


class Masked(nn.Module):
    """Scores of which some say "not this one"."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.net(x)
        return torch.cat([scores, torch.full_like(scores, -1e4)], dim=1)


@pytest.mark.parametrize("kind", ["float32", "quantized"])
def test_golden_outputs_with_a_mask_among_them_refuse_other_answers(kind):
    floating, quantized = made(Masked(classifier()))
    model = (floating if kind == "float32" else quantized).model
    found = prove(model, RAW, TARGETS, preprocessing=STEPS, metric=Metric())
    ((name, golden),) = ((k, v) for k, v in found.golden.items() if k.startswith("output."))
    bundle = {
        "manifest": {
            "name": kind, "outputs": [{"name": name.removeprefix("output.")}],
            "golden": {"comparison": "close", "tolerance": found.tolerance},
        },
        "golden": found.golden,
    }  # fmt: skip
    answered = {name.removeprefix("output."): golden}
    assert runner.compare_golden(bundle, answered)["passed"]
    for wrong in (np.where(golden == -1e4, golden, -golden), np.where(golden == -1e4, golden, 0)):
        answers = {key: wrong.astype(golden.dtype) for key in answered}
        assert not runner.compare_golden(bundle, answers)["passed"]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([[1.0, -2.0, 0.5]], 2e-3),
        ([[1.0, -1e4, -1e4, 2.0]], 1e-2),  # what is left of the mask: its last bits
        ([[1.0, -1e4, -1e4, 13.0]], 1.3e-2),  # scores of a thousandth of the mask and more
        ([[1.0, -90.0, -90.0]], 9e-2),  # far out, and no mask
        ([[1.0, -1e4, 2.0]], 10.0),  # a value that stands alone is an answer
        ([[1.0, -np.inf, 2.0, np.nan]], 2e-3),
        ([[1.0, 1.0, 1e-4]], 1e-6),  # probabilities that saturate
        ([[0.0, 5.0, 5.0]], 5e-3),
        ([[0.0]], 1e-9),
        ([[3.0], [40.0]], 4e-2),
    ],
)
def test_tolerance_is_a_share_of_the_answers(answers, expected):
    assert prove_module._tolerance([np.array(a, np.float32) for a in answers], 1e-3) == pytest.approx(expected)
