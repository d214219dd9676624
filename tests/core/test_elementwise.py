"""QLinearAdd and QLinearMul: this machine's kernels bit for bit, and where those of other CPUs disagree."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qdeploy.core import elementwise
from qdeploy.core.elementwise import KERNELS, Operand, disagreements
from qdeploy.core.scheme import QScheme, activation
from qdeploy.runtimes.onnxruntime import Runtime

UINT8 = activation(8)
EVERY_A, EVERY_B = (grid.astype(np.uint8) for grid in np.meshgrid(np.arange(256), np.arange(256), indexing="ij"))


def scale_of(rng: np.random.Generator) -> np.float32:
    return np.float32(10.0 ** rng.uniform(-3, 1))


def scales_and_zeros(seed: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    if seed == 0:  # sums that are exact ties, everywhere
        return np.float32(0.5), 0, np.float32(0.5), 0, np.float32(1), 0
    a_scale, b_scale = scale_of(rng), scale_of(rng)
    spread = rng.uniform(0.3, 2) if seed % 3 else 1.0
    y_scale = np.float32(max(a_scale, b_scale) * spread)
    zeros = (0, 0, 0) if seed % 5 == 1 else tuple(int(z) for z in rng.integers(0, 256, 3))
    return a_scale, zeros[0], b_scale, zeros[1], y_scale, zeros[2]


def operands(seed: int) -> tuple[Operand, Operand, Operand]:
    a_scale, a_zero, b_scale, b_zero, y_scale, y_zero = scales_and_zeros(seed)
    pairs = ((a_scale, a_zero), (b_scale, b_zero), (y_scale, y_zero))
    a, b, y = (Operand(float(scale), zero, UINT8) for scale, zero in pairs)
    return a, b, y


def kernel(op: str, operands: tuple[Operand, ...], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Run com.microsoft's QLinear``op`` in onnxruntime."""
    constants = {f"{key}s": np.float32(o.scale) for key, o in zip("aby", operands, strict=True)}
    constants |= {f"{key}z": np.uint8(o.zero_point) for key, o in zip("aby", operands, strict=True)}
    graph = helper.make_graph(
        [
            helper.make_node(
                f"QLinear{op}", ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"], domain="com.microsoft"
            )
        ],
        op,
        [helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, x.shape) for name, x in (("a", a), ("b", b))],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return Runtime(model.SerializeToString(), threads=1).run({"a": a, "b": b})["y"]


@pytest.mark.parametrize("op", ["Add", "Mul"])
@pytest.mark.parametrize("seed", range(60))
def test_the_native_kernel_for_every_pair_of_codes(op, seed):
    a, b, y = operands(seed)
    found = elementwise.answer(op, a, b, y, EVERY_A, EVERY_B)
    np.testing.assert_array_equal(found, kernel(op, (a, b, y), EVERY_A, EVERY_B))


@pytest.mark.parametrize("op", ["Add", "Mul"])
@pytest.mark.parametrize("size", [1, 3, 15, 16, 17, 31, 33, 63, 65])
def test_an_answer_does_not_depend_on_the_size(op, size):
    """Kernels treat what is left over after full vectors separately."""
    rng = np.random.default_rng(size)
    left, right = (rng.integers(0, 256, (3, size)).astype(np.uint8) for _ in range(2))
    found = elementwise.answer(op, *operands(7), left, right)
    np.testing.assert_array_equal(found, kernel(op, operands(7), left, right))


@pytest.mark.parametrize("op", ["Add", "Mul"])
@pytest.mark.parametrize("seed", range(1, 21))
def test_an_operand_that_is_broadcast(op, seed):
    """[N, C, H, W] + [N, C, 1, 1], as behind a squeeze: every pair of codes, in the kernel for a scalar operand."""
    tall, wide = np.arange(256, dtype=np.uint8).reshape(1, 256, 1, 1), EVERY_A.T.reshape(1, 256, 16, 16)
    for left, right in ((tall, wide), (wide, tall)):
        found = elementwise.answer(op, *operands(seed), left, right)
        np.testing.assert_array_equal(found, kernel(op, operands(seed), left, right))


def test_exact_ties_are_rounded_in_two_ways():
    """Half of a sum of two codes: to even on x86, away from zero on ARM64."""
    a, b, y = operands(0)
    assert disagreements("Add", a, b, y) == 16_384
    one, two = np.array([1], np.uint8), np.array([2], np.uint8)
    assert elementwise.add_fused(a, b, y, two, one - 1) == elementwise.add_fixed_point(a, b, y, two, one - 1) == 1
    assert elementwise.add_fused(a, b, y, one, one - 1) == 0
    assert elementwise.add_fixed_point(a, b, y, one, one - 1) == 1


def test_scales_on_which_all_kernels_agree_are_near_every_scale():
    """What quant/agreement.py relies on: it makes the result's scale larger until they do."""
    for seed in range(20):
        a, b, y = operands(seed)
        tries = (Operand(float(np.float32(y.scale * (1 + step * 1e-4))), y.zero_point, UINT8) for step in range(100))
        assert any(disagreements("Add", a, b, close) == 0 for close in tries)


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_all_kernels_come_within_a_step_of_each_other(op):
    for seed in range(1, 20):
        answers = [kernel(*operands(seed), EVERY_A, EVERY_B).astype(int) for kernel in KERNELS[op]]
        assert max(np.abs(answer - answers[0]).max() for answer in answers) <= 1


def test_only_the_codes_that_there_are_count():
    """A sum of 1-bit codes disagrees nowhere but at a tie of theirs."""
    binary = QScheme(bits=1)
    narrow, y = Operand(0.5, 0, binary), Operand(1.0, 0, UINT8)
    assert disagreements("Add", narrow, narrow, y) == 2  # 0.5 + 0 and 0 + 0.5
