"""StreamingHistogram: its state is a function of the multiset of values, and it tells the truth about them."""

import itertools
import math

import numpy as np
import pytest
import torch

from qdeploy.core.errors import QDeployError
from qdeploy.quant.histogram import CHUNK_CPU, StreamingHistogram

RNG = torch.Generator().manual_seed(0)

DATA = {
    "normal": torch.randn(3000, generator=RNG),
    "post-relu": torch.randn(3000, generator=RNG).relu(),
    "far from zero": 1000 + torch.rand(3000, generator=RNG),
    "negative": -torch.rand(3000, generator=RNG) * 7,
    "heavy tails": torch.randn(3000, generator=RNG) / (torch.rand(3000, generator=RNG) + 1e-4) ** 2,
    "wide, with negative subnormals": torch.tensor([-1e-45, -1e-40, 0.0, 1e-45, 3e5, -(2.0**-149), 1.0]),
    "all subnormal": torch.tensor([-1e-45, 3e-44, 1e-40, 0.0]),
    "tiny": torch.randn(3000, generator=RNG) * 1e-36,
    "huge": torch.tensor([1e30, -1e-30, 0.0, 3.4e38, -3.4e38, 5.0]),
    "an outlier": torch.cat([torch.randn(3000, generator=RNG), torch.tensor([1e6])]),
    "zeros": torch.zeros(10),
    "negative zeros": torch.tensor([-0.0, 0.0, -0.0]),
    "constant": torch.full((7,), 0.1),
}


def histogram(*batches: torch.Tensor, bins: int = 8192) -> StreamingHistogram:
    result = StreamingHistogram(bins)
    for batch in batches:
        result.observe(batch)
    return result


@pytest.mark.parametrize("bins", [2, 5, 64, 8192])
@pytest.mark.parametrize("name", DATA)
def test_state_depends_on_the_values_alone(name, bins):
    data = DATA[name]
    whole = histogram(data, bins=bins)
    assert histogram(*data.split(1 + len(data) // 7), bins=bins) == whole
    # Smallest magnitudes first: the width starts tiny and doubles many times.
    assert histogram(*data[data.abs().argsort()].split(1 + len(data) // 5), bins=bins) == whole
    assert histogram(data.flip(0), bins=bins) == whole
    parts = [histogram(part, bins=bins) for part in data.split(1 + len(data) // 3)]
    for order in itertools.permutations(parts):
        merged = StreamingHistogram(bins)
        for part in order:
            merged.merge(part)
        assert merged == whole


@pytest.mark.parametrize("name", DATA)
def test_counts_are_those_of_aligned_bins(name):
    data = DATA[name].double().numpy()
    result = histogram(DATA[name])
    assert math.frexp(result.width)[0] == 0.5  # a power of two
    numbers = np.floor(data / result.width).astype(np.int64)
    np.testing.assert_array_equal(result.counts, np.bincount(numbers - numbers.min()))
    assert result.edges[0] == numbers.min() * result.width
    assert (result.min, result.max) == (data.min(), data.max())
    assert result.total == data.size
    assert result.zeros == (data == 0).sum()
    assert result.counts.dtype == np.int64
    assert ((result.centres >= result.min) & (result.centres <= result.max)).all()


@pytest.mark.parametrize("name", ["normal", "post-relu", "far from zero", "negative", "heavy tails", "an outlier"])
def test_width_is_the_smallest_that_fits(name):
    result = histogram(DATA[name])
    assert 8192 / 2 <= result.counts.size <= 8192
    half = result.width / 2
    assert math.floor(result.max / half) - math.floor(result.min / half) >= 8192 or half < abs(result.max) * 2**-24


def test_equality_sees_every_difference():
    assert histogram(torch.tensor([0.0, 1.0])) != histogram(torch.tensor([0.0, 1.0, 1.0]))
    assert histogram(torch.tensor([0.25, 1.0])) != histogram(torch.tensor([0.25 + 1e-7, 1.0]))
    assert histogram(torch.tensor([1e-9, 1.0])) != histogram(torch.tensor([0.0, 1.0]))
    assert histogram(torch.ones(3)) != "a histogram"


def test_memory_does_not_grow():
    result = StreamingHistogram()
    for exponent in range(-40, 38):
        result.observe(torch.randn(500, generator=RNG) * 10.0**exponent)
        assert result.counts.nbytes <= 8192 * 8
    assert result.total == 78 * 500 == result.counts.sum()


def test_a_tensor_of_many_chunks():
    data = torch.randn(2 * CHUNK_CPU + 17, generator=RNG)
    assert histogram(data) == histogram(*data.split(100_003))


def test_any_shape_layout_and_dtype():
    data = torch.randn(4, 6, 5, 5, generator=RNG)
    whole = histogram(data)
    assert histogram(data.permute(0, 2, 3, 1)) == whole
    assert histogram(data.clone().requires_grad_() * 1.0) == whole
    assert histogram(data.double()) == whole
    assert histogram(data.half()) == histogram(data.half().float())
    assert histogram(data.bfloat16()) == histogram(data.bfloat16().float())
    assert histogram(torch.arange(10)) == histogram(torch.arange(10.0))
    assert histogram(torch.tensor(3.0)).total == 1


def test_merging_leaves_the_other_alone_and_an_empty_one_changes_nothing():
    a, b = histogram(DATA["normal"]), histogram(DATA["huge"])
    before = histogram(DATA["huge"])
    a.merge(b)
    assert b == before
    a.counts[:] = 0
    assert b == before
    b.merge(StreamingHistogram())
    b.observe(torch.zeros(0, 3))
    assert b == before
    empty = StreamingHistogram()
    empty.merge(StreamingHistogram())
    assert empty == StreamingHistogram()
    twice = histogram(DATA["normal"])
    twice.merge(twice)
    assert twice == histogram(DATA["normal"], DATA["normal"])


def test_refusals_say_what_is_wrong_and_change_nothing():
    result = histogram(torch.ones(3))
    with pytest.raises(QDeployError, match=r"^3 NaN and 0 infinite values among the 1,005"):
        result.observe(torch.cat([torch.ones(1002), torch.full((3,), math.nan)]))
    with pytest.raises(QDeployError, match=r"^1 NaN and 2 infinite values"):
        result.observe(torch.tensor([math.inf, math.nan, 1.0, -math.inf]))
    with pytest.raises(QDeployError, match=r"^0 NaN and 1 infinite values"):
        result.observe(torch.tensor([1e300], dtype=torch.float64))
    assert result == histogram(torch.ones(3))
    with pytest.raises(QDeployError, match="8 bins cannot be merged"):
        result.merge(StreamingHistogram(8))
    with pytest.raises(QDeployError, match="without values"):
        StreamingHistogram().quantile(0.5)
    with pytest.raises(QDeployError, match="between 0 and 1"):
        result.quantile(99.9)
    with pytest.raises(QDeployError, match="1 bins"):
        StreamingHistogram(1)


@pytest.mark.parametrize("name", DATA)
def test_quantiles_are_numpys_within_a_bin(name):
    data = DATA[name].double().numpy()
    result = histogram(DATA[name])
    assert (result.quantile(0.0), result.quantile(1.0)) == (data.min(), data.max())
    for p in (1e-4, 0.003, 0.1, 0.5, 0.731, 0.999, 0.9999):
        assert abs(result.quantile(p) - np.quantile(data, p)) <= result.width, p


def test_quantiles_between_far_values_interpolate_as_numpys():
    data = torch.cat([torch.zeros(99), torch.tensor([100.0])])
    assert histogram(data).quantile(0.995) == pytest.approx(np.quantile(data.numpy(), 0.995), abs=0.02)


def test_quantiles_know_the_zeros_exactly():
    data = torch.cat([torch.zeros(90), torch.full((10,), 1e-3), torch.tensor([50.0])])
    result = histogram(data)
    assert result.quantile(0.01) == result.quantile(0.5) == result.quantile(0.89) == 0.0
    assert 0.0 < result.quantile(0.95) < result.width


@pytest.mark.parametrize("name", DATA)
def test_rebinning_over_the_full_range_keeps_every_value(name):
    result = histogram(DATA[name])
    counts = result.rebinned(60, result.min, result.max)
    assert len(counts) == 60
    assert sum(counts) == result.total
    assert all(type(count) is int and count >= 0 for count in counts)


def test_rebinned_is_the_histogram_of_the_values():
    data = torch.randn(200_000, generator=RNG)
    result = histogram(data)
    expected, _ = np.histogram(data.numpy(), bins=50, range=(-3.0, 2.5))
    counts = np.array(result.rebinned(50, -3.0, 2.5))
    # A cut bin may be off by the part of it that the edge divides wrongly.
    np.testing.assert_allclose(counts, expected, atol=2 * result.counts.max())
    assert result.rebinned(4, 100.0, 200.0) == (0, 0, 0, 0)


def test_rebinned_at_the_edges():
    ones = histogram(torch.ones(5))
    assert ones.rebinned(4, 0.0, 1.0) == (0, 0, 0, 5)
    assert ones.rebinned(4, 0.0, 2.0) == (0, 0, 5, 0)
    assert ones.rebinned(3, 1.0, 1.0) == (5, 0, 0)
    assert ones.rebinned(3, 2.0, 3.0) == (0, 0, 0)
    assert StreamingHistogram().rebinned(3, 0.0, 1.0) == (0, 0, 0)
    pair = histogram(torch.tensor([0.0, 0.0, 1.0]))
    assert pair.rebinned(2, 0.0, 1.0) == (2, 1)
    assert pair.rebinned(2, 0.0, 0.0) == (2, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_tensor_gives_the_same_state():
    for data in DATA.values():
        assert histogram(data.cuda()) == histogram(data)
