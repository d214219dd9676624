"""Every row of the table, measured: exported between integer layers, and the kernel that onnxruntime really runs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdeploy.quant.fusion_table import BY_ATEN, FLOAT_REASONS, TABLE, Role, Row, reason_for_float
from tests.networks import Built, Net, build, conv, conv1d, operators, samples

IMAGES, SEQUENCES, VECTORS, TOKENS = samples(4, 8, 12, 12), samples(4, 8, 20), samples(6, 16), samples(4, 10, 16)
INDICES = torch.randint(0, 30, (4, 10), generator=torch.Generator().manual_seed(0))


def between(run: Callable[[Tensor], Tensor], inputs: int = 8) -> tuple[nn.Module, Tensor]:
    """``run`` between two convolutions; the second takes ``inputs`` channels."""
    return Net(lambda m, x: m.b(run(m.a(x))), a=conv(), b=conv(inputs, 8)), IMAGES


def between_1d(run: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Tensor]:
    return Net(lambda m, x: m.b(run(m.a(x))), a=conv1d(), b=conv1d()), SEQUENCES


def before_linear(run: Callable[[Tensor], Tensor], features: int, sequences: bool = False) -> tuple[nn.Module, Tensor]:
    first = conv1d() if sequences else conv()
    return Net(lambda m, x: m.b(run(m.a(x))), a=first, b=nn.Linear(features, 5)), SEQUENCES if sequences else IMAGES


def two_branches(run: Callable[[Tensor, Tensor], Tensor], inputs: int = 8) -> tuple[nn.Module, Tensor]:
    net = Net(lambda m, x: m.c(run(m.a(x), m.b(x))), a=conv(), b=conv(), c=conv(inputs, 8))
    return net, IMAGES


class Attention(nn.Module):
    """Two products around a softmax; a stored product behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out((q @ k.transpose(1, 2) / 4).softmax(-1) @ v)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "conv2d": lambda: between(lambda x: x),
    "conv1d": lambda: between_1d(lambda x: x),
    "linear": lambda: (nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), VECTORS),
    "matmul": lambda: (Attention(), TOKENS),
    "embedding": lambda: (nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 5)), INDICES),
    "qdeploy.lstm": lambda: (
        Net(lambda m, x: m.b(m.a(x)[0]), a=nn.LSTM(20, 8, batch_first=True), b=nn.Linear(8, 4)), SEQUENCES
    ),
    "add": lambda: two_branches(torch.add),
    "mul": lambda: two_branches(torch.mul),
    "cat": lambda: two_branches(lambda a, b: torch.cat([a, b], 1), 16),
    "avg_pool2d": lambda: between(lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "avg_pool1d": lambda: between_1d(lambda x: F.avg_pool1d(x, 2)),
    "adaptive_avg_pool2d": lambda: before_linear(lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), 8),
    "adaptive_avg_pool1d": lambda: before_linear(lambda x: F.adaptive_avg_pool1d(x, 1).flatten(1), 8, True),
    "sigmoid": lambda: between(torch.sigmoid),
    "leaky_relu": lambda: between(lambda x: F.leaky_relu(x, 0.1)),
    "relu": lambda: between(torch.relu),
    "relu6": lambda: between(F.relu6),
    "hardtanh": lambda: between(lambda x: F.hardtanh(x, 0.0, 0.4)),
    "clamp": lambda: between(lambda x: x.clamp(0.0, 0.5)),
    "max_pool2d": lambda: between(lambda x: F.max_pool2d(x, 3, 2, 1)),
    "max_pool1d": lambda: between_1d(lambda x: F.max_pool1d(x, 2)),
    "flatten": lambda: before_linear(lambda x: x.flatten(1), 8 * 144),
    "reshape": lambda: between(lambda x: x.reshape(-1, 8, 16, 9)),
    "squeeze": lambda: before_linear(lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1), 8),
    "unsqueeze": lambda: (Net(lambda m, x: m.b(m.a(x).unsqueeze(2)), a=conv1d(), b=conv()), SEQUENCES),
    "permute": lambda: before_linear(lambda x: x.permute(0, 2, 3, 1), 8),
    "transpose": lambda: before_linear(lambda x: x.transpose(1, 2), 8, True),
    "slice": lambda: between(lambda x: x[:, 1:5, ::2], 4),
    "select": lambda: before_linear(lambda x: x[:, 3], 20, True),
    "index_select": lambda: between(lambda x: x.index_select(1, torch.tensor([7, 1, 1, 0])), 4),
    "pad": lambda: between(lambda x: F.pad(x, (1, 0, 2, 1))),
    "pixel_shuffle": lambda: between(lambda x: F.pixel_shuffle(x, 2), 2),
    "upsample_nearest2d": lambda: between(lambda x: F.interpolate(x, scale_factor=2)),
}  # fmt: skip


@functools.cache
def built(row: Row) -> Built:
    torch.manual_seed(0)
    return build(*NETWORKS[row.aten.removeprefix("aten.")]())


def test_every_row_has_a_network():
    assert set(NETWORKS) == {row.aten.removeprefix("aten.") for row in TABLE}
    assert len(BY_ATEN) == len(TABLE)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.aten)
def test_the_kernel_is_the_one_in_the_table(row):
    found = built(row)
    name = row.aten.removeprefix("aten.")
    captured = operators(found.graph)
    if row.role is Role.CLIP:
        # The quantizer's saturation is the clip: nothing of it is left.
        assert name not in captured
        assert set(found.kernels) == {"QuantizeLinear", "QLinearConv", "DequantizeLinear"}
    else:
        dynamic = row.role is Role.DYNAMIC  # converted to its kernel already
        assert name in captured or dynamic
        assert (row.kernel if dynamic else row.onnx) in {
            node.op_type for node in onnx.load_from_string(found.model).graph.node
        }
        assert row.kernel in found.running
    # One QuantizeLinear where floats come in, at most one DequantizeLinear where they go out: codes all the way.
    assert found.running["QuantizeLinear"] == 1 + found.running["Softmax"]
    assert found.running["DequantizeLinear"] <= 1
    assert found.coverage.integer_mac_share == 1


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.aten)
def test_the_reference_gives_the_kernels_codes(row):
    seen = built(row).parity()
    assert seen.outputs_checked > 0
    assert seen.differing_codes == 0
    # A row that claims to be exact has no layer of its operator that differs, and is among those that must not.
    own = [layer for layer in seen.layers if layer.op == row.onnx]
    for layer in own:
        assert layer.max_step <= (0 if row.exact else 1)
        assert layer.exact == (row.exact and row.role is not Role.CLIP)
    if row.role in (Role.WEIGHTED, Role.PRODUCT, Role.LOOKUP, Role.ARITHMETIC):
        assert own


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.aten)
def test_the_answer_is_close_to_float32(row):
    assert built(row).sqnr() > 25


def test_reasons_are_sentences_about_the_operator():
    assert reason_for_float("ConvTranspose") == FLOAT_REASONS["ConvTranspose"]
    assert "QLinearConv" in reason_for_float("Conv")
    assert "Elu" in reason_for_float("Elu")
