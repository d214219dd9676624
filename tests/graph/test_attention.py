"""Attention taken apart: the same function, two plain products, and a scale that costs nothing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qdeploy.graph.operators import argument, is_operator
from tests.networks import Net, graph_of, operators, outputs_of, samples

TOKENS = samples(4, 10, 16)
PADDED = TOKENS.clone()
PADDED[0, :, 0] = -9  # a sample that is all padding
SCALES = {"mul", "div"}


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(x.shape[0], x.shape[1], 2, 8).transpose(1, 2)


def attention(run, packed: bool = False) -> nn.Module:
    """``run(m, x, q, k, v)`` on [N, 2, T, 8] between linear layers."""

    def forward(m, x):
        parts = m.qkv(x).chunk(3, -1) if packed else (m.q(x), m.k(x), m.v(x))
        return m.out(run(m, x, *map(heads, parts)).transpose(1, 2).flatten(2))

    layers = {"qkv": nn.Linear(16, 48)} if packed else {name: nn.Linear(16, 16) for name in "qkv"}
    torch.manual_seed(0)
    return Net(forward, out=nn.Linear(16, 16), **layers).eval()


def left_of(model: nn.Module, example: torch.Tensor = TOKENS) -> list[str]:
    """The operators that are left, after checking the function on two batch sizes."""
    graph = graph_of(model, example)
    for x in (example, example[:1]):
        for found, expected in zip(outputs_of(graph, x), outputs_of(model, x), strict=True):
            torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=2e-6)
    return operators(graph)


def by_hand(mask=None):
    def run(m, x, q, k, v):
        logits = q @ k.transpose(-2, -1) / math.sqrt(8)
        return (logits if mask is None else mask(x, logits)).softmax(-1) @ v

    return run


def causal(x, logits):
    return logits.masked_fill(torch.ones(10, 10, dtype=torch.bool).triu(1), -1e9)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "run",
    [
        by_hand(),
        by_hand(causal),
        lambda m, x, q, k, v: (q * 8**-0.5 @ k.mT).softmax(-1) @ v,
        lambda m, x, q, k, v: F.scaled_dot_product_attention(q, k, v),
        lambda m, x, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
        lambda m, x, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda m, x, q, k, v: F.scaled_dot_product_attention(q, k, v, torch.ones(10, 10, dtype=torch.bool).tril()),
        lambda m, x, q, k, v: F.scaled_dot_product_attention(q, k, v, torch.full((10, 10), -2.0).triu(1)),
        lambda m, x, q, k, v: F.scaled_dot_product_attention(q, k, v, (x[..., 0] > -5)[:, None, None]),
    ],
)  # fmt: skip
def test_two_products_and_no_multiplication(run, packed):
    """The scale has gone into the queries' weights, also where one layer computes keys and values as well."""
    left = left_of(attention(run, packed), PADDED)
    assert left.count("matmul") == 2
    assert not SCALES & set(left)
    assert "scaled_dot_product_attention" not in left
    assert left.count("linear") == 2 if packed else 4


@pytest.mark.parametrize("causal", [True, False])
def test_a_graph_goes_to_another_device_with_all_that_it_reads(causal):
    """Positions and the mask of what comes later are no tensors of the device that the model was captured on."""
    net = attention(
        lambda m, x, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        + m.p(torch.arange(10, device=x.device))[:, :8]
    )  # fmt: skip
    net.p = nn.Embedding(10, 8)
    left_of(net)
    assert graph_of(net, TOKENS).to("meta")(TOKENS.to("meta")).shape == TOKENS.shape


def test_a_query_that_may_look_at_nothing_gets_zeros():
    """As from torch's kernels, and only where a mask may do that: the check is not free."""
    padding = attention(lambda m, x, q, k, v: F.scaled_dot_product_attention(q, k, v, (x[..., 0] > -5)[:, None, None]))
    graph = graph_of(padding, PADDED)
    assert "_safe_softmax" in operators(graph)
    assert torch.isfinite(graph(PADDED)).all()
    known = attention(lambda m, x, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    assert "_safe_softmax" not in left_of(known)


@pytest.mark.parametrize("need_weights", [False, True])
def test_multi_head_attention_of_torch(need_weights):
    net = Net(lambda m, x: m.a(x, x, x, need_weights=need_weights)[0], a=nn.MultiheadAttention(16, 2, batch_first=True))
    left = left_of(net.eval())
    assert left.count("matmul") == 2
    assert not SCALES & set(left)


def test_queries_of_their_own_and_masks_in_training_form():
    """Keys from another sequence: the packed weight of torch's module is cut in two."""
    module = nn.MultiheadAttention(16, 2, batch_first=True)
    mask = torch.ones(10, 10, dtype=torch.bool).triu(1)
    net = Net(lambda m, x: m.a(m.n(x), x, x, attn_mask=mask, need_weights=False)[0], a=module, n=nn.LayerNorm(16))
    graph = graph_of(net.eval(), TOKENS)
    weights = [argument(node, 1, "weight") for node in graph.graph.nodes if is_operator(node, "aten.linear")]
    assert [node.op for node in weights] == ["get_attr"] * 3
    left = left_of(net)
    assert left.count("matmul") == 2
    assert not SCALES & set(left)


def test_a_scale_that_no_layer_can_take_in_stays_with_the_queries():
    """Another reader of the queries wants them as they are; fewer values are multiplied than logits."""
    net = attention(lambda m, x, q, k, v: ((q @ k.mT) / 3).softmax(-1) @ v + q)
    graph = graph_of(net, TOKENS)
    left_of(net)
    (scale,) = (node for node in graph.graph.nodes if is_operator(node, "aten.mul", "aten.div"))
    assert tuple(scale.meta["val"].shape)[1:] == (2, 10, 8)


def test_dropout_at_inference_is_left_alone():
    net = attention(lambda m, x, q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.5))
    assert "scaled_dot_product_attention" in operators(graph_of(net, TOKENS))


def test_a_table_that_is_looked_up_and_multiplied_with_stays_one():
    tokens = torch.randint(0, 30, (4, 10), generator=torch.Generator().manual_seed(0))
    for score in (lambda h, w: h @ w.t(), lambda h, w: F.linear(h, w), lambda h, w: torch.matmul(h, w.transpose(0, 1))):
        net = Net(lambda m, x, score=score: score(m.n(m.e(x)), m.e.weight), e=nn.Embedding(30, 16), n=nn.LayerNorm(16))
        graph = graph_of(net.eval(), tokens)
        nodes = [node for node in graph.graph.nodes if is_operator(node, "aten.embedding", "aten.linear")]
        assert [node.args[i].target for node, i in zip(nodes, (0, 1), strict=True)] == ["e.weight", "e.weight"]
        assert left_of(net, tokens) == ["embedding", "layer_norm", "reshape", "linear", "reshape"]


@pytest.mark.parametrize(
    "reader",
    [
        lambda q: q.max(-1)[0].mean((1, 2)),
        lambda q: q.topk(2, -1)[0].mean((1, 2, 3)),
        lambda q: torch.std_mean(q, dim=(1, 2, 3))[0],
    ],
    ids=["max", "topk", "std_mean"],
)
def test_queries_that_another_operator_reads_are_not_scaled_for_it(reader):
    left_of(attention(lambda m, x, q, k, v: F.scaled_dot_product_attention(q, k, v) + reader(q)[:, None, None, None]))


def test_queries_that_the_model_returns_are_not_scaled():
    def forward(m, x):
        q, k, v = (heads(layer(x)) for layer in (m.q, m.k, m.v))
        return F.scaled_dot_product_attention(q, k, v), q

    torch.manual_seed(0)
    left_of(Net(forward, **{name: nn.Linear(16, 16) for name in "qkv"}).eval())


def test_a_scale_of_zero_is_one():
    left_of(attention(lambda m, x, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.0)))
