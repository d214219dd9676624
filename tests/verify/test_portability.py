"""The proof of portability on models of others: what onnxruntime makes an integer kernel of, however it is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qdeploy.verify.portability import Portability, portability

# One channel of one pair that saturates; halves of sums, which are ties; both in every model below.
WEIGHT = np.zeros((64, 16), np.int8)
WEIGHT[:2, 3] = 127
CONSTANTS: dict[str, Any] = {
    "s": np.float32(0.5), "z": np.uint8(0), "ws": np.float32(0.01), "wz": np.int8(0), "ys": np.float32(1),
    "yz": np.uint8(0), "w": WEIGHT, "wt": WEIGHT.T.copy(), "low": np.float32(0), "high": np.float32(100),
    "rows": np.array([-1, 64]), "bias": np.arange(64, dtype=np.int32), "zero": np.int32(0),
}  # fmt: skip


def node(op: str, inputs: str, outputs: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), domain=domain, **attributes)


IN = [node("QuantizeLinear", "x s z", "xq"), node("DequantizeLinear", "xq s z", "xd")]
IN2 = [*IN, node("QuantizeLinear", "x2 s z", "x2q"), node("DequantizeLinear", "x2q s z", "x2d")]
OUT = [node("QuantizeLinear", "o ys yz", "oq"), node("DequantizeLinear", "oq ys yz", "y")]
W = [node("DequantizeLinear", "w ws wz", "wd")]
WT = [node("DequantizeLinear", "wt ws wz", "wtd"), node("Transpose", "wtd", "wd", perm=[1, 0])]


def examine(nodes: Sequence[onnx.NodeProto], **constants: Any) -> Portability:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in ("x", "x2")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in {**CONSTANTS, **constants}.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return portability(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


PRODUCTS = {
    "described": [*IN, *W, node("MatMul", "xd wd", "o"), *OUT],
    "transposed weight": [*IN, *WT, node("MatMul", "xd wd", "o"), *OUT],
    "transposed weight of a Gemm": [*IN, *WT, node("Gemm", "xd wd", "o"), *OUT],
    "reshaped": [*IN, *W, node("Reshape", "xd rows", "r"), node("MatMul", "r wd", "o"), *OUT],
    "spelled out": [IN[0], node("QLinearMatMul", "xq s z w ws wz ys yz", "oq"), OUT[1]],
    "dynamic": [
        node("DynamicQuantizeLinear", "x", "a as az"), node("MatMulInteger", "a w az wz", "i"),
        node("Cast", "i", "f", to=TensorProto.FLOAT), node("Mul", "f as", "g"), node("Mul", "g ws", "y"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_that_can_saturate_are_found_however_they_are_written(name):
    (found,) = examine(PRODUCTS[name]).saturation
    assert (found.channels, found.pairs, found.worst) == (1, 1, 254)
    harmless = np.clip(WEIGHT, -64, 64)
    assert examine(PRODUCTS[name], w=harmless, wt=harmless.T.copy()).saturation == ()


def two_activations(zero: np.integer[Any]) -> list[onnx.NodeProto]:
    """A product of two activations, the second one's codes of the type of ``zero``."""
    second = "bz" if zero.dtype == np.int8 else "z"
    return [
        IN[0], IN[1], node("QuantizeLinear", f"x2 s {second}", "bq"), node("DequantizeLinear", f"bq s {second}", "bd"),
        node("Transpose", "bd", "bt", perm=[1, 0]), node("QuantizeLinear", f"bt s {second}", "btq"),
        node("DequantizeLinear", f"btq s {second}", "btd"), node("MatMul", "xd btd", "o"),
    ]  # fmt: skip


@pytest.mark.parametrize("writes", ["codes", "float32"])
def test_a_product_of_two_activations_is_proven_by_their_type_alone(writes):
    """Codes of uint8 are multiplied in 16 bits and added in 32: nothing need be known of them."""
    out = OUT if writes == "codes" else [node("Identity", "o", "y")]
    assert examine([*two_activations(np.uint8(0)), *out]) == Portability()
    (found,) = examine([*two_activations(np.int8(0)), *out], bz=np.int8(0)).saturation
    assert found.worst == 256


SUMS = {
    "described": [*IN2, node("Add", "xd x2d", "o"), *OUT],
    "before a ReLU": [*IN2, node("Add", "xd x2d", "a"), node("Relu", "a", "o"), *OUT],
    "before a Transpose": [*IN2, node("Add", "xd x2d", "a"), node("Transpose", "a", "o", perm=[1, 0]), *OUT],
    "behind a Transpose": [
        *IN2, node("Transpose", "xd", "t"), node("Transpose", "x2d", "t2"), node("Add", "t t2", "o"), *OUT
    ],
    "read by two quantizers": [
        *IN2, node("Add", "xd x2d", "o"), *OUT, node("QuantizeLinear", "o ys yz", "p"),
        node("DequantizeLinear", "p ys yz", "unused"),
    ],
    "spelled out": [IN2[0], IN2[2], node("QLinearAdd", "xq s z x2q s z ys yz", "oq", "com.microsoft"), OUT[1]],
}  # fmt: skip


@pytest.mark.parametrize("name", SUMS)
def test_sums_that_are_rounded_differently_are_found_however_they_are_written(name):
    (found,) = examine(SUMS[name]).arithmetic
    assert (found.op, found.pairs) == ("Add", 16_384)
    assert examine(SUMS[name], ys=np.float32(1 + 2e-5)).arithmetic == ()


@pytest.mark.parametrize("scale", [0.0, 1e-45, np.nan])
def test_nothing_is_proven_of_scales_that_are_none(scale):
    (found,) = examine(SUMS["described"], ys=np.float32(scale)).arithmetic
    assert found.pairs == 65_536


def test_a_sum_with_a_bias_of_int32_is_no_integer_kernel():
    nodes = [*IN, node("DequantizeLinear", "bias s zero", "b"), node("Add", "xd b", "o"), *OUT]
    assert examine(nodes) == Portability()


def test_padding_can_be_beyond_the_codes_that_there_are():
    """Activations of codes 0 to 15 whose zero point is 255: so is the padding."""
    constants = {"z": np.uint8(255), "top": np.uint8(15), "bottom": np.uint8(0)}
    kernel = np.full((1, 2, 3, 3), 127, np.int8)
    conv = node("Conv", "xi kd", "oc", pads=[1, 1, 1, 1])
    nodes = [
        IN[0], node("Clip", "xq bottom top", "c"), node("Reshape", "c image", "ci"),
        node("DequantizeLinear", "ci s z", "xi"), node("DequantizeLinear", "k ws wz", "kd"), conv,
        node("QuantizeLinear", "oc ys yz", "oq"), node("DequantizeLinear", "oq ys yz", "oi"),
        node("Reshape", "oi flat", "y"),
    ]  # fmt: skip
    constants |= {"k": kernel, "image": np.array([-1, 2, 4, 8]), "flat": np.array([0, -1])}
    assert examine(nodes, **constants).saturation
    assert not examine(nodes, **{**constants, "z": np.uint8(0)}).saturation
