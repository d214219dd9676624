"""Operators that onnxruntime has beyond ONNX, for translations to call. ONNX knows nothing of their arguments.

Arguments as in onnxruntime's docs/ContribOperators.md, as far as they are used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

_DOMAIN = Opset("com.microsoft", 1)
_OPTIONAL = OpSchema.FormalParameterOption.Optional


def _operator(
    name: str, inputs: Sequence[str], outputs: Sequence[str], attributes: dict[str, OpSchema.AttrType] | None = None
) -> Op:
    """An operator of "argument: type" inputs, with a "?" behind those that may be left out, and float32 outputs."""
    given = []
    for entry in inputs:
        argument, kind = entry.split(": ")
        option: dict[str, Any] = {"param_option": _OPTIONAL} if kind.endswith("?") else {}
        given.append(OpSchema.FormalParameter(argument, f"tensor({kind.rstrip('?')})", **option))
    schema = OpSchema(
        name, _DOMAIN.domain, _DOMAIN.version, inputs=given,
        outputs=[OpSchema.FormalParameter(output, "tensor(float)") for output in outputs],
        attributes=[OpSchema.Attribute(key, kind) for key, kind in (attributes or {}).items()],
    )  # fmt: skip
    return Op(_DOMAIN, name, schema)


DynamicQuantizeLSTM = _operator(
    "DynamicQuantizeLSTM",
    [
        *("X: float", "W: int8", "R: int8", "B: float?", "sequence_lens: int32?", "initial_h: float?"),
        *("initial_c: float?", "P: float?", "W_scale: float", "W_zero_point: int8", "R_scale: float"),
        "R_zero_point: int8",
    ],
    ["Y", "Y_h", "Y_c"],
    {"hidden_size": OpSchema.AttrType.INT, "direction": OpSchema.AttrType.STRING},
)

DynamicQuantizeMatMul = _operator(
    "DynamicQuantizeMatMul", ["A: float", "B: int8", "b_scale: float", "b_zero_point: int8?", "bias: float?"], ["Y"]
)
