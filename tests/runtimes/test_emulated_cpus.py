"""What other CPUs make of onnxruntime's integer kernels: facts that qdeploy's claims about other machines stand on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from qdeploy.core import elementwise, saturation
from qdeploy.core.elementwise import Kernel, Operand
from qdeploy.core.scheme import activation
from qdeploy.targets.qemu import Target
from tests.emulation import ARM64, X86, Question, ask

CODES = np.arange(256, dtype=np.uint8)
# Every pair of codes, and a few more: what is left over after full vectors is computed apart.
LEFT, RIGHT = (np.append(grid.reshape(-1), CODES[-37:]) for grid in np.meshgrid(CODES, CODES, indexing="ij"))
# (a_scale, a_zero, b_scale, b_zero, y_scale, y_zero). In the last, half of the sums lie between two codes.
SETS = (
    (0.02, 0, 0.03, 0, 0.04, 0), (0.171, 128, 0.0213, 3, 0.1533, 77), (0.0037, 201, 0.0291, 96, 0.0161, 140),
    (0.1, 0, 0.1, 0, 0.2, 0),
)  # fmt: skip
BINARY = ("a", "a_scale", "a_zero", "b", "b_scale", "b_zero", "y_scale", "y_zero")
UNARY = ("a", "a_scale", "a_zero", "y_scale", "y_zero")
LAYER = ("a", "a_scale", "a_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero")
GEMM = (*LAYER[:6], "", *LAYER[6:])  # without a bias
TO_FLOAT = ("a", "w", "a_scale", "w_scale", "a_zero", "w_zero")
PRECISE = {"session.x64quantprecision": "1"}
Answers = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def answers(emulators, tmp_path_factory) -> Answers:
    """The answers of a CPU, or of the "native" one, to all questions of this file: asked once."""
    questions = {**identical(), **elementwise_questions(), **largest(), **pairs()}
    known: dict[str, dict[str, np.ndarray]] = {}

    def of(cpu: str) -> dict[str, np.ndarray]:
        if cpu not in known:
            python = [sys.executable, "-P"] if cpu == "native" else Target(cpu).python
            known[cpu] = ask(python, questions, tmp_path_factory.mktemp(cpu))
        return known[cpu]

    return of


def operands(i: int) -> tuple[Operand, ...]:
    """a, b and y of the i-th of SETS."""
    values = SETS[i]
    return tuple(Operand(values[at], int(values[at + 1]), activation(8)) for at in (0, 2, 4))


def constants(i: int, inputs: tuple[str, ...], **others: Any) -> dict[str, Any]:
    """The scales and zero points among ``inputs``, of the i-th of SETS."""
    own = {f"{name}_scale": np.float32(operand.scale) for name, operand in zip("aby", operands(i), strict=True)}
    own |= {f"{name}_zero": np.uint8(operand.zero_point) for name, operand in zip("aby", operands(i), strict=True)}
    return {name: value for name, value in {**own, **others}.items() if name in inputs}


def elementwise_questions() -> dict[str, Question]:
    feeds = {"a": LEFT, "b": RIGHT}
    return {
        f"{op}{i}": Question(f"QLinear{op}", BINARY, feeds, constants(i, BINARY))
        for op in ("Add", "Mul")
        for i in range(4)
    }


def identical() -> dict[str, Question]:
    """Of every other kernel, what a CPU is asked to answer as this one does."""
    found: dict[str, Question] = {}
    for i in range(3):
        rng = np.random.default_rng(i)
        images, rows = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((2, 19, 7, 7), (100, 37)))
        own, share = constants(i, UNARY), constants(i, UNARY, y_scale=np.float32(1 / 256), y_zero=np.uint8(0))
        pool = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        reals = np.append(rng.normal(0, 1, 5000), (np.arange(-300, 300) + 0.5) * own["y_scale"]).astype(np.float32)
        both, joined = {"a": CODES, "b": CODES[::-1].copy()}, ("y_scale", "y_zero", *BINARY[:6])
        found |= {
            f"concat{i}": Question("QLinearConcat", joined, both, constants(i, BINARY), {"axis": 0}),
            f"leaky_relu{i}": Question("QLinearLeakyRelu", UNARY, {"a": CODES}, own, {"alpha": 0.1}),
            f"sigmoid{i}": Question("QLinearSigmoid", UNARY, {"a": CODES}, share),
            f"softmax{i}": Question("QLinearSoftmax", UNARY, {"a": rows}, share, {"axis": -1, "opset": 13}),
            f"pool{i}": Question("QLinearAveragePool", UNARY, {"a": images}, own, pool),
            f"global_pool{i}": Question("QLinearGlobalAveragePool", UNARY, {"a": images}, own, {"channels_last": 0}),
            f"quantize{i}": Question("QuantizeLinear", ("a", "y_scale", "y_zero"), {"a": reals}, own),
            f"conv{i}": convolution(rng.integers(-64, 65, (16, 16, 3, 3)), 3e3, image(rng), 7 + i),
            f"depthwise{i}": convolution(rng.integers(-127, 128, (16, 1, 3, 3)), 2e3, image(rng), 7 + i, group=16),
            f"matmul{i}": product("QLinearMatMul", LAYER, rng.integers(-64, 65, (37, 33)), 3e3, rows),
            f"gemm{i}": product("QGemm", GEMM, rng.integers(-64, 65, (37, 33)), 3e3, rows),
            f"two activations{i}": activations("QLinearMatMul", LAYER, rng, y_scale=np.float32(20 + i)),
            f"two activations to float{i}": activations("MatMulIntegerToFloat", TO_FLOAT, rng),
        }
    return found


def largest() -> dict[str, Question]:
    """Every activation 255, every weight as large as it can be, and a scale that makes the exact answer 200."""
    full, matrix = np.full((16, 16, 3, 3), 127), np.full((128, 16), 127)
    image, row = np.full((1, 16, 3, 3), 255), np.full((1, 128), 255)

    def conv(weight: np.ndarray, **others: Any) -> Question:
        return convolution(weight, weight[0].sum() * 255 / 200, image, 0, **others)

    def matmul(operator: str, inputs: tuple[str, ...], **others: Any) -> Question:
        return product(operator, inputs, matrix, matrix[:, 0].sum() * 255 / 200, row, **others)

    return {
        "dense": conv(full),
        "dense, precise": conv(full, options=PRECISE),
        "dense, 7 bits": conv(full // 2),
        "dense, unsigned": conv(full, unsigned=True),
        "grouped": conv(full[:, :4], group=4),
        "grouped, precise": conv(full[:, :4], group=4, options=PRECISE),
        "depthwise": conv(full[:, :1], group=16),
        "matmul": matmul("QLinearMatMul", LAYER),
        "matmul, precise": matmul("QLinearMatMul", LAYER, options=PRECISE),
        "two activations": Question(
            "QLinearMatMul",
            LAYER,
            {"a": row.astype(np.uint8), "w": (2 * matrix + 1).astype(np.uint8)},
            {
                **dict.fromkeys(("a_scale", "w_scale"), np.float32(1)),
                **dict.fromkeys(("a_zero", "w_zero", "y_zero"), np.uint8(0)),
                "y_scale": np.float32(128 * 255**2 / 200),
            },
        ),
        "gemm": matmul("QGemm", GEMM),
        "gemm, precise": matmul("QGemm", GEMM, options=PRECISE),
    }


def pairs() -> dict[str, Question]:
    """One pair of weights an output channel, all others 0, and activations of 255 only; 1 is the sum of the pair."""
    order = saturation.pair_indices((1, 16, 3, 3))
    between = np.stack([order[:-1, 1], order[1:, 0]], axis=1)
    image = np.full((1, 16, 3, 3), 255)

    def conv(indices: np.ndarray, values: tuple[int, int]) -> Question:
        weight = np.zeros((len(indices), 16 * 9), np.int8)
        np.put_along_axis(weight, indices, np.array([values]), axis=1)
        return convolution(weight.reshape(-1, 16, 3, 3), sum(values), image, 0)

    return {
        "neighbours of 128": conv(order, (127, 1)),
        "neighbours of 129": conv(order, (127, 2)),
        "others of 254": conv(between, (127, 127)),
        "neighbours of two signs": conv(order, (127, -126)),
    }


def image(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (1, 16, 14, 14))


def convolution(weight, y_scale, codes, y_zero, *, group=1, unsigned=False, options=None) -> Question:
    """QLinearConv without padding, a_scale = w_scale = 1. The zero point of ``codes`` is y's."""
    values = layer(weight, y_scale, y_zero, unsigned)
    return Question("QLinearConv", LAYER, {"a": codes.astype(np.uint8)}, values, {"group": group}, options or {})


def product(operator: str, inputs: tuple[str, ...], weight, y_scale, codes, options=None) -> Question:
    """QLinearMatMul or QGemm of codes [N, K] and weights [K, M], a_scale = w_scale = 1, zero points 0."""
    return Question(operator, inputs, {"a": codes.astype(np.uint8)}, layer(weight, y_scale, 0), options=options or {})


def activations(operator: str, inputs: tuple[str, ...], rng: np.random.Generator, **others: Any) -> Question:
    """A product of two tensors of uint8 codes, [2, 3, N, K] and [2, 3, K, M], as in attention."""
    a, b = (rng.integers(0, 256, (2, 3, *shape), dtype=np.uint8) for shape in ((19, 37), (37, 23)))
    scales = {"a_scale": np.float32(0.031), "w_scale": np.float32(0.047), "y_zero": np.uint8(119)}
    values = {**scales, "a_zero": np.uint8(128), "w_zero": np.uint8(97), **others}
    return Question(operator, inputs, {"a": a, "w": b}, {k: v for k, v in values.items() if k in inputs})


def layer(weight: np.ndarray, y_scale: float, y_zero: int, unsigned: bool = False) -> Mapping[str, Any]:
    """The constants of a layer; ``unsigned`` stores the weights 128 larger, as uint8 with zero point 128."""
    scales = {"a_scale": np.float32(1), "w_scale": np.float32(1), "y_scale": np.float32(y_scale)}
    zeros = {"a_zero": np.uint8(y_zero), "y_zero": np.uint8(y_zero)}
    if unsigned:
        return {**scales, **zeros, "w": (weight + 128).astype(np.uint8), "w_zero": np.uint8(128)}
    return {**scales, **zeros, "w": weight.astype(np.int8), "w_zero": np.int8(0)}


@pytest.mark.parametrize("cpu", [*ARM64, *X86])
def test_other_integer_kernels_give_the_same_codes_as_here(cpu, answers):
    here, there = answers("native"), answers(cpu)
    assert [name for name in identical() if not np.array_equal(here[name], there[name])] == []
    assert [name for name in identical() if len(np.unique(here[name])) < 4] == []


@pytest.mark.parametrize(
    ("op", "cpu", "kernel"),
    [
        *(("Add", cpu, elementwise.add_fixed_point) for cpu in ARM64),
        ("Add", "Haswell", elementwise.add_fused),
        ("Add", "Nehalem", elementwise.add_unfused),
        *(("Mul", cpu, elementwise.mul_fused) for cpu in ARM64),
        *(("Mul", cpu, elementwise.mul_unfused) for cpu in X86),
    ],
)
def test_sums_and_products_are_those_of_the_reference(op: str, cpu: str, kernel: Kernel, answers):
    for i in range(len(SETS)):
        a, b, y = operands(i)
        np.testing.assert_array_equal(answers(cpu)[f"{op}{i}"], kernel(a, b, y, LEFT, RIGHT))


def test_arm64_and_x86_round_ties_of_sums_apart(answers):
    arm, x86 = answers("cortex-a76")["Add3"], answers("Haswell")["Add3"]
    assert np.count_nonzero(arm != x86) > 16_000
    assert np.abs(arm.astype(int) - x86).max() == 1


@pytest.mark.parametrize("cpu", [*ARM64, "Nehalem"])
def test_where_products_are_added_in_32_bits_the_largest_are_exact(cpu, answers):
    """Also on x86 before AVX2, whose kernel widens the codes first."""
    assert {name: np.unique(answers(cpu)[name]).tolist() for name in largest()} == {name: [200] for name in largest()}


def test_on_avx2_dense_and_grouped_layers_saturate_and_depthwise_ones_do_not(answers):
    """255 * 127 + 255 * 127 is 64,770 and becomes 32,767: half of every sum is lost."""
    saturated = {"dense", "grouped", "matmul", "gemm"}
    expected = {name: [101 if name in saturated else 200] for name in largest()}
    assert {name: np.unique(answers("Haswell")[name]).tolist() for name in largest()} == expected


def test_on_avx2_the_neighbours_that_saturate_are_those_of_the_proof(answers):
    """Sums of 128 do not saturate and sums of 129 do, of every pair that is added in 16 bits, and of no other."""
    found = {name: np.unique(answers("Haswell")[name]).tolist() for name in pairs()}
    expected = {name: [254 if name == "neighbours of 129" else 255] for name in pairs()}
    assert found == expected
