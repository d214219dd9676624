"""Tables that are looked up: a scale a row, codes that are picked before they are multiplied, bits as for any layer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from qdeploy.core import scheme
from qdeploy.core.errors import QDeployError
from qdeploy.export import artifact
from qdeploy.graph.operators import tensor_at
from qdeploy.quant import ptq
from qdeploy.quant.fusion_table import reason_without_row
from qdeploy.quant.placement import place, weighted_layers
from qdeploy.quant.rounding import nearest
from qdeploy.quant.rules import Rule
from qdeploy.quant.weight_range import symmetric_scale
from qdeploy.runtimes.onnxruntime import Runtime, optimized_graph
from qdeploy.verify.artifact import parse
from qdeploy.verify.coverage import coverage
from qdeploy.verify.inspection import layers_of
from qdeploy.verify.parity import parity
from qdeploy.verify.portability import Portability, portability
from tests.networks import Net, build, check, graph_of, samples

ROWS, WIDTH = 300, 16
TOKENS = torch.randint(0, ROWS, (24, 6), generator=torch.Generator().manual_seed(0))
TOKENS[:4, :3] = 0
FEEDS = [{"x": TOKENS.numpy()}]


def classifier(rows: int = ROWS) -> nn.Module:
    torch.manual_seed(0)
    return Net(
        lambda m, x: m.out(m.norm(m.words(x)).mean(1)),
        words=nn.Embedding(rows, WIDTH, padding_idx=0), norm=nn.LayerNorm(WIDTH), out=nn.Linear(WIDTH, 5),
    ).eval()  # fmt: skip


def tied() -> nn.Module:
    """The last position, scored against every row of the table."""
    torch.manual_seed(1)
    return Net(
        lambda m, x: m.norm(torch.relu(m.inner(m.words(x)[:, -1]))) @ m.words.weight.t(),
        words=nn.Embedding(ROWS, WIDTH, padding_idx=0), inner=nn.Linear(WIDTH, WIDTH), norm=nn.LayerNorm(WIDTH),
    ).eval()  # fmt: skip


def answers(made: artifact.Artifact) -> np.ndarray:
    return Runtime(made.model).run(FEEDS[0])["output"]


def initializers(model: bytes) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load_from_string(model).graph.initializer}


def test_rows_are_codes_until_they_are_picked():
    """In the running graph too: dequantized when the model is loaded, it would take four times the memory."""
    found = build(classifier(), TOKENS)
    check(found, sqnr=30)
    running = onnx.load_from_string(optimized_graph(found.model)).graph
    stored = {tensor.name: tensor for tensor in running.initializer}
    (table,) = (tensor for tensor in stored.values() if list(tensor.dims) == [ROWS, WIDTH])
    assert table.data_type == TensorProto.INT8
    assert [node.op_type for node in running.node if table.name in node.input] == ["Gather"]
    assert found.running["DequantizeLinear"] == 0


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_table_has_its_true_size_on_disk_and_the_floats_of_its_codes(bits):
    found = build(classifier(), TOKENS, weight=scheme.weight(bits))
    (seen,) = (layer for layer in found.parity().layers if layer.op == "Gather")
    assert (seen.name, seen.differing_codes) == ("words", 0)
    assert seen.outputs_checked == TOKENS.numel() * WIDTH
    stored = initializers(found.model)["words.weight"]
    assert len(stored.raw_data) == -(-ROWS * WIDTH * bits // 8)
    (record,) = (r for r in layers_of(found.model, found.coverage) if r.name == "words")
    assert (record.op, record.kernel, record.integer, record.macs) == ("Gather", "Gather", True, 0)
    assert record.weight_bits == bits


@pytest.mark.parametrize("rounding", ["nearest", "gptq", "adaround"])
def test_rows_are_rounded_for_themselves_whatever_the_rounding(rounding):
    net = classifier()
    graph = graph_of(net, TOKENS)
    placement = place(graph, weight=scheme.weight(3))
    options = {"iterations": 20} if rounding == "adaround" else {}
    ptq.quantize(graph, placement, [TOKENS], rounding=rounding, rounding_options=options)
    made, rows = placement.layers[0].weight.tensor, net.words.weight.detach().numpy()
    scale = symmetric_scale(rows, scheme.weight(3), observer="mse")
    np.testing.assert_array_equal(made.scale, scale)
    np.testing.assert_array_equal(made.codes, nearest.round_weight(rows, scale, scheme.weight(3)))
    assert not made.codes[0].any()  # padding stays exactly 0


def test_a_table_in_front_is_the_first_layer_and_rules_reach_it():
    net = classifier()

    def bits(**options) -> dict[str, int]:
        made = artifact.quantized(net, TOKENS, [TOKENS], weight_bits=3, **options)
        return {name: value.bits for name, value in made.weights.items()}

    assert weighted_layers(graph_of(net, TOKENS)) == ["words", "out"]
    assert bits() == {"words": 8, "out": 8}
    assert bits(first_last_bits=None) == {"words": 3, "out": 3}
    assert bits(rules=[Rule("words", weight_bits=2)]) == {"words": 2, "out": 8}


def test_a_table_kept_in_float32():
    found = build(classifier(), TOKENS, keep_float=("words",))
    assert found.placement.float_layers["words"] == "kept in float32 by the recipe"
    assert initializers(found.model)["words.weight"].data_type == TensorProto.FLOAT
    check(found, sqnr=30)
    with pytest.raises(QDeployError, match="matches no layer"):
        weighted_layers(graph_of(classifier(), TOKENS), ("word",))


@pytest.mark.parametrize(("rounding", "bits"), [("nearest", 8), ("gptq", 4)])
def test_a_tied_table_is_stored_once_with_the_codes_that_both_read(rounding, bits):
    made = artifact.quantized(
        tied(), TOKENS, [TOKENS], rounding=rounding, weight_bits=bits, first_last_bits=None, bias_correction=True
    )
    tables = [t for t in initializers(made.model).values() if ROWS in t.dims and t.data_type != TensorProto.FLOAT]
    assert sorted(map(tuple, (t.dims for t in tables if len(t.dims) == 2))) == [(ROWS, WIDTH)]
    seen = parity(made.model, FEEDS)
    assert {layer.name for layer in seen.layers} >= {"words", "matmul", "inner"}
    assert seen.differing_codes == 0
    assert coverage(made.model).integer_mac_share == 1
    assert made.weights["words"].bits == made.weights["matmul"].bits == bits
    assert portability(made.model) == Portability()


def test_a_tied_table_whose_readers_want_other_bits_is_two():
    rules = [Rule("words", weight_bits=4)]
    made = artifact.quantized(tied(), TOKENS, [TOKENS], rules=rules)
    assert (made.weights["words"].bits, made.weights["matmul"].bits) == (4, 8)
    assert parity(made.model, FEEDS).differing_codes == 0


@pytest.mark.parametrize("make", [classifier, tied])
@pytest.mark.parametrize("method", ["lsq", "ste"])
def test_the_table_that_was_trained_is_the_one_that_ships(make, method):
    net = make()
    made = artifact.placed(net, TOKENS, weight_bits=4, activation_bits=8, first_last_bits=None)
    graph = artifact.trainable(made, [TOKENS], fake_quant=method)
    table = made.placement.layers[0]
    before = tensor_at(graph, table.weight_path).detach().clone()
    optimizer = torch.optim.SGD(graph.parameters(), 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(graph.train()(TOKENS), TOKENS[:, 0] % 5).backward()
        optimizer.step()
    trained = tensor_at(graph.eval(), table.weight_path).detach()
    moved = (trained != before).any(1)
    assert moved[TOKENS.unique()[1:]].any()
    if make is classifier:
        unseen = torch.ones(ROWS, dtype=torch.bool)
        unseen[TOKENS.unique()] = False
        assert not moved[unseen].any()
    expected = table.weight.fake.quantized(trained)
    with torch.no_grad():
        wanted = graph(TOKENS).numpy()
    shipped = artifact.trained(graph, made, TOKENS)
    np.testing.assert_array_equal(table.weight.tensor.codes, expected.codes)
    np.testing.assert_array_equal(table.weight.tensor.scale, expected.scale)
    assert parity(shipped.model, FEEDS).differing_codes == 0
    np.testing.assert_allclose(answers(shipped), wanted, atol=0.1 * np.abs(wanted).max())


def test_a_sum_of_products_that_may_leave_int32_stays_in_float32():
    """Of more than 33,025 products of two 8-bit codes."""
    net = Net(lambda m, x: m.a(x).transpose(1, 2) @ m.b(x), a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    for length, floats in ((33_000, False), (33_100, True)):
        placement = place(graph_of(net.eval(), samples(2, length, 2)))
        assert ("matmul" in placement.float_layers) is floats


def test_reasons_name_what_is_in_the_way():
    assert "LayerNormalization" in reason_without_row("aten.layer_norm")
    assert "aten.erf" in reason_without_row("aten.erf")
    found = build(classifier(), TOKENS)
    assert [(layer.name, layer.reason) for layer in found.coverage.layers if not layer.integer] == [
        ("norm", "no integer LayerNormalization kernel")
    ]
    gains = numpy_helper.to_array(initializers(found.model)["norm.weight"])
    assert gains.dtype == np.float32
    assert parse(found.model)
