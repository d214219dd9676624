from __future__ import annotations

import os
import sys

import numpy as np
import onnxruntime as ort
import pytest

from qdeploy import runner
from qdeploy.bench import probe


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_default_threads_are_counted():
    count = probe.default_threads()
    assert count is not None
    assert 1 <= count <= (os.cpu_count() or 1)


def test_products_are_exact_where_the_cpu_has_vnni_or_is_an_arm():
    if runner.emulator() is None and {"avx512_vnni", "avx_vnni", "asimd"} & set(runner.environment()["isa"]):
        assert runner.saturates() is False
    else:
        assert runner.saturates() in (True, False)


def test_the_timed_model_is_int8_and_does_not_compute_nothing():
    session = ort.InferenceSession(probe.small_int8_model(), providers=["CPUExecutionProvider"])
    codes = np.random.default_rng(0).integers(0, 256, session.get_inputs()[0].shape, np.uint8)
    (result,) = session.run(None, {"x0": codes})
    assert result.dtype == np.uint8
    assert result.shape == codes.shape
    assert 0 < np.count_nonzero(result) < result.size


def test_a_slowdown_is_the_ratio_of_two_times_of_one_model():
    found = probe.slowdown(2, 1)
    assert (found.default_threads, found.allowed_threads) == (2, 1)
    assert found.default_ms > 0
    assert found.allowed_ms > 0
    assert found.ratio == found.default_ms / found.allowed_ms


def test_where_calls_take_long_no_second_round_is_begun(monkeypatch):
    """Dozens of threads on one core take seconds a round; here, a budget that one round is sure to exceed."""
    blocks, time_block = [], runner.time_block
    monkeypatch.setattr(runner, "time_block", lambda *arguments: blocks.append(arguments) or time_block(*arguments))
    monkeypatch.setattr(probe, "BUDGET_SECONDS", 0)
    probe.slowdown(2, 1)
    assert len(blocks) == 2
