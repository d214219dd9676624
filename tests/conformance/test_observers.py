"""What every observer must do, found by looking at the folder; one given by path is held to the same."""

import math
import pickle

import numpy as np
import pytest
import torch

from qdeploy.core import plugins
from qdeploy.core.affine import qparams, quantize
from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import QScheme, activation

BY_PATH = '''
"""An observer of a user's own, from nothing but the contract."""
import torch
from qdeploy.core.errors import QDeployError

class Observer:
    def __init__(self, scheme):
        self.scheme, self.low, self.high = scheme, None, None

    def observe(self, x):
        x = x.detach()
        if x.numel() == 0:
            return
        if not torch.isfinite(x).all():
            raise QDeployError(f"{int(x.isnan().sum())} NaN and {int(x.isinf().sum())} infinite values")
        low, high = float(x.min()), float(x.max())
        self.low = low if self.low is None else min(low, self.low)
        self.high = high if self.high is None else max(high, self.high)

    def merge(self, other):
        self.observe(torch.tensor([other.low, other.high]))

    def range(self):
        if self.low is None:
            raise QDeployError("Nothing seen.")
        return self.low, self.high
'''

SCHEMES = {
    "uint8": activation(8),
    "uint4": activation(4),
    "two levels": activation(1),
    "int8": QScheme(bits=8, signed=True),
    "symmetric": QScheme(bits=8, signed=True, symmetric=True),
}

CHEAP = activation(4)  # for what cannot depend on the scheme: a search over few codes is short


@pytest.fixture(scope="module", params=[*plugins.names("observer"), "by path"])
def make(request, tmp_path_factory):
    """The class of each observer."""
    name = request.param
    if name == "by path":
        path = tmp_path_factory.mktemp("observer") / "my_observer.py"
        path.write_text(BY_PATH)
        name = str(path)
    return plugins.load("observer", name)


@pytest.fixture(params=SCHEMES)
def scheme(request):
    return SCHEMES[request.param]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen(make, scheme, *batches):
    observer = make(scheme)
    for batch in batches:
        observer.observe(batch)
    return observer


BATCHES = {
    "like batches": [draw(seed, 4, 3, 10) for seed in range(5)],
    "growing ranges": [draw(seed, 50) * 10.0**seed for seed in range(-3, 4)],
    "one side, then both": [draw(0, 100).relu(), draw(1, 100)],
    "a lone first value": [torch.tensor(1e-6), draw(0, 500), torch.tensor([300.0])],
    "post-relu": [draw(seed, 200).relu() for seed in range(3)],
}


@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES)
def test_batches_and_merges_give_the_same_range_exactly(make, batches):
    at_once = seen(make, CHEAP, torch.cat([batch.ravel() for batch in batches])).range()
    assert seen(make, CHEAP, *batches).range() == at_once
    assert seen(make, CHEAP, *reversed(batches)).range() == at_once
    for order in (batches, batches[::-1], batches[2:] + batches[:2]):
        merged = seen(make, CHEAP, order[0])
        for batch in order[1:]:
            merged.merge(seen(make, CHEAP, batch))
        assert merged.range() == at_once
    assert merged.range() == at_once  # asking again changes nothing


def test_memory_does_not_grow_with_samples(make):
    observer = make(activation(8))
    for seed in range(60):
        observer.observe(draw(seed, 5000) * (1 + seed))
        assert len(pickle.dumps(observer)) < 100_000


def test_nan_and_infinity_are_refused_and_counted(make):
    observer = seen(make, CHEAP, draw(0, 100))
    before = observer.range()
    bad = draw(1, 2, 50)
    bad[0, :3] = math.nan
    with pytest.raises(QDeployError, match="3 NaN and 0 infinite values"):
        observer.observe(bad)
    bad[1, 7], bad[1, 9] = math.inf, -math.inf
    with pytest.raises(QDeployError, match="3 NaN and 2 infinite values"):
        observer.observe(bad)
    assert observer.range() == before


def test_no_samples_is_an_error_and_empty_tensors_are_none(make):
    observer = make(CHEAP)
    with pytest.raises(QDeployError):
        observer.range()
    observer.observe(torch.zeros(0))
    observer.observe(torch.zeros(4, 0, 3))
    with pytest.raises(QDeployError):
        observer.range()
    x = draw(0, 100)
    assert seen(make, CHEAP, x, torch.zeros(0, 8), x).range() == seen(make, CHEAP, x, x).range()


def test_constants_are_represented(make, scheme):
    for value in (0.0, -0.0, 1.0, -2.5, 0.1, 1e-30, 1e30, 1e-45, -3e38):
        x = torch.full((3, 7), value)
        low, high = seen(make, scheme, x).range()
        scale, zero_point = qparams(low, high, scheme)
        codes = quantize(x.numpy(), scale, np.asarray(zero_point), scheme)
        real = (codes.astype(np.float64) - zero_point) * float(scale)
        # Half a float32 unit of the scale a code; below normal numbers the value itself is lost.
        np.testing.assert_allclose(real, x.numpy(), rtol=1e-6, atol=np.finfo(np.float32).tiny)


NORMAL = draw(3, 2000)
KINDS = {
    "two-sided": NORMAL,
    "post-relu": NORMAL.relu(),
    "negative": -NORMAL.relu() - 0.5,
    "far from zero": NORMAL.sigmoid() + 30.0,
    "sparse": NORMAL * (torch.arange(2000) % 500 == 0),
}


@pytest.mark.parametrize("scale", [1e-42, 1.0, 1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_the_range_is_usable_and_within_the_data(make, scheme, kind, scale):
    x = KINDS[kind] * scale
    low, high = seen(make, scheme, x).range()
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert min(0.0, float(x.min())) <= low <= high <= max(0.0, float(x.max()))
    assert max(high, 0.0) > min(low, 0.0)
    if kind in ("post-relu", "far from zero"):
        assert low >= 0.0
    if kind == "negative":
        assert high <= 0.0
    step, zero_point = qparams(low, high, scheme)
    assert np.isfinite(step)
    assert step >= np.finfo(np.float32).tiny
    assert scheme.qmin <= zero_point <= scheme.qmax
    if kind == "post-relu" and not scheme.symmetric:
        assert zero_point == scheme.qmin  # so that the ReLU is the clip itself


def test_any_shape_layout_and_float_type(make):
    x = draw(4, 3, 8, 5, 5)
    expected = seen(make, CHEAP, x).range()
    assert seen(make, CHEAP, x.to(memory_format=torch.channels_last)).range() == expected
    assert seen(make, CHEAP, x.permute(0, 2, 3, 1)).range() == expected
    assert seen(make, CHEAP, x.clone().requires_grad_() + 0).range() == expected
    for half in (torch.float16, torch.bfloat16):
        assert seen(make, CHEAP, x.to(half)).range() == seen(make, CHEAP, x.to(half).float()).range()


def test_observing_does_not_change_the_tensor(make):
    x = draw(5, 100)
    before = x.clone()
    seen(make, activation(8), x).range()
    assert torch.equal(x, before)


def test_a_step_is_never_wasted_on_8_bits(make):
    """A range choice that loses most of an ordinary distribution would pass everything above."""
    x = draw(6, 20_000)
    low, high = seen(make, activation(8), x).range()
    step, zero_point = qparams(low, high, activation(8))
    codes = quantize(x.numpy(), step, np.asarray(zero_point), activation(8))
    error = (codes.astype(np.float32) - zero_point) * step - x.numpy()
    sqnr = 10 * np.log10(np.mean(x.numpy() ** 2) / np.mean(error**2))
    assert sqnr > 35
