"""Networks as people write them: each is captured, quantized and exported, agrees with integer arithmetic code for
code, and answers as float32 does. Or it is refused with a clear error (tests/graph, tests/export)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdeploy.core.errors import QDeployError
from qdeploy.runtimes.onnxruntime import Runtime
from qdeploy.verify.artifact import signature
from tests.networks import Net, Net2, build, check, conv, conv1d, randomise, samples

IMAGES, SEQUENCES, VECTORS, TOKENS = samples(4, 8, 12, 12), samples(4, 8, 20), samples(6, 16), samples(4, 10, 16)


class Inception(nn.Module):
    """Four branches, joined; a convolution of one spatial axis after the other; pooling with a stride of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = conv(8, 4, 1), nn.Sequential(conv(8, 4, 1), nn.ReLU(), conv(4, 4))
        self.flat = nn.Sequential(nn.Conv2d(8, 4, (1, 7), padding=(0, 3)), nn.Conv2d(4, 4, (7, 1), padding=(3, 0)))
        self.pooled, self.norm = conv(8, 4, 1), nn.BatchNorm2d(16)

    def forward(self, x):
        pooled = self.pooled(F.avg_pool2d(x, 3, 1, 1))
        return F.relu(self.norm(torch.cat([self.one(x), self.three(x), self.flat(x), pooled], 1)))


class UNet(nn.Module):
    """Down, up by nearest neighbour, skip by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep, self.up, self.head = conv(), conv(8, 16), conv(24, 8), conv(8, 2, 1)

    def forward(self, x):
        skip = F.relu(self.down(x))
        deep = F.relu(self.deep(F.max_pool2d(skip, 2)))
        return self.head(F.relu(self.up(torch.cat([skip, F.interpolate(deep, size=skip.shape[-2:])], 1))))


class Fire(nn.Module):
    """SqueezeNet: two expansions joined, a convolution as the classifier, global pooling at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.small, self.large = conv(8, 4, 1), conv(4, 8, 1), conv(4, 8)
        self.classifier = conv(16, 5, 1)

    def forward(self, x):
        s = F.relu(self.squeeze(x))
        x = torch.cat([F.relu(self.small(s)), F.relu(self.large(s))], 1)
        return F.adaptive_avg_pool2d(F.relu(self.classifier(F.dropout(x, training=self.training))), 1).flatten(1)


class CSP(nn.Module):
    """YOLO's C2f: a split of which parts go through blocks, all of it joined; SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = conv(8, 8, 1), conv(4, 4), conv(12, 8, 1)

    def forward(self, x):
        parts = list(F.silu(self.first(x)).chunk(2, 1))
        parts.append(F.silu(self.block(parts[-1])) + parts[-1])
        return F.silu(self.last(torch.cat(parts, 1)))


class InvertedResidual(nn.Module):
    """MobileNet v2: expand, depthwise with ReLU6, project without a clip, add."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.project = conv(8, 24, 1, bias=False), conv(24, 8, 1, bias=False)
        self.depthwise = conv(24, 24, groups=24, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (24, 24, 8))

    def forward(self, x):
        h = F.relu6(self.norms[0](self.expand(x)), inplace=True)
        h = F.relu6(self.norms[1](self.depthwise(h)), inplace=True)
        return x + self.norms[2](self.project(h))


class OptionA(nn.Module):
    """A shortcut of every second pixel, with zeros for new channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.last = conv(), conv(8, 16, stride=2), conv(16, 4)

    def forward(self, x):
        h = F.relu(self.first(x))
        return self.last(F.relu(self.conv(h) + F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))))


class TCN(nn.Module):
    """Causal 1-D convolutions, dilated, with a residual, and the last time step classified."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv1d(padding=0, dilation=2), conv1d(padding=0, dilation=4)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        h = F.relu(self.a(F.pad(x, (4, 0))))
        h = F.relu(self.b(F.pad(h, (8, 0))) + x)
        return self.head(h[:, :, -1])


class Mixer(nn.Module):
    """Linear layers along tokens and along channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.tokens, self.channels = nn.LayerNorm(16), nn.Linear(10, 10), nn.Linear(16, 16)

    def forward(self, x):
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + F.gelu(self.channels(self.norm(x)))


class ConvNeXt(nn.Module):
    """Channels last for layer norm and linear layers, a learned scale, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise, self.norm = conv(), conv(8, 8, 7, groups=8), nn.LayerNorm(8)
        self.wide, self.narrow, self.scale = nn.Linear(8, 32), nn.Linear(32, 8), nn.Parameter(samples(8))

    def forward(self, x):
        x = self.stem(x)
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.narrow(F.gelu(self.wide(h)))).permute(0, 3, 1, 2)


class ESPCN(nn.Module):
    """Super-resolution: shuffled pixels at the end, and between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(8, 8, 5), conv(8, 16), conv(4, 8), conv(8, 9)

    def forward(self, x):
        x = F.pixel_shuffle(F.relu(self.b(torch.tanh(self.a(x)))), 2)
        return F.pixel_shuffle(self.d(F.relu(self.c(x))), 3)


class Normalizing(nn.Module):
    """Mean and standard deviation inside the model, as buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = conv(8, 8, 3, stride=2), nn.Linear(8, 4)
        self.register_buffer("mean", torch.full((1, 8, 1, 1), 0.4))
        self.register_buffer("std", torch.full((1, 8, 1, 1), 0.2))

    def forward(self, x):
        return self.fc(F.relu(self.conv((x - self.mean) / self.std)).amax((2, 3))).softmax(-1)


ARCHITECTURES: dict[str, tuple[type[nn.Module], Tensor, float]] = {
    "inception": (Inception, IMAGES, 1.0),
    "unet": (UNet, IMAGES, 1.0),
    "squeezenet": (Fire, IMAGES, 1.0),
    "csp": (CSP, IMAGES, 1.0),
    "mobilenet": (InvertedResidual, IMAGES, 1.0),
    "resnet with option A": (OptionA, IMAGES, 1.0),
    "temporal convolutions": (TCN, SEQUENCES, 1.0),
    "mixer": (Mixer, TOKENS, 1.0),
    "convnext": (ConvNeXt, IMAGES, 1.0),
    "espcn": (ESPCN, IMAGES, 1.0),
    "preprocessing inside": (Normalizing, IMAGES.abs(), 1.0),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(name):
    torch.manual_seed(0)
    make, example, share = ARCHITECTURES[name]
    built = build(randomise(make()), example)
    check(built, share=share, sqnr=25)
    if name in ("inception", "unet", "squeezenet", "mobilenet", "resnet with option A", "temporal convolutions"):
        assert built.coverage.computes_in_integers or name in ("squeezenet", "mobilenet")


def test_super_resolution_is_of_the_size_that_it_was_captured_at():
    """Convolutions would take any; the artifact takes and gives what it says, and refuses the rest."""
    torch.manual_seed(0)
    built = build(ESPCN(), samples(2, 8, 10, 14))
    said = signature(built.model)
    assert said["inputs"][0]["shape"] == ["batch", 8, 10, 14]
    assert said["outputs"][0]["shape"] == ["batch", 1, 60, 84]
    assert built.run()[0].shape == (2, 1, 60, 84)
    assert built.running["DepthToSpace"] == 2
    assert built.running["DequantizeLinear"] == 2  # before the float32 tanh, and at the end
    with pytest.raises(QDeployError, match="failed to run"):
        Runtime(built.model).run({"x": samples(2, 8, 14, 10).numpy()})


Run = Callable[[nn.Module, Tensor], Tensor]

PATTERNS: dict[str, Run] = {
    "grouped and depthwise": lambda m, x: m.b(m.depthwise(m.grouped(x)).relu()),
    "padding='same' with an even kernel": lambda m, x: m.b(m.even(x).relu()),
    "transposed convolution": lambda m, x: m.b(m.up(m.a(x).relu()).relu()),
    "pixel shuffle": lambda m, x: m.narrow(F.pixel_shuffle(m.a(x).relu(), 2)),
    "1 - x": lambda m, x: m.b(1 - m.a(x)),
    "x - y": lambda m, x: m.b(m.a(x) - m.c(x)),
    "x * x": lambda m, x: m.b(m.a(x).square()),
    "a module called twice": lambda m, x: m.a(m.a(x).relu()),
    "an output used clipped and unclipped": lambda m, x: (lambda h: m.b(h.relu()) + m.c(h))(m.a(x)),
    "two clips of one value": lambda m, x: (lambda h: m.b(h.relu()) + m.c(F.relu6(h)))(m.a(x)),
    "relu, pooling, relu": lambda m, x: m.b(F.max_pool2d(m.a(x).relu(), 2).relu()),
    "pooling, relu": lambda m, x: m.b(F.max_pool2d(m.a(x), 2).relu()),
    "reshapes in a row": lambda m, x: m.b(m.a(x).relu().reshape(-1, 4, 2, 144).transpose(1, 2).reshape(-1, 8, 12, 12)),
    "the batch merged with channels": lambda m, x: m.narrow(m.a(x).relu().reshape(-1, 2, 12, 12)),
    "ceil_mode": lambda m, x: m.b(F.avg_pool2d(F.max_pool2d(m.a(x), 3, 2, 1, ceil_mode=True), 3, 2, ceil_mode=True)),
    "ceil_mode with padding": lambda m, x: m.b(F.avg_pool2d(m.a(x).relu(), 3, 2, 1, ceil_mode=True)),
    "padding that does not count": lambda m, x: m.b(F.avg_pool2d(m.a(x), 3, 2, 1, count_include_pad=False)),
    "bilinear": lambda m, x: m.b(F.interpolate(m.a(x).relu(), scale_factor=2, mode="bilinear")),
    "nearest to an odd size": lambda m, x: m.b(F.interpolate(m.a(x).relu(), size=(17, 20))),
    "a gate": lambda m, x: (lambda h: m.b(h * torch.sigmoid(m.c(h))))(m.a(x).relu()),
    "tanh gate": lambda m, x: m.b(torch.tanh(m.a(x)) * torch.sigmoid(m.c(x))),
    "sum of a list": lambda m, x: m.b(sum([m.a(x), m.c(x), x])),
    "stack": lambda m, x: m.b(torch.stack([m.a(x).relu(), m.c(x).relu()], 2).amax(2)),
    "where": lambda m, x: m.b(torch.where(x > 0, m.a(x), m.c(x))),
    "prelu": lambda m, x: m.b(m.prelu(m.a(x))),
    "group norm": lambda m, x: m.b(m.group(m.a(x)).relu()),
    "instance norm": lambda m, x: m.b(F.instance_norm(m.a(x))),
    "reflected edges": lambda m, x: m.valid(F.pad(m.a(x).relu(), (1, 1, 1, 1), mode="reflect")),
    "asymmetric padding": lambda m, x: m.valid(F.pad(m.a(x).relu(), (0, 1, 0, 1))),
    "max over channels": lambda m, x: m.b(m.a(x) + m.c(x).amax(1, keepdim=True)),
    "broadcast addition": lambda m, x: m.b(m.a(x) + F.adaptive_avg_pool2d(m.c(x), 1)),
    "softmax over channels": lambda m, x: m.b(m.a(x).softmax(1)),
    "sigmoid at the end": lambda m, x: torch.sigmoid(m.b(m.a(x).relu())),
    "log_softmax at the end": lambda m, x: m.b(m.a(x).relu()).log_softmax(1),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern(name):
    torch.manual_seed(0)
    net = Net(
        PATTERNS[name], a=conv(), b=conv(), c=conv(), narrow=conv(2, 4), valid=conv(padding=0, stride=2),
        grouped=conv(groups=2), depthwise=conv(groups=8), even=nn.Conv2d(8, 8, (2, 3), padding="same"),
        up=nn.ConvTranspose2d(8, 8, 2, 2), prelu=nn.PReLU(8), group=nn.GroupNorm(2, 8),
    )  # fmt: skip
    check(build(net, IMAGES), share=0.0 if name == "transposed convolution" else 1.0, sqnr=25)


def test_an_embedding_before_linear_layers():
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.b(m.a(m.e(x)).relu().mean(1)), e=nn.Embedding(50, 16), a=nn.Linear(16, 8), b=nn.Linear(8, 3)
    )
    tokens = torch.randint(0, 50, (6, 7))
    built = build(net, tokens)
    assert built.parity().differing_codes == 0
    assert built.kernels["QGemm"] == 2
    assert built.sqnr() > 30


def test_ids_may_be_clipped_before_they_are_looked_up():
    torch.manual_seed(0)
    net = Net(lambda m, x: m.a(m.e(x.clamp(0, 9)).mean(1)), e=nn.Embedding(10, 16), a=nn.Linear(16, 4))
    assert build(net, torch.randint(0, 50, (6, 7))).sqnr() > 30


def test_a_weight_tied_to_an_embedding():
    """One reader looks rows up, the other multiplies in integers."""
    torch.manual_seed(0)
    net = Net(lambda m, x: F.linear(m.e(x).mean(1).relu(), m.e.weight), e=nn.Embedding(50, 16))
    built = build(net, torch.randint(0, 50, (6, 7)))
    assert built.kernels["QGemm"] == 1
    assert built.sqnr() > 30


def test_two_inputs_of_different_kinds():
    torch.manual_seed(0)
    net = Net2(
        lambda m, x, y: m.out(torch.cat([m.a(x).relu().mean((2, 3)), m.table(y).relu()], 1)),
        a=conv(), table=nn.Linear(16, 8), out=nn.Linear(16, 4),
    )  # fmt: skip
    built = build(net, samples(6, 8, 12, 12), VECTORS)
    check(built, sqnr=30)
    assert built.kernels == {"QuantizeLinear": 2, "QLinearConv": 1, "QLinearGlobalAveragePool": 1, "QGemm": 2,
                             "QLinearConcat": 1}  # fmt: skip


def test_a_model_without_weights():
    built = build(Net(lambda m, x: F.avg_pool2d(x, 2).relu()), IMAGES)
    assert built.placement.layers == []
    assert built.sqnr() > 100
