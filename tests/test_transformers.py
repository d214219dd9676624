"""A causal transformer on token ids from end to end: its products in integers, whichever way its codes were made."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdeploy.export import artifact
from qdeploy.export.artifact import Artifact
from qdeploy.runtimes.onnxruntime import Runtime, optimized_graph
from qdeploy.verify.coverage import coverage
from qdeploy.verify.parity import parity, sqnr_db
from qdeploy.verify.portability import Portability, portability

ITEMS, LENGTH, WIDTH = 60, 8, 16


class Block(nn.Module):
    """Attention to what came before, and a feed-forward layer for every position."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.wide, self.narrow = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, mask, padding):
        queries = self.before(x)
        x = self.behind(queries + self.attention(queries, x, x, attn_mask=mask, need_weights=False)[0])
        return (x + self.narrow(self.wide(x).relu())).masked_fill(padding, 0)


class Recommender(nn.Module):
    """Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, small: tokens [N, T], 0 is padding."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.items, self.positions = nn.Embedding(ITEMS, WIDTH, padding_idx=0), nn.Embedding(LENGTH, WIDTH)
        self.blocks, self.last = nn.ModuleList((Block(), Block())), nn.LayerNorm(WIDTH)
        self.head = None if tied else nn.Linear(WIDTH, ITEMS)
        self.register_buffer("mask", torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1))

    def forward(self, x):
        padding = (x == 0).unsqueeze(-1)
        h = self.items(x) * WIDTH**0.5 + self.positions(torch.arange(x.shape[1], device=x.device))
        h = h * ~padding
        for block in self.blocks:
            h = block(h, self.mask, padding)
        h = self.last(h)[:, -1]
        return self.head(h) if self.head is not None else h @ self.items.weight.t()


def sequences(count: int, seed: int) -> Tensor:
    x = torch.randint(1, ITEMS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    x[: count // 4, : LENGTH // 2] = 0
    return x


TRAIN, TEST = sequences(48, 0), sequences(32, 1)


@functools.cache
def network(tied: bool) -> nn.Module:
    """Trained for a moment to tell the next item from the last one, so that its logits mean something."""
    torch.manual_seed(0)
    return train(Recommender(tied), steps=40, rate=1e-2)


def train(net: nn.Module, *, steps: int, rate: float) -> nn.Module:
    optimizer = torch.optim.Adam(net.train().parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(TRAIN), TRAIN[:, -1] * 7 % ITEMS).backward()
        optimizer.step()
    return net.eval()


def answers(made: Artifact, x: Tensor = TEST) -> np.ndarray:
    return Runtime(made.model).run({"x": x.numpy()})["output"]


def after_training(net: nn.Module, **options) -> Artifact:
    return artifact.quantized(net, TRAIN, [TRAIN], **options)


def in_training(net: nn.Module) -> Artifact:
    made = artifact.placed(net, TRAIN)
    graph = artifact.trainable(made, [TRAIN], fake_quant="lsq")
    train(graph, steps=3, rate=1e-3)
    return artifact.trained(graph, made, TRAIN)


@functools.cache
def int8() -> Artifact:
    return after_training(network(False))


def gptq_int4() -> Artifact:
    return after_training(network(True), rounding="gptq", weight_bits=4)


def lsq_int8() -> Artifact:
    return in_training(network(False))


@pytest.mark.slow
@pytest.mark.parametrize(("make", "tied", "least"), [(int8, False, 25), (gptq_int4, True, 10), (lsq_int8, False, None)])
def test_all_products_run_in_integers_and_are_exact(make, tied, least):
    """Linear layers, both products of attention, the scores: 100% of the multiplications, proven on every CPU."""
    net, made = network(tied), make()
    found = coverage(made.model)
    assert found.integer_mac_share == 1
    assert {layer.op for layer in found.layers if not layer.integer} == {"LayerNormalization", "Softmax"}
    assert found.kernels["MatMulIntegerToFloat"] == found.kernels["QLinearMatMul"] == 2
    seen = parity(made.model, [{"x": TEST.numpy()}], float_model=artifact.float32(net, TRAIN).model)
    assert seen.differing_codes == 0
    assert {layer.op for layer in seen.layers} == {"Gather", "Gemm", "MatMul"}
    assert all(layer.outputs_checked and layer.max_step == 0 for layer in seen.layers)
    assert {layer.name for layer in seen.layers if layer.op == "Gather"} == {"items", "positions"}
    assert portability(made.model) == Portability()
    with torch.no_grad():
        expected = net(TEST).numpy()
    if least is not None:
        assert sqnr_db(expected, answers(made)) > least
    one_by_one = np.concatenate([answers(made, x[None]) for x in TEST[:3]])
    np.testing.assert_allclose(one_by_one, answers(made)[:3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_what_was_trained_at_4_bits_is_what_ships(tied):
    """To the last bits of softmax and layer norm: biases included, whose steps are coarse at 4 bits."""
    made = artifact.placed(network(tied), TRAIN, weight_bits=4, activation_bits=4, first_last_bits=None)
    graph = artifact.trainable(made, [TRAIN], fake_quant="lsq")
    train(graph, steps=3, rate=1e-3)
    with torch.no_grad():
        expected = graph(TEST).numpy()
    assert sqnr_db(expected, answers(artifact.trained(graph, made, TRAIN))) > 60


def test_float32_is_the_same_function():
    model = network(True)  # trained by the first test that asks for it: not without gradients
    with torch.no_grad():
        expected = model(TEST).numpy()
    np.testing.assert_allclose(answers(artifact.float32(model, TRAIN)), expected, rtol=1e-4, atol=1e-4)


def test_layer_norm_keeps_its_float32_weights():
    """Of a Conv or Gemm between quantizers onnxruntime rounds float32 weights by itself; it leaves these alone."""
    graph = onnx.load_from_string(optimized_graph(int8().model)).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 5
    for node in norms:
        for name in node.input[1:]:
            assert stored[name].data_type == onnx.TensorProto.FLOAT
