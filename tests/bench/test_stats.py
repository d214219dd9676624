from __future__ import annotations

import numpy as np
import pytest

from qdeploy.bench import stats

RNG = np.random.default_rng(0)


def blocks(medians, calls=200, spread=0.02):
    """Blocks of given medians in nanoseconds, [process][block] as ``medians`` is."""
    return [[(m * RNG.lognormal(0, spread, calls)).astype(np.int64) for m in process] for process in medians]


def test_percentiles_are_of_all_calls_and_not_of_the_blocks():
    uneven = [[np.ones(9, np.int64)], [np.array([100])]]
    assert stats.percentiles(uneven, [50, 90]) == pytest.approx([1.0, np.percentile([1] * 9 + [100], 90)])


def test_the_interval_holds_the_estimate_and_is_deterministic():
    times = blocks(RNG.normal(1e6, 5e4, (5, 4)))
    interval = stats.median_interval(times)
    assert interval.low < interval.value < interval.high
    assert interval.value == np.median(np.concatenate([block for process in times for block in process]))
    assert stats.median_interval(times) == interval


def test_it_is_the_plain_block_bootstrap():
    """The weighted order statistics give what resampling all calls gives, block by block."""
    times = blocks(RNG.normal(1e6, 1e5, (1, 8)), calls=600, spread=0.2)
    times[0][0] = times[0][0][:100]  # a slow block has fewer calls
    draws = np.random.default_rng(stats.SEED).integers(0, 8, (stats.RESAMPLES, 8))
    plain = np.array([np.median(np.concatenate([times[0][i] for i in draw])) for draw in draws])
    np.testing.assert_allclose(stats.resampled_medians(times), plain, rtol=0.005)


def test_processes_are_resampled_whole():
    """Without differences between the blocks of a process, only how often each process is drawn matters."""
    times = blocks(np.repeat([[1e6], [2e6], [3e6], [4e6], [5e6]], 4, axis=1), spread=0.0)
    medians = stats.resampled_medians(times)
    assert set(np.unique(medians)) == {1e6, 2e6, 3e6, 4e6, 5e6}
    counts = np.array([1.0 if m == 3e6 else 0.0 for m in medians])
    # The median of five draws from five values is the middle one in 36.5% of the cases.
    assert counts.mean() == pytest.approx(0.365, abs=0.05)


@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_intervals_cover_the_truth_about_as_often_as_they_say(ratio):
    """Each process has an offset of its own, which its blocks share: luck that must not pass for a difference."""
    covered = 0
    for _ in range(30):
        drift = RNG.normal(1.0, 0.05, (5, 4))
        luck = RNG.normal(1.0, 0.005, (2, 5, 1))
        interval = stats.ratio_interval(blocks(ratio * 1e6 * drift * luck[0], 50), blocks(1e6 * drift * luck[1], 50))
        covered += not interval.excludes(ratio)
    assert covered >= 26


def test_what_slows_a_whole_round_cancels_in_the_ratio():
    drift = np.linspace(1.0, 2.0, 20).reshape(1, 20)
    one, other = blocks(1e6 * drift), blocks(3e6 * drift)
    ratio = stats.ratio_interval(other, one)
    alone = stats.median_interval(one)
    assert (ratio.high - ratio.low) / ratio.value < 0.25 * (alone.high - alone.low) / alone.value
    shuffled = stats.ratio_interval([[other[0][i] for i in RNG.permutation(20)]], one)
    assert ratio.high - ratio.low < 0.25 * (shuffled.high - shuffled.low)


def test_a_bundle_against_itself_is_exactly_one():
    same = blocks(1e6 * RNG.normal(1.0, 0.03, (5, 4)))
    assert stats.ratio_interval(same, same) == stats.Interval(1.0, 1.0, 1.0)


def test_one_call_a_block_is_enough():
    interval = stats.median_interval([[np.array([value]) for value in (5, 6, 7, 8, 9)]])
    assert 5 <= interval.low <= interval.value == 7 <= interval.high <= 9
