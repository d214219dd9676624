"""What each integer kernel must answer, in integers: the reference that the artifact is held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core import affine, elementwise
from qdeploy.core.elementwise import Operand
from qdeploy.verify.artifact import IntegerLayer
from qdeploy.verify.lookups import LOOKUP
from qdeploy.verify.quantized import Quantized

Codes = NDArray[Any]

# Operators whose kernels the reference reproduces bit for bit, on every input.
EXACT = ("Conv", "Gemm", "MatMul", LOOKUP, "Add", "Mul", "MaxPool")


def supports(layer: IntegerLayer) -> bool:
    """Whether there is a reference for this layer."""
    if layer.attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return False
    if any(layer.attributes.get(name, 1) != 1 for name in ("alpha", "beta")) and layer.op == "Gemm":
        return False
    if layer.attributes.get("transA", 0):
        return False
    if layer.op in ("Conv", "Gemm"):
        weight = layer.inputs[1]
        plain = weight.constant is not None and not np.any(weight.zero_point)
        return plain and (layer.op == "Gemm" or layer.output is not None)
    if layer.op == "MatMul":
        return all(x.constant is None and x.scale.size == 1 for x in layer.inputs)
    if layer.op == LOOKUP:
        return layer.inputs[0].zero_point.dtype == np.int64  # not one that only moves codes
    return layer.op in _REFERENCES and layer.output is not None


def answer(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    """The output codes of ``layer`` for its activations' codes; float32 values where it has no output quantizer."""
    return _REFERENCES[layer.op](layer, inputs)


def _conv(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    x, weight, bias = _operands(layer)
    assert weight.constant is not None
    assert layer.output is not None
    spatial = weight.constant.ndim - 2
    accumulator = affine.conv_accumulate(
        inputs[0], int(x.zero_point), weight.constant, bias,
        strides=tuple(layer.attributes.get("strides", [1] * spatial)),
        pads=tuple(layer.attributes.get("pads", [0] * 2 * spatial)),
        dilations=tuple(layer.attributes.get("dilations", [1] * spatial)),
        group=layer.attributes.get("group", 1),
    )  # fmt: skip
    return _requantize(layer, accumulator, x, weight, layer.output)


def _gemm(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    x, weight, bias = _operands(layer)
    assert weight.constant is not None
    rows = weight.constant if layer.attributes.get("transB", 0) else weight.constant.T
    accumulator = affine.gemm_accumulate(inputs[0], int(x.zero_point), rows, bias)
    if layer.output is None:
        return affine.gemm_float(accumulator, x.dequantize_scale, weight.dequantize_scale)
    return _requantize(layer, accumulator, x, weight, layer.output)


def _matmul(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    """A product of two activations."""
    a, b = layer.inputs
    accumulator = affine.matmul_accumulate(inputs[0], int(a.zero_point), inputs[1], int(b.zero_point))
    if layer.output is None:
        return affine.gemm_float(accumulator, a.dequantize_scale, b.dequantize_scale)
    return _requantize(layer, accumulator, a, b, layer.output)


def _lookup(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    """Rows of the table: float32(code) * scale, rounded once."""
    indices, table = layer.inputs
    assert table.constant is not None
    picked = inputs[0] if indices.constant is None else indices.constant
    real: NDArray[Any] = table.constant[picked].astype(np.float32) * table.scale[picked][..., None]
    return real


def _requantize(
    layer: IntegerLayer, accumulator: NDArray[np.int64], x: Quantized, weight: Quantized, y: Quantized
) -> NDArray[Any]:
    factor = affine.multiplier(x.dequantize_scale, weight.dequantize_scale, y.scale)
    return affine.requantize(accumulator, factor, int(y.zero_point), y.scheme)


def _elementwise(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    left, right = inputs
    return elementwise.answer(layer.op, *operands(layer), left, right)


def operands(layer: IntegerLayer) -> tuple[Operand, Operand, Operand]:
    """The operands and the result of an addition or multiplication of two tensors."""
    (a, b), y = layer.inputs, layer.output
    assert y is not None
    first, second = (Operand(float(x.dequantize_scale), int(x.zero_point), x.scheme) for x in (a, b))
    return first, second, Operand(float(y.scale), int(y.zero_point), y.scheme)


def _max_pool(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    attributes, x, y = layer.attributes, layer.inputs[0], layer.output
    kernel, strides, pads, dilations = _geometry(attributes)
    spatial = len(kernel)
    lowest = np.iinfo(inputs[0].dtype).min
    padded = np.pad(inputs[0], _widths(pads), constant_values=lowest)
    if attributes.get("ceil_mode"):
        padded = _extend(padded, _ceil_padding(inputs[0].shape[2:], kernel, strides, pads, dilations), lowest)
    windows = _windows(padded, kernel, strides, dilations)
    largest = windows.max(axis=tuple(range(-spatial, 0)))
    assert y is not None
    return _quantize(_real(x, largest), layer)


def _geometry(attributes: dict[str, Any]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, strides, pads and dilations of a pooling operator, with ONNX's defaults."""
    kernel = list(attributes["kernel_shape"])
    ones = [1] * len(kernel)
    return (
        kernel, list(attributes.get("strides", ones)), list(attributes.get("pads", [0] * 2 * len(kernel))),
        list(attributes.get("dilations", ones)),
    )  # fmt: skip


def _widths(pads: Sequence[int]) -> list[tuple[int, int]]:
    """The padding widths of numpy for [N, C, *spatial]."""
    spatial = len(pads) // 2
    return [(0, 0), (0, 0), *((pads[i], pads[spatial + i]) for i in range(spatial))]


def _ceil_padding(
    size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """What ceil_mode adds behind each axis so that the last, partial window is a whole one.

    A window that would start in the padding behind is left out.
    """
    extra = []
    for i, n in enumerate(size):
        before, behind, reach = pads[i], pads[len(size) + i], dilations[i] * (kernel[i] - 1) + 1
        windows = -(-(n + before + behind - reach) // strides[i]) + 1
        if (windows - 1) * strides[i] >= n + before:
            windows -= 1
        extra.append((windows - 1) * strides[i] + reach - (n + before + behind))
    return extra


def _average_pool(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    """The mean over each window, of what there is: of padding too with count_include_pad, never of what lies beyond."""
    attributes, x = layer.attributes, layer.inputs[0]
    kernel, strides, pads, dilations = _geometry(attributes)
    axes = tuple(range(-len(kernel), 0))
    real = _real(x, inputs[0]).astype(np.float64)
    counted = np.pad(np.ones((1, 1, *real.shape[2:])), _widths(pads),
                     constant_values=float(attributes.get("count_include_pad", 0)))  # fmt: skip
    real = np.pad(real, _widths(pads))
    if attributes.get("ceil_mode"):
        extra = _ceil_padding(inputs[0].shape[2:], kernel, strides, pads, dilations)
        # A last window that is left out may leave less than the padding: then there is something to cut off.
        real, counted = (_extend(array, extra) for array in (real, counted))
    total = _windows(real, kernel, strides, dilations).sum(axis=axes)
    return _quantize(total / _windows(counted, kernel, strides, dilations).sum(axis=axes), layer)


def _extend(array: NDArray[Any], extra: Sequence[int], value: float = 0) -> NDArray[Any]:
    """``value`` behind each spatial axis of [N, C, *spatial], or that much less of it where ``extra`` is negative."""
    cut: Any = (..., *(slice(None, min(e, 0) or None) for e in extra))
    return np.pad(array[cut], [(0, 0), (0, 0), *((0, max(e, 0)) for e in extra)], constant_values=value)


def _global_average_pool(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    x = layer.inputs[0]
    axes = tuple(range(2, inputs[0].ndim))
    mean = inputs[0].astype(np.int64).sum(axis=axes, keepdims=True) / np.prod(inputs[0].shape[2:])
    return _quantize((mean - float(x.zero_point)) * float(x.dequantize_scale), layer)


def _concat(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    parts = [_real(x, codes) for x, codes in zip(layer.inputs, inputs, strict=True)]
    return _quantize(np.concatenate(parts, axis=layer.attributes["axis"]), layer)


def _sigmoid(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    x = layer.inputs[0]
    return _quantize(1 / (1 + np.exp(-_real(x, inputs[0]).astype(np.float64))), layer)


def _leaky_relu(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    x = layer.inputs[0]
    real = _real(x, inputs[0])
    return _quantize(np.where(real < 0, real * np.float32(layer.attributes.get("alpha", 0.01)), real), layer)


def _real(x: Quantized, codes: Codes) -> NDArray[np.float32]:
    return affine.dequantize(codes, x.dequantize_scale, x.zero_point)


def _quantize(real: NDArray[Any], layer: IntegerLayer) -> NDArray[Any]:
    y = layer.output
    assert y is not None
    return affine.quantize(real, y.scale, y.zero_point, y.scheme)


def _operands(layer: IntegerLayer) -> tuple[Quantized, Quantized, NDArray[np.int32] | None]:
    bias = layer.inputs[2].constant if len(layer.inputs) > 2 else None
    return layer.inputs[0], layer.inputs[1], bias


def _windows(x: NDArray[Any], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> NDArray[Any]:
    """Sliding windows over the spatial axes of [N, C, *spatial]: [N, C, *out, *kernel]."""
    spatial = len(kernel)
    extent = tuple(d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, extent, axis=tuple(range(2, 2 + spatial)))
    every: Any = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    taps: Any = (..., *(slice(None, None, d) for d in dilations))
    result: NDArray[Any] = windows[every][taps]
    return result


_REFERENCES: dict[str, Callable[[IntegerLayer, Sequence[Codes]], NDArray[Any]]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    LOOKUP: _lookup,
    "Add": _elementwise,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "Concat": _concat,
    "Mul": _elementwise,
    "Sigmoid": _sigmoid,
    "LeakyRelu": _leaky_relu,
}
