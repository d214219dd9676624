"""What other CPUs make of the kernels that quantize activations themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest

from qdeploy.core import saturation
from qdeploy.targets.qemu import Target
from qdeploy.verify.prove import CLOSE_CODES
from tests.emulation import Question, ask

LSTM = ("X", "W", "R", "B", "", "", "", "", "w_scale", "w_zero", "r_scale", "r_zero")
PRODUCT = ("A", "W", "w_scale", "w_zero")
HIDDEN = 24


def lstm(reach: int, *, pair: tuple[int, int] | None = None, order: list[int] | None = None) -> Question:
    """Two directions over 20 steps of 16 features, codes up to ``reach``; ``order`` is that of the gates.

    ``pair``: of the weights only the first two of each row are not 0, and all features are 1.
    """
    rng = np.random.default_rng(0)
    w, r = (rng.integers(-reach, reach + 1, (2, size, 4, HIDDEN)).astype(np.int8) for size in (16, HIDDEN))
    x = rng.normal(0, 1, (20, 1, 16)).astype(np.float32)
    if pair is not None:
        w[:], r[:], x[:] = 0, 0, 1
        w[:, :2] = np.array(pair)[None, :, None, None]
    w, r = ((a if order is None else a[:, :, order]).reshape(2, -1, 4 * HIDDEN) for a in (w, r))
    scale, zero = np.full((2, 4 * HIDDEN), 0.3 / reach, np.float32), np.zeros((2, 4 * HIDDEN), np.int8)
    values = {"W": w, "R": r, "B": rng.normal(0, 0.1, (2, 8 * HIDDEN)).astype(np.float32)}
    scales = {"w_scale": scale, "w_zero": zero, "r_scale": scale, "r_zero": zero.copy()}
    attributes = {"hidden_size": HIDDEN, "direction": "bidirectional"}
    return Question("DynamicQuantizeLSTM", LSTM, {"X": x}, {**values, **scales}, attributes)


def product(pair: tuple[int, int], at: int = 0) -> Question:
    """A matrix product of ones by two weights beside each other, all others 0."""
    w = np.zeros((16, 8), np.int8)
    w[at], w[at + 1] = pair
    values = {"W": w, "w_scale": np.full(8, 0.01, np.float32), "w_zero": np.zeros(8, np.int8)}
    return Question("DynamicQuantizeMatMul", PRODUCT, {"A": np.ones((1, 16), np.float32)}, values)


def one_row() -> Question:
    """A matrix product of noise and small weights."""
    rng = np.random.default_rng(5)
    w = rng.integers(-64, 65, (512, 64)).astype(np.int8)
    values = {"W": w, "w_scale": np.full(64, 0.01, np.float32), "w_zero": np.zeros(64, np.int8)}
    return Question("DynamicQuantizeMatMul", PRODUCT, {"A": rng.normal(0, 1, (1, 512)).astype(np.float32)}, values)


QUESTIONS = {
    "lstm": lstm(64), "wide lstm": lstm(127), "other gates": lstm(64, order=[0, 2, 1, 3]),
    "lstm of 128": lstm(127, pair=(127, 1)), "lstm of 129": lstm(127, pair=(127, 2)),
    "product of 128": product((127, 1)), "product of 129": product((127, 2)),
    "between two pairs": product((127, 127), 1), "one row": one_row(),
}  # fmt: skip
Answers = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def answers(emulators, tmp_path_factory) -> Answers:
    """The answers of a CPU, or of the "native" one, to all questions of this file: asked once."""
    known: dict[str, dict[str, np.ndarray]] = {}

    def of(cpu: str) -> dict[str, np.ndarray]:
        if cpu not in known:
            python = [sys.executable, "-P"] if cpu == "native" else Target(cpu).python
            known[cpu] = ask(python, QUESTIONS, tmp_path_factory.mktemp(cpu))
        return known[cpu]

    return of


@pytest.mark.parametrize("cpu", ["Haswell", "Nehalem", "cortex-a72", "cortex-a76", "max"])
def test_an_lstm_is_close_on_every_cpu_and_other_gates_are_not(cpu, answers):
    here, there = answers("native"), answers(cpu)
    tolerance = CLOSE_CODES * np.abs(here["lstm"]).max()
    assert np.abs(here["lstm"] - there["lstm"]).max() < tolerance / 10
    assert np.abs(here["lstm"] - there["other gates"]).max() > 10 * tolerance


def test_on_avx2_neighbours_along_the_inputs_saturate_as_the_proof_says(answers):
    """(2k, 2k + 1) along K of the transposed weight: sums of 128 do not, sums of 129 do, and no other pair does."""
    here, there = answers("native"), answers("Haswell")
    same = {name for name in QUESTIONS if np.allclose(here[name], there[name], rtol=0, atol=1e-6)}
    assert same == set(QUESTIONS) - {"wide lstm", "lstm of 129", "product of 129"}
    assert saturation.pair_indices((8, 16))[0].tolist() == [0, 1]


@pytest.mark.parametrize("cpu", ["cortex-a76", "max"])
def test_a_product_of_one_row_has_the_same_bits_on_arm64(cpu, answers):
    """`max` has a kernel of its own, which answers otherwise for several rows at once."""
    np.testing.assert_array_equal(answers("native")["one row"], answers(cpu)["one row"])
