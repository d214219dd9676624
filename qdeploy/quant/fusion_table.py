"""Where onnxruntime's CPU provider has integer kernels: one table, one row an operator, each with its reason.

Placement reads it to decide where quantizers go; coverage and ``qdeploy inspect`` read it to explain what stays in
float32. It is measured, not guessed: tests/quant/test_fusion_table.py exports every row and looks at the kernel that
runs. An operator without a row runs in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """How an operator takes part in an integer graph."""

    WEIGHTED = "weighted"  # multiplies by stored weights: the integer kernels worth having
    LOOKUP = "lookup"  # picks rows of a stored table: integer codes until they are picked, float32 behind it
    PRODUCT = "product"  # multiplies two activations: an integer kernel wherever both are quantized
    ARITHMETIC = "arithmetic"  # computes on codes when all inputs and the output are quantized
    DYNAMIC = "dynamic"  # multiplies by stored weights; its kernel quantizes what it reads, with the range of the call
    MOVE = "move"  # only moves values: its output has the codes, scale and zero point of its input
    CLIP = "clip"  # a range: that of the quantizer behind it, which costs nothing, or else a Clip of its codes
    FLOAT = "float"  # no integer kernel


@dataclass(frozen=True, slots=True)
class Row:
    """One operator: its ATen name, the ONNX operator it exports to, its role, the integer kernel, and why."""

    aten: str
    onnx: str
    role: Role
    kernel: str
    reason: str
    exact: bool = True  # whether the integer reference reproduces the kernel bit for bit


TABLE = (
    Row("aten.conv2d", "Conv", Role.WEIGHTED, "QLinearConv", "Conv between Q/DQ with an int8 weight is QLinearConv."),
    Row("aten.conv1d", "Conv", Role.WEIGHTED, "QLinearConv", "QLinearConv takes one spatial axis as well."),
    Row("aten.linear", "Gemm", Role.WEIGHTED, "QGemm", "A 2-D Gemm is QGemm, with or without an output quantizer."),
    Row(
        "aten.matmul", "MatMul", Role.PRODUCT, "MatMulIntegerToFloat",
        "MatMul of two uint8 tensors is QLinearMatMul, or MatMulIntegerToFloat where float32 is wanted of it.",
    ),
    Row(
        "aten.embedding", "Gather", Role.LOOKUP, "Gather",
        "Rows of codes are picked, then multiplied with the scales of the rows.",
    ),
    Row(
        "qdeploy.lstm", "LSTM", Role.DYNAMIC, "DynamicQuantizeLSTM",
        "The one integer LSTM, with int8 weights; it quantizes its inputs and states itself.", False,
    ),
    Row("aten.add", "Add", Role.ARITHMETIC, "QLinearAdd", "Add of two quantized tensors is QLinearAdd."),
    Row("aten.mul", "Mul", Role.ARITHMETIC, "QLinearMul", "Mul of two quantized tensors is QLinearMul."),
    Row("aten.cat", "Concat", Role.ARITHMETIC, "QLinearConcat", "QLinearConcat requantizes every input.", False),
    Row("aten.avg_pool2d", "AveragePool", Role.ARITHMETIC, "QLinearAveragePool", "Sums codes in int32.", False),
    Row("aten.avg_pool1d", "AveragePool", Role.ARITHMETIC, "QLinearAveragePool", "Takes one spatial axis too.", False),
    Row(
        "aten.adaptive_avg_pool2d", "GlobalAveragePool", Role.ARITHMETIC, "QLinearGlobalAveragePool",
        "Global pooling sums codes; written as ReduceMean it would stay float32.", False,
    ),
    Row(
        "aten.adaptive_avg_pool1d", "GlobalAveragePool", Role.ARITHMETIC, "QLinearGlobalAveragePool",
        "Takes one spatial axis as well.", False,
    ),
    Row("aten.sigmoid", "Sigmoid", Role.ARITHMETIC, "QLinearSigmoid", "A table of 256 codes.", False),
    Row("aten.leaky_relu", "LeakyRelu", Role.ARITHMETIC, "QLinearLeakyRelu", "A table of 256 codes.", False),
    Row("aten.relu", "Relu", Role.CLIP, "", "The lowest code is 0: the quantizer's saturation is the ReLU."),
    Row("aten.relu6", "Clip", Role.CLIP, "", "The quantizer's range is 0..6; a Clip between Q/DQ would stay float32."),
    Row("aten.hardtanh", "Clip", Role.CLIP, "", "The quantizer's range is the clip's, or codes are clipped."),
    Row("aten.clamp", "Clip", Role.CLIP, "", "The quantizer's range is the clip's, or codes are clipped."),
    Row("aten.max_pool2d", "MaxPool", Role.MOVE, "MaxPool", "The largest code is the largest value; runs on uint8."),
    Row("aten.max_pool1d", "MaxPool", Role.MOVE, "MaxPool", "Takes one spatial axis as well."),
    Row("aten.flatten", "Reshape", Role.MOVE, "Reshape", "Moves codes."),
    Row("aten.reshape", "Reshape", Role.MOVE, "Reshape", "Moves codes."),
    Row("aten.squeeze", "Squeeze", Role.MOVE, "Squeeze", "Moves codes."),
    Row("aten.unsqueeze", "Unsqueeze", Role.MOVE, "Unsqueeze", "Moves codes."),
    Row("aten.permute", "Transpose", Role.MOVE, "Transpose", "Moves codes."),
    Row("aten.transpose", "Transpose", Role.MOVE, "Transpose", "Moves codes."),
    Row("aten.slice", "Slice", Role.MOVE, "Slice", "Moves codes; a split is slices, as Split would stay float32."),
    Row("aten.select", "Gather", Role.MOVE, "Gather", "Picks codes."),
    Row("aten.index_select", "Gather", Role.MOVE, "Gather", "Picks codes."),
    Row("aten.pad", "Pad", Role.MOVE, "Pad", "Exported as a Pad of codes: one between Q/DQ would stay float32."),
    Row("aten.pixel_shuffle", "DepthToSpace", Role.MOVE, "DepthToSpace", "Moves codes."),
    Row("aten.upsample_nearest2d", "Resize", Role.MOVE, "Resize", "Nearest-neighbour resizing copies codes."),
)  # fmt: skip

# Why an ONNX operator is float32 in every onnxruntime so far, for the operators people ask about.
FLOAT_REASONS = {
    "ConvTranspose": "onnxruntime's CPU provider has no integer transposed convolution",
    "HardSwish": "no integer HardSwish kernel",
    "Gelu": "no integer Gelu kernel",
    "LayerNormalization": "no integer LayerNormalization kernel",
    "ReduceMean": "no integer ReduceMean kernel; a mean over height and width is exported as GlobalAveragePool",
    "Attention": "attention that was not taken apart: with grouped queries, or dropout at inference",
    "Einsum": "no integer Einsum kernel; written as matmul it has one",
    "Softmax": "the integer Softmax kernel is slower than the float32 one, and rounds what it exponentiates",
    "LSTM": "the only integer LSTM is DynamicQuantizeLSTM",
    "GRU": "onnxruntime has no integer GRU",
    "Clip": "a Clip between quantized tensors has no integer kernel",
}

# What of these an ATen operator becomes.
_EXPORTED = {
    "aten.conv_transpose2d": "ConvTranspose", "aten.hardswish": "HardSwish", "aten.gelu": "Gelu",
    "aten.layer_norm": "LayerNormalization", "aten.softmax": "Softmax", "aten._safe_softmax": "Softmax",
    "aten.scaled_dot_product_attention": "Attention", "aten.einsum": "Einsum", "aten.lstm": "LSTM", "aten.gru": "GRU",
}  # fmt: skip

# Those that stand between integer layers of attention and are counted with them, although they multiply nothing.
FLOAT_ISLANDS = frozenset(("LayerNormalization", "Softmax", "Gelu"))

BY_ATEN = {row.aten: row for row in TABLE}


def reason_without_row(aten: str) -> str:
    """Why an ATen operator without a row runs in float32."""
    exported = _EXPORTED.get(aten)
    return FLOAT_REASONS[exported] if exported else f"{aten} has no integer kernel in onnxruntime's CPU provider"


def reason_for_float(onnx_operator: str) -> str:
    """Why a node of this ONNX operator runs in float32 although the model is quantized."""
    if onnx_operator in FLOAT_REASONS:
        return FLOAT_REASONS[onnx_operator]
    kernel = next((row.kernel for row in TABLE if row.onnx == onnx_operator and row.kernel), None)
    if kernel:
        return f"not every input and output is quantized, so it is not fused to {kernel}"
    return f"onnxruntime's CPU provider has no integer kernel for {onnx_operator}"
