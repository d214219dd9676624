"""What each observer claims about the range it chooses."""

import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from qdeploy.core import affine
from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import QScheme, activation
from qdeploy.quant.histogram import StreamingHistogram
from qdeploy.quant.observers import entropy, minmax, mse, percentile
from qdeploy.quant.observers._cells import Masses, levels, squared_error

RNG = torch.Generator().manual_seed(1)
SCHEMES = [activation(8), activation(4), activation(2), QScheme(bits=8, signed=True, symmetric=True)]
IDS = ["8 bits", "4 bits", "2 bits", "symmetric"]


def normal(size: int) -> torch.Tensor:
    return torch.randn(size, generator=RNG)


def network_like() -> dict[str, torch.Tensor]:
    """What the layers of a convolutional network put out, as one flat tensor each."""
    x = torch.randn(8, 16, 16, 16, generator=RNG)
    kernel = torch.randn(16, 16, 3, 3, generator=RNG) * torch.rand(16, 1, 1, 1, generator=RNG) * 0.3
    conv = F.conv2d(x.relu(), kernel)
    return {
        "conv": conv,
        "relu": conv.relu(),
        "residual": (conv.relu() + x[..., 1:-1, 1:-1]).relu(),
        "silu": F.silu(3 * conv),
    }


DATA = network_like() | {
    "heavy tails": normal(50_000) / torch.randn(50_000, 3, generator=RNG).square().mean(dim=1).sqrt(),  # t, 3 degrees
    "an outlier": torch.cat([normal(20_000), torch.tensor([60.0])]),
}


def chosen(module, x: torch.Tensor, scheme: QScheme, **options) -> tuple[float, float]:
    observer = module.Observer(scheme, **options)
    observer.observe(x)
    return observer.range()


def true_error(x: torch.Tensor, bounds: tuple[float, float], scheme: QScheme) -> float:
    """The mean squared error of the values themselves, through the reference arithmetic."""
    data = x.numpy().ravel()
    scale, zero_point = affine.qparams(*bounds, scheme)
    codes = affine.quantize(data, scale, np.asarray(zero_point), scheme)
    real = affine.dequantize(codes, scale, np.asarray(zero_point))
    return float(np.mean((real.astype(np.float64) - data) ** 2))


def hull(x: torch.Tensor) -> tuple[float, float]:
    return min(float(x.min()), 0.0), max(float(x.max()), 0.0)


def test_minmax_is_the_exact_range():
    x = normal(1000)
    assert chosen(minmax, x, activation(8)) == (float(x.min()), float(x.max()))


@pytest.mark.parametrize("kept", [100.0, 99.99, 99.0, 75.0])
def test_percentile_is_numpys_within_a_bin(kept):
    for x in DATA.values():
        histogram = StreamingHistogram()
        histogram.observe(x)
        expected = np.percentile(x.double().numpy(), [100 - kept, kept])
        np.testing.assert_allclose(
            chosen(percentile, x, activation(8), percentile=kept), expected, atol=histogram.width
        )


def test_percentile_keeps_the_values_of_a_tensor_that_is_nearly_always_zero():
    x = torch.zeros(100_000)
    x[:3] = torch.tensor([1.0, -2.0, 3.0])
    assert chosen(percentile, x, activation(8)) == (-2.0, 3.0)


@pytest.mark.parametrize("wrong", [50.0, 0.9999, 100.1, float("nan")])
def test_percentile_refuses_shares_that_are_none(wrong):
    with pytest.raises(QDeployError, match="cannot keep"):
        percentile.Observer(activation(8), percentile=wrong)


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
@pytest.mark.parametrize("name", DATA)
def test_mse_is_never_worse_than_minmax(name, scheme):
    x = DATA[name]
    assert true_error(x, chosen(mse, x, scheme), scheme) <= true_error(x, hull(x), scheme) * (1 + 1e-3)


@pytest.mark.parametrize(("bits", "gain"), [(8, 1.05), (4, 4.0), (2, 2.0)])
def test_mse_beats_minmax_on_heavy_tails(bits, gain):
    x, scheme = DATA["heavy tails"], activation(bits)
    assert true_error(x, chosen(mse, x, scheme), scheme) * gain < true_error(x, hull(x), scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
@pytest.mark.parametrize("name", DATA)
def test_mse_finds_what_brute_force_finds(name, scheme):
    """Against a dense grid of ranges, each judged on the values themselves instead of on the histogram."""
    x = DATA[name].ravel()[::5].clone()
    low, high = hull(x)
    fractions = np.linspace(0.02, 1.0, 25)
    grid = [(a * low, b * high) for a in (fractions if low < 0 else [1.0]) for b in fractions]
    best = min(true_error(x, bounds, scheme) for bounds in grid)
    assert true_error(x, chosen(mse, x, scheme), scheme) <= best * 1.002


@pytest.mark.parametrize("scheme", [*SCHEMES, QScheme(bits=2, codebook=(0, 1, 4, 16))], ids=[*IDS, "codebook"])
def test_squared_error_over_cells_is_the_error_of_each_bin(scheme):
    histogram = StreamingHistogram()
    histogram.observe(DATA["silu"])
    masses = Masses.of(histogram)
    lows, highs = np.array([-0.28, -0.1, 0.0, -3.0]), np.array([5.0, 0.4, 2.0, 0.0])
    for low, high, error in zip(lows, highs, squared_error(masses, lows, highs, scheme), strict=True):
        grid = levels(np.array([low]), np.array([high]), scheme)[0]
        nearest = np.abs(masses.values[:, None] - grid).min(axis=1)
        assert error == pytest.approx((masses.counts * nearest**2).sum(), rel=1e-9)


def test_levels_are_what_the_reference_arithmetic_represents():
    for scheme in SCHEMES:
        scale, zero_point = affine.qparams(-1.3, 2.7, scheme)
        codes = np.arange(scheme.qmin, scheme.qmax + 1).astype(scheme.dtype)
        expected = affine.dequantize(codes, scale, np.asarray(zero_point))
        np.testing.assert_allclose(levels(np.array([-1.3]), np.array([2.7]), scheme)[0], expected, rtol=1e-6)


def test_exact_zeros_do_not_move_the_range():
    """Every grid represents 0 exactly, so zeros have no error to trade: ReLU's spike must change nothing."""
    x = normal(20_000).relu()
    more = torch.cat([x, torch.zeros(1_000_000)])
    for module in (mse, entropy):
        assert chosen(module, more, activation(8)) == chosen(module, x[x > 0], activation(8))


def divergence_by_definition(x: torch.Tensor, bounds: tuple[float, float], scheme: QScheme) -> float:
    """KL(P || Q) as Migacz describes it, bin by bin, with the stated treatment of zeros and of empty cells."""
    histogram = StreamingHistogram()
    histogram.observe(x)
    counts = histogram.counts.astype(float)
    counts[histogram.edges[:-1] == 0] -= histogram.zeros
    grid = levels(np.array([bounds[0]]), np.array([bounds[1]]), scheme)[0]
    step = grid[1] - grid[0]
    cells = np.floor((histogram.centres - (grid[0] - step / 2)) / step).astype(int)
    inside = (cells >= 0) & (cells < grid.size)
    first, last = np.flatnonzero(inside)[[0, -1]]
    reference = counts[first : last + 1].copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last + 1 :].sum()
    candidate, occupied = np.zeros_like(reference), reference > 0
    for cell in range(grid.size):
        members = cells[first : last + 1] == cell
        if occupied[members].any():
            share = counts[first : last + 1][members].sum() / occupied[members].sum()
            candidate[members & occupied] = max(share, entropy.EMPTY / occupied[members].sum())
    p = reference[occupied] / reference.sum()
    q = candidate[occupied] / counts[first : last + 1].sum()
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("scheme", [activation(8), activation(4)], ids=["8 bits", "4 bits"])
@pytest.mark.parametrize("name", DATA)
def test_divergence_is_its_definition(name, scheme):
    histogram = StreamingHistogram()
    histogram.observe(DATA[name])
    low, high = hull(DATA[name])
    bounds = [(low, high), (0.7 * low, 0.6 * high), (0.5 * low, 0.9 * high)]
    lows, highs = np.array(bounds).T
    values = entropy.divergence(Masses.of(histogram), lows, highs, scheme)
    for pair, value in zip(bounds, values, strict=True):
        if np.isfinite(value):
            assert value == pytest.approx(divergence_by_definition(DATA[name], pair, scheme), abs=1e-9)
    assert np.isfinite(values[0])


@pytest.mark.parametrize("scheme", [activation(8), activation(4)], ids=["8 bits", "4 bits"])
@pytest.mark.parametrize("name", DATA)
def test_entropy_finds_what_brute_force_finds(name, scheme):
    histogram = StreamingHistogram()
    histogram.observe(DATA[name])
    masses, (low, high) = Masses.of(histogram), hull(DATA[name])
    fractions = np.linspace(0.04, 1.0, 49)
    lows, highs = (g.ravel() for g in np.meshgrid(fractions * low if low < 0 else np.zeros(1), fractions * high))
    wide = highs - lows >= scheme.levels * histogram.width
    best = entropy.divergence(masses, lows[wide], highs[wide], scheme).min()
    found = np.array([[bound] for bound in chosen(entropy, DATA[name], scheme)])
    # The divergence jumps from bin to bin, so that a search gets close to its minimum and seldom onto it.
    assert entropy.divergence(masses, *found, scheme)[0] <= best * 1.05 + 1e-5


def test_entropy_clips_a_far_outlier():
    for far in (30.0, 1000.0):
        x = torch.cat([normal(100_000), torch.tensor([far])])
        low, high = chosen(entropy, x, activation(8))
        assert -6 < low < -2.5
        assert 2.5 < high < max(0.5 * far, 6)


def test_entropy_keeps_the_range_of_a_uniform_distribution():
    low, high = chosen(entropy, torch.rand(200_000, generator=RNG), activation(8))
    assert low == 0.0
    assert high > 0.98


def test_entropy_is_not_fooled_by_few_values():
    """With the values in few bins a tiny range can have P and Q alike by chance, both all outliers."""
    for _ in range(10):
        x = normal(500)
        low, high = chosen(entropy, x, activation(2))
        step = (high - low) / 3
        assert ((x >= low - step) & (x <= high + step)).float().mean() > 0.85


@pytest.mark.parametrize("module", [minmax, percentile, mse, entropy])
def test_only_like_observers_merge(module):
    a = module.Observer(activation(8))
    a.observe(torch.ones(3))
    with pytest.raises(QDeployError, match="one kind"):
        a.merge(module.Observer(activation(4)))
    with pytest.raises(QDeployError, match="one kind"):
        a.merge((mse if module is minmax else minmax).Observer(activation(8)))


def test_percentiles_of_different_shares_do_not_merge():
    a = percentile.Observer(activation(8), percentile=99.0)
    with pytest.raises(QDeployError, match="same options"):
        a.merge(percentile.Observer(activation(8)))


@pytest.mark.parametrize("module", [minmax, percentile, mse, entropy])
def test_options_are_keyword_arguments(module):
    """So that a recipe can name them, and a wrong one is found before any work."""
    _, *options = inspect.signature(module.Observer).parameters.values()
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options)
