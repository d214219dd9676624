"""Store the weights of a float32 model in 16 bits.

A stored tensor becomes FLOAT16 or BFLOAT16 and a Cast to float32, which onnxruntime computes when it loads the model:
the file is half as large, and what the CPU computes with is float32. Rounding is to nearest, half to even. What stays
float32: the scales of quantizers, and tensors so small that the Cast would take more of the file than it saves.

Contract: in, a model whose constants are initializers; out, the same model with rounded weights.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir

from qdeploy.core.errors import QDeployError
from qdeploy.core.records import HalfPrecision
from qdeploy.export.passes.values import store_as

Storage = Literal["float32", "float16", "bfloat16"]
_SMALLEST = 64  # elements
_SMALLEST_NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126}


def store(model: ir.Model, storage: Storage) -> list[HalfPrecision]:
    """Store float32 tensors as ``storage``, in place, and say what that did to the values of each.

    QDeployError: a weight is beyond the range of the type.
    """
    done: list[HalfPrecision] = []
    if storage == "float32":
        return done
    dtype = ir.DataType[storage.upper()].numpy()
    for value in list(model.graph.initializers.values()):
        if _is_weight(value):
            assert value.const_value is not None
            weight = value.const_value.numpy()
            rounded = _rounded(str(value.name), weight, dtype)
            done.append(measure(str(value.name), weight, rounded))
            to = {"to": ir.DataType.FLOAT}
            store_as(model.graph, value, rounded, "Cast", name=f"{value.name}:float32", attributes=to)
    return done


def measure(name: str, weight: np.ndarray, stored: np.ndarray) -> HalfPrecision:
    """What became of the float32 values ``weight`` [...] in ``stored`` [...], of a 16-bit type."""
    exact, found = np.abs(weight.astype(np.float64)), np.abs(stored.astype(np.float64))
    beyond, zero = ~np.isfinite(found), (found == 0) & (exact != 0)
    kept = ~beyond & (found != 0)
    errors = np.abs(found - exact)[kept] / exact[kept]
    return HalfPrecision(
        name, weight.size, float(exact.max(initial=0.0)), overflows=int(beyond.sum()), zeros=int(zero.sum()),
        subnormals=int((kept & (found < _SMALLEST_NORMAL[stored.dtype.name])).sum()),
        relative_error=float(errors.max(initial=0.0)),
    )  # fmt: skip


def _is_weight(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _SMALLEST:
        return False
    return not any(use.node.op_type in ("QuantizeLinear", "DequantizeLinear") for use in value.uses())


def _rounded(name: str, weight: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded = weight.astype(dtype)
    beyond = np.isfinite(weight) & ~np.isfinite(rounded.astype(np.float32))
    if beyond.any():
        raise QDeployError(
            f"{name!r} holds {weight[beyond][0]:g}, which is beyond {dtype}.",
            "Store this model as bfloat16, which has float32's range, or as float32.",
        )
    return rounded
