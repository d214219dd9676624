"""ATen operators as the ONNX operators that onnxruntime has integer kernels for, where torch.onnx writes others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset21 as op

from qdeploy.core.errors import QDeployError
from qdeploy.export import microsoft
from qdeploy.quant import dynamic, ops

aten = torch.ops.aten

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def translations() -> dict[Any, Any]:
    """What torch.onnx.export takes as ``custom_translation_table``."""
    return {
        ops.quantize._opoverload: _quantize,
        ops.dequantize._opoverload: _dequantize,
        torch.ops.qdeploy.lstm.default: _lstm,
        dynamic.dynamic_lstm._opoverload: _dynamic_lstm,
        dynamic.dynamic_linear._opoverload: _dynamic_linear,
        aten.conv1d.default: _conv,
        aten.conv2d.default: _conv,
        aten.conv1d.padding: _conv_with_named_padding,
        aten.conv2d.padding: _conv_with_named_padding,
        aten.avg_pool1d.default: _avg_pool,
        aten.avg_pool2d.default: _avg_pool,
        aten.adaptive_avg_pool1d.default: _adaptive_avg_pool,
        aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
        aten.pad.default: _pad,
        aten.upsample_nearest2d.vec: _upsample_nearest,
        aten.relu6.default: _relu6,
        aten.hardtanh.default: _hardtanh,
        aten.clamp.default: _clamp,
    }


def _quantize(x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int) -> Any:
    """QuantizeLinear, and a Clip of the codes where fewer are in use than their container holds.

    On codes, not on values: a float32 Clip before the QuantizeLinear would keep the layer before it in float32.
    """
    codes = op.QuantizeLinear(x, scale, zero_point)
    dtype = zero_point.dtype.numpy()
    container = np.iinfo(dtype)
    if (qmin, qmax) == (container.min, container.max):
        return codes
    low, high = (_constant(limit, dtype) for limit in (qmin, qmax))
    return op.Clip(codes, low, high)


def _dequantize(codes: Any, scale: Any, zero_point: Any, axis: int) -> Any:
    if axis < 0:
        return op.DequantizeLinear(codes, scale, zero_point)
    return op.DequantizeLinear(codes, scale, zero_point, axis=axis)


def _lstm(x: Any, weight_ih: Any, weight_hh: Any, bias: Any, bidirectional: bool) -> Any:
    """LSTM. Its weights are stored as rows; constants.fold stores them in this shape."""
    directions, hidden = 1 + bidirectional, int(weight_hh.shape[1])
    w, r = (
        op.Reshape(rows, _constant([directions, 4 * hidden, int(rows.shape[1])], np.int64))
        for rows in (weight_ih, weight_hh)
    )
    direction = "bidirectional" if bidirectional else "forward"
    return op.LSTM(x, w, r, bias, hidden_size=hidden, direction=direction)


def _dynamic_lstm(
    x: Any, w_codes: Any, w_scale: Any, w_zero_point: Any, r_codes: Any, r_scale: Any, r_zero_point: Any, bias: Any,
    bidirectional: bool,
) -> Any:  # fmt: skip
    absent = [None] * 4  # lengths, initial states and peepholes
    return microsoft.DynamicQuantizeLSTM(
        x, w_codes, r_codes, bias, *absent, w_scale, w_zero_point, r_scale, r_zero_point,
        hidden_size=int(r_codes.shape[1]), direction="bidirectional" if bidirectional else "forward",
    )  # fmt: skip


def _dynamic_linear(x: Any, codes: Any, scale: Any, zero_point: Any, bias: Any) -> Any:
    return microsoft.DynamicQuantizeMatMul(x, codes, scale, zero_point, bias)


def _conv(
    x: Any, weight: Any, bias: Any = None, stride: Sequence[int] = (1,), padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,), groups: int = 1,
) -> Any:  # fmt: skip
    """A plain Conv. torch's own translation computes a bias of zeros where there is none, which unfuses the layer."""
    pads = _each(padding, len(weight.shape) - 2)
    return _conv_with_pads(x, weight, bias, stride, [*pads, *pads], dilation, groups)


def _conv_with_named_padding(
    x: Any, weight: Any, bias: Any = None, stride: Sequence[int] = (1,), padding: str = "valid",
    dilation: Sequence[int] = (1,), groups: int = 1,
) -> Any:  # fmt: skip
    """padding="same" pads by all that the kernel reaches over, an odd one behind."""
    kernel = [int(size) for size in weight.shape[2:]]
    reach = [d * (k - 1) for d, k in zip(_each(dilation, len(kernel)), kernel, strict=True)]
    reach = reach if padding == "same" else [0] * len(kernel)
    pads = [*(r // 2 for r in reach), *(r - r // 2 for r in reach)]
    return _conv_with_pads(x, weight, bias, stride, pads, dilation, groups)


def _conv_with_pads(
    x: Any, weight: Any, bias: Any, stride: Sequence[int], pads: list[int], dilation: Sequence[int], groups: int
) -> Any:
    spatial = len(weight.shape) - 2
    strides, dilations = _each(stride, spatial), _each(dilation, spatial)
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return op.Conv(*inputs, strides=strides, dilations=dilations, pads=pads, group=groups)


def _avg_pool(
    x: Any, kernel_size: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> Any:  # fmt: skip
    """AveragePool. torch's own translation leaves out ``divisor_override``, and so computes something else."""
    if divisor_override is not None:
        raise QDeployError(
            f"An average pool with divisor_override={divisor_override} has no ONNX operator.",
            "Multiply its result by a number instead.",
        )
    spatial = len(x.shape) - 2
    kernel, pads = _each(kernel_size, spatial), _each(padding, spatial)
    return op.AveragePool(
        x, kernel_shape=kernel, strides=_each(stride, spatial) if stride else kernel, pads=[*pads, *pads],
        ceil_mode=int(ceil_mode), count_include_pad=int(count_include_pad),
    )  # fmt: skip


def _adaptive_avg_pool(x: Any, output_size: Sequence[int]) -> Any:
    """To one value a channel it is GlobalAveragePool; torch's own translation, ReduceMean, has no integer kernel."""
    if any(size != 1 for size in output_size):
        raise QDeployError(
            f"An adaptive average pool of {tuple(x.shape[2:])} to {tuple(output_size)} has no ONNX operator.",
            "Make the input size a multiple of the output size, or pool with a fixed kernel.",
        )
    return op.GlobalAveragePool(x)


def _pad(x: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """Pad. torch counts axes from the last, with both ends of one beside each other."""
    rank = len(x.shape)
    begins, ends = [0] * rank, [0] * rank
    for i in range(len(pad) // 2):
        begins[rank - 1 - i], ends[rank - 1 - i] = int(pad[2 * i]), int(pad[2 * i + 1])
    pads = _constant([*begins, *ends], np.int64)
    if mode == "constant":
        return op.Pad(x, pads, _constant(float(value or 0.0), np.float32))
    return op.Pad(x, pads, mode=_PAD_MODES[mode])


def _upsample_nearest(x: Any, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None) -> Any:
    """Resize by whole factors; normalization has turned every other one into index_select."""
    assert scale_factors is not None
    scales = _constant([1.0, 1.0, *scale_factors], np.float32)
    return op.Resize(x, None, scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def _relu6(x: Any) -> Any:
    return _clamp(x, 0.0, 6.0)


def _hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    return _clamp(x, min_val, max_val)


def _clamp(x: Any, min: float | None = None, max: float | None = None) -> Any:  # noqa: A002
    dtype = np.float32 if x.dtype is None else x.dtype.numpy()  # ids are clipped as well
    low, high = (None if v is None else _constant(v, dtype) for v in (min, max))
    return op.Clip(x, low, high)


def _constant(values: Any, dtype: Any) -> Any:
    """Stored numbers, [] or [K]."""
    tensor: Any = ir.tensor(np.asarray(values, dtype))
    return op.Constant(value=tensor)


def _each(value: Sequence[int], axes: int) -> list[int]:
    """One number an axis, where one number may stand for all."""
    return [int(v) for v in value] * (axes if len(value) == 1 else 1)
