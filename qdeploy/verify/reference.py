"""What each integer kernel must answer, in integers: the reference that the artifact is held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core import affine
from qdeploy.verify.artifact import IntegerLayer, Quantized

Codes = NDArray[Any]

# Operators whose kernels the reference reproduces bit for bit, on every input.
EXACT = ("Conv", "Gemm", "Add", "MaxPool")


def supports(layer: IntegerLayer) -> bool:
    """Whether there is a reference for this layer."""
    if layer.op in ("Conv", "Gemm"):
        weight = layer.inputs[1]
        plain = weight.constant is not None and not np.any(weight.zero_point)
        return plain and (layer.op == "Gemm" or layer.output is not None)
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
        return affine.gemm_float(accumulator, x.scale, weight.scale)
    return _requantize(layer, accumulator, x, weight, layer.output)


def _requantize(
    layer: IntegerLayer, accumulator: NDArray[np.int64], x: Quantized, weight: Quantized, y: Quantized
) -> NDArray[Any]:
    factor = affine.multiplier(x.scale, weight.scale, y.scale)
    return affine.requantize(accumulator, factor, int(y.zero_point), y.scheme)


def _add(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    (a, b), y = layer.inputs, layer.output
    assert y is not None
    return affine.add(
        inputs[0], float(a.scale), int(a.zero_point), inputs[1], float(b.scale), int(b.zero_point),
        float(y.scale), int(y.zero_point), y.scheme,
    )  # fmt: skip


def _max_pool(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    attributes, x = layer.attributes, inputs[0]
    kernel = attributes["kernel_shape"]
    spatial = len(kernel)
    pads = attributes.get("pads", [0] * 2 * spatial)
    strides, dilations = attributes.get("strides", [1] * spatial), attributes.get("dilations", [1] * spatial)
    lowest = np.iinfo(x.dtype).min
    extra = (
        _ceil_padding(x.shape[2:], kernel, strides, pads, dilations) if attributes.get("ceil_mode") else [0] * spatial
    )
    widths = [(0, 0), (0, 0), *((pads[i], pads[spatial + i] + extra[i]) for i in range(spatial))]
    windows = _windows(np.pad(x, widths, constant_values=lowest), kernel, strides, dilations)
    return windows.max(axis=tuple(range(-spatial, 0)))


def _ceil_padding(
    size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """What ceil_mode adds behind each axis so that the last, partial window is a whole one."""
    extra = []
    for i, n in enumerate(size):
        slack = (n + pads[i] + pads[len(size) + i] - (dilations[i] * (kernel[i] - 1) + 1)) % strides[i]
        extra.append((strides[i] - slack) % strides[i])
    return extra


def _average_pool(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    attributes, x = layer.attributes, layer.inputs[0]
    kernel = attributes["kernel_shape"]
    spatial = len(kernel)
    pads = attributes.get("pads", [0] * 2 * spatial)
    widths = [(0, 0), (0, 0), *((pads[i], pads[spatial + i]) for i in range(spatial))]
    strides = attributes.get("strides", [1] * spatial)
    ones = [1] * spatial
    axes = tuple(range(-spatial, 0))
    real = affine.dequantize(inputs[0], x.scale, x.zero_point).astype(np.float64)
    total = _windows(np.pad(real, widths), kernel, strides, ones).sum(axis=axes)
    counted = np.ones(inputs[0].shape[2:])[None, None]
    counted = np.pad(counted, widths, constant_values=float(attributes.get("count_include_pad", 0)))
    return _quantize(total / _windows(counted, kernel, strides, ones).sum(axis=axes), layer)


def _global_average_pool(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    x = layer.inputs[0]
    axes = tuple(range(2, inputs[0].ndim))
    mean = inputs[0].astype(np.int64).sum(axis=axes, keepdims=True) / np.prod(inputs[0].shape[2:])
    return _quantize((mean - float(x.zero_point)) * float(x.scale), layer)


def _concat(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    parts = [affine.dequantize(c, x.scale, x.zero_point) for c, x in zip(inputs, layer.inputs, strict=True)]
    return _quantize(np.concatenate(parts, axis=layer.attributes["axis"]), layer)


def _multiply(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    a, b = (affine.dequantize(c, x.scale, x.zero_point) for c, x in zip(inputs, layer.inputs, strict=True))
    return _quantize(a.astype(np.float64) * b, layer)


def _sigmoid(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    x = layer.inputs[0]
    return _quantize(1 / (1 + np.exp(-affine.dequantize(inputs[0], x.scale, x.zero_point).astype(np.float64))), layer)


def _leaky_relu(layer: IntegerLayer, inputs: Sequence[Codes]) -> NDArray[Any]:
    x = layer.inputs[0]
    real = affine.dequantize(inputs[0], x.scale, x.zero_point)
    return _quantize(np.where(real < 0, real * np.float32(layer.attributes.get("alpha", 0.01)), real), layer)


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
    windows = np.lib.stride_tricks.sliding_window_view(x, extent, axis=tuple(range(2, 2 + spatial)))  # type: ignore[call-overload]
    every: Any = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    taps: Any = (..., *(slice(None, None, d) for d in dilations))
    result: NDArray[Any] = windows[every][taps]
    return result


_REFERENCES: dict[str, Callable[[IntegerLayer, Sequence[Codes]], NDArray[Any]]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "Add": _add,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "Concat": _concat,
    "Mul": _multiply,
    "Sigmoid": _sigmoid,
    "LeakyRelu": _leaky_relu,
}
