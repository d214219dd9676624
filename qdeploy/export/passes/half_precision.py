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
from qdeploy.export.passes.values import store_as

Storage = Literal["float32", "float16", "bfloat16"]
_SMALLEST = 64  # elements


def store(model: ir.Model, storage: Storage) -> None:
    """Store float32 tensors as ``storage``, in place; a QDeployError for a weight beyond its range."""
    if storage == "float32":
        return
    dtype = ir.DataType[storage.upper()].numpy()
    for value in list(model.graph.initializers.values()):
        if _is_weight(value):
            assert value.const_value is not None
            rounded = _rounded(str(value.name), value.const_value.numpy(), dtype)
            to = {"to": ir.DataType.FLOAT}
            store_as(model.graph, value, rounded, "Cast", name=f"{value.name}:float32", attributes=to)


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
