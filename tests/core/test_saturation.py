"""The pair rule: which weights can saturate 16 bits for some input, and which cannot for any."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from qdeploy.core import saturation


def vpmaddubsw(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Sums of one output channel as x86 without VNNI adds them: pairs of products in 16 saturating bits."""
    products = weight.astype(np.int64) * x
    pairs = np.append(products, [0] * (products.size % 2)).reshape(-1, 2).sum(axis=1)
    return np.clip(pairs, -(2**15), 2**15 - 1).sum()


@pytest.mark.parametrize("highest", [255, 127, 15])
def test_the_rule_is_exactly_when_some_input_saturates(highest):
    """Every pair of weights against the four corners of the inputs, which are the worst there are."""
    limit = saturation.pair_limit(highest)
    for a, b in product([-128, -127, -65, -64, -63, -1, 0, 1, 63, 64, 65, 66, 127], repeat=2):
        weight = np.array([[a, b]], np.int8)
        corners = [np.array(x) for x in product([0, highest], repeat=2)]
        saturates = any(vpmaddubsw(weight[0], x) != weight[0].astype(np.int64) @ x for x in corners)
        assert (saturation.saturating(weight, highest) is not None) == saturates
        assert (saturation.pair_sums(weight).max() > limit) == saturates


def test_full_range_weights_of_8_bits_are_limited_to_128():
    assert saturation.pair_limit(255) == 128
    assert saturation.pair_limit(15) > 2 * 127


def test_pairs_of_a_convolution_are_neighbouring_input_channels():
    weight = np.zeros((2, 4, 3, 3), np.int8)
    weight[0, 0, 1, 2] = weight[0, 1, 1, 2] = 100  # channels 0 and 1 of one tap: a pair
    weight[1, 1, 1, 2] = weight[1, 2, 1, 2] = 100  # channels 1 and 2: none
    assert saturation.saturating(weight, 255) == saturation.Saturating(channels=1, pairs=1, worst=200)


def test_an_odd_number_of_channels_pairs_across_taps():
    weight = np.zeros((1, 3, 1, 2), np.int8)
    weight[0, 2, 0, 0] = weight[0, 0, 0, 1] = 100  # the last of one tap, the first of the next
    found = saturation.saturating(weight, 255)
    assert found is not None
    assert found.pairs == 1
    assert saturation.pair_indices((1, 3, 1, 1)).tolist() == [[0, 1], [2, 3]]  # 3: nothing is there


def test_opposite_signs_never_add_up():
    assert saturation.saturating(np.array([[127, -127, -127, 127]], np.int8), 255) is None


def test_partners_are_mutual():
    for shape in ((1, 4, 3, 3), (1, 3, 3, 3), (1, 7), (1, 2, 5)):
        partner = saturation.partners(shape)
        for i, j in enumerate(partner):
            assert j == len(partner) or partner[j] == i


def test_7_bits_never_saturate():
    rng = np.random.default_rng(0)
    assert saturation.saturating(rng.integers(-64, 65, (8, 64, 3, 3)).astype(np.int8), 255) is None


def test_depthwise_is_one_channel_in_and_one_out_for_every_group():
    assert saturation.is_depthwise((8, 1, 3, 3), 8)
    assert not saturation.is_depthwise((16, 1, 3, 3), 8)
    assert not saturation.is_depthwise((8, 2, 3, 3), 4)
    assert not saturation.is_depthwise((8, 1), 1)
