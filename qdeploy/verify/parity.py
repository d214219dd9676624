"""Hold every layer of an artifact against integer arithmetic, on real samples.

The codes that leave each layer in onnxruntime are compared with core.affine's answer for the codes that entered it:
an error cannot hide behind another, and one wrong rounding in one layer is seen. On the way, what quantization costs
each layer is measured against the float32 model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.core import affine
from qdeploy.core.errors import QDeployError
from qdeploy.runtimes.onnxruntime import Runtime, optimized_graph
from qdeploy.verify import reference
from qdeploy.verify.artifact import IntegerLayer, expose, integer_layers, parse
from qdeploy.verify.coverage import INTEGER_KERNELS, kernels_by_layer, runs_in_integers
from qdeploy.verify.dynamic import DynamicLayer, dynamic_layers
from qdeploy.verify.lookups import LOOKUP
from qdeploy.verify.quantized import Quantized

Feeds = Mapping[str, NDArray[Any]]
_LAYOUT = {"Transpose", "Reshape", "Flatten", "QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput"}


@dataclass(slots=True)
class LayerParity:
    """What was seen of one layer. ``exact``: the reference claims every bit; else at most one step may differ."""

    name: str
    op: str
    exact: bool
    value: str  # the name of the value that leaves it
    kernel: str = ""  # the operator in the graph that runs
    outputs_checked: int = 0
    differing_codes: int = 0
    max_step: int = 0
    sqnr_db: float | None = None
    sqnr_local_db: float | None = None
    _cumulative: _Sqnr = field(default_factory=lambda: _Sqnr())
    _local: _Sqnr = field(default_factory=lambda: _Sqnr())


@dataclass(frozen=True, slots=True)
class Parity:
    """The result over all samples."""

    samples: int
    layers: tuple[LayerParity, ...]

    @property
    def differing_codes(self) -> int:
        """Differing codes over the layers that must be exact."""
        return sum(layer.differing_codes for layer in self.layers if layer.exact)

    @property
    def outputs_checked(self) -> int:
        """Codes compared over the layers that must be exact."""
        return sum(layer.outputs_checked for layer in self.layers if layer.exact)


def parity(model: bytes, batches: Iterable[Feeds], *, float_model: bytes | None = None) -> Parity:
    """Compare ``model`` layer by layer with the integer reference on ``batches`` of its inputs.

    With ``float_model``, the float32 model whose values have the same names, each layer's SQNR is measured as well:
    deployed against float32 on the same model input, and of the layer alone on float32 inputs.
    """
    proto = parse(model)
    layers = [layer for layer in integer_layers(proto) if reference.supports(layer)]
    dynamic = dynamic_layers(proto)
    runtime = _instrumented(proto, layers, [name for own in dynamic for name in (own.input, own.output)])
    plain = Runtime(proto.SerializeToString())
    floats = (
        _Floats(float_model, layers, [name for own in dynamic for name in (own.input, own.output)])
        if float_model is not None
        else None
    )
    kernels = kernels_by_layer(onnx.load_from_string(optimized_graph(proto.SerializeToString())), proto)
    results = {layer.name: _result(layer, kernels) for layer in layers}
    for own in dynamic:
        results[own.name] = LayerParity(own.name, own.op, False, own.output, kernels.get(own.name, own.op))
    samples = 0
    for feeds in batches:
        values = {**feeds, **runtime.run(feeds)}
        if runs_in_integers(kernels.values()):
            _require_same_answers(plain.run(feeds), values)
        reals = floats.run(feeds) if floats else {}
        samples += len(next(iter(feeds.values())))
        for layer in layers:
            _compare(layer, values, results[layer.name])
            _measure(layer, values, reals, results[layer.name])
        for own in dynamic:
            _compare_dynamic(own, {**feeds, **values}, reals, results[own.name])
    for result in results.values():
        result.sqnr_db, result.sqnr_local_db = result._cumulative.decibels(), result._local.decibels()
    return Parity(samples, tuple(results[node.name] for node in proto.graph.node if node.name in results))


def sqnr_db(reference_values: NDArray[Any], noisy: NDArray[Any]) -> float:
    """10 log10(signal power / noise power), in decibels; infinite for identical values."""
    ratio = _Sqnr()
    ratio.add(reference_values, noisy)
    decibels = ratio.decibels()
    return math.inf if decibels is None else decibels


def _result(layer: IntegerLayer, kernels: Mapping[str, str]) -> LayerParity:
    value = layer.output.name if layer.output is not None else layer.value
    kernel = "" if layer.op == LOOKUP else kernels.get(layer.name) or kernels.get(value)
    return LayerParity(layer.name, layer.op, layer.op in reference.EXACT, value, kernel or layer.op)


def _instrumented(proto: onnx.ModelProto, layers: list[IntegerLayer], values: list[str]) -> Runtime:
    """The artifact with every layer's codes and ``values`` as outputs, after checking that this changed no kernel."""
    wanted = [
        q.codes for layer in layers for q in (*layer.inputs, layer.output) if q is not None and q.constant is None
    ]
    wanted += [*(layer.value for layer in layers if layer.output is None), *values]
    inputs = {value.name for value in proto.graph.input}
    exposed = expose(proto, [name for name in dict.fromkeys(wanted) if name not in inputs])
    before, after = _kernels(proto.SerializeToString()), _kernels(exposed)
    if before != after:
        raise QDeployError(
            f"Reading this model's codes changes its kernels: {dict(before - after)} became {dict(after - before)}.",
            "Layer parity cannot be measured on it with this version of onnxruntime.",
        )
    return Runtime(exposed)


def _require_same_answers(plain: Feeds, instrumented: Feeds) -> None:
    """The codes that were checked are those of the artifact only if reading them changed nothing.

    onnxruntime merges a quantizer behind another one, for instance, unless somebody reads the codes in between.
    """
    for name, value in plain.items():
        if not np.array_equal(value, instrumented[name]):
            raise QDeployError(
                f"Reading this model's codes changes its output {name!r}: onnxruntime runs another graph without.",
                "Look for a value that is quantized twice in a row.",
            )


def _kernels(model: bytes) -> Counter[str]:
    graph = onnx.load_from_string(optimized_graph(model)).graph
    found = Counter(node.op_type.removeprefix("Nhwc") for node in graph.node)
    return Counter({op: n for op, n in found.items() if op in INTEGER_KERNELS or op not in _LAYOUT})


def _compare(layer: IntegerLayer, values: Feeds, result: LayerParity) -> None:
    expected = reference.answer(layer, [_codes(x, values) for x in layer.inputs if x.constant is None])
    found = values[layer.output.codes if layer.output is not None else layer.value]
    result.outputs_checked += expected.size
    shapes = {values[x.codes].shape for x in layer.inputs if x.constant is None}
    if layer.op == "Add" and len(shapes) > 1:
        # Which operand the kernel multiplies first depends on the layout that onnxruntime chose.
        result.exact = False
    if layer.output is None:
        # float32(acc) * float32(scale): equal bit for bit, or counted.
        result.differing_codes += int((expected.view(np.int32) != found.view(np.int32)).sum())
        return
    steps = np.abs(expected.astype(np.int32) - found.astype(np.int32))
    result.differing_codes += int((steps > 0).sum())
    result.max_step = max(result.max_step, int(steps.max(initial=0)))


def _compare_dynamic(layer: DynamicLayer, values: Feeds, reals: Feeds, result: LayerParity) -> None:
    """A value is compared in steps: what a single other code of what is read may change."""
    x, found = values[layer.input], values[layer.output]
    differing = np.rint(np.abs(layer.answer(x) - found) / max(layer.step(x), np.finfo(np.float32).tiny))
    result.outputs_checked += found.size
    result.differing_codes += int((differing > 0).sum())
    result.max_step = max(result.max_step, int(differing.max(initial=0)))
    wanted, entering = reals.get(layer.output), reals.get(layer.input.removesuffix(":real"))
    if wanted is not None:
        result._cumulative.add(wanted, found)
        if entering is not None:
            result._local.add(wanted, layer.answer(entering))


def _measure(layer: IntegerLayer, values: Feeds, reals: Feeds, result: LayerParity) -> None:
    name = layer.output.name if layer.output is not None else layer.value
    wanted = reals.get(name)
    if wanted is None:
        return
    if layer.output is None:
        result._cumulative.add(wanted, values[layer.value])
    else:
        result._cumulative.add(wanted, _real(layer.output, values[layer.output.codes]))
    entering = [reals.get(x.name) for x in layer.inputs if x.constant is None]
    if all(x is not None for x in entering):
        quantizers = [x for x in layer.inputs if x.constant is None]
        codes = [real if real.dtype.kind == "i" else affine.quantize(real, x.scale, x.zero_point, x.scheme)
                 for real, x in zip(entering, quantizers, strict=True) if real is not None]  # fmt: skip
        alone = reference.answer(layer, codes)
        result._local.add(wanted, alone if layer.output is None else _real(layer.output, alone))


def _codes(value: Quantized, values: Feeds) -> NDArray[Any]:
    return values[value.codes]


def _real(value: Quantized, codes: NDArray[Any]) -> NDArray[np.float32]:
    return affine.dequantize(codes, value.dequantize_scale, value.zero_point)


class _Floats:
    """The float32 model with the values that correspond to quantized ones as outputs."""

    def __init__(self, model: bytes, layers: list[IntegerLayer], values: list[str]) -> None:
        proto = parse(model)
        computed = {name for node in proto.graph.node for name in node.output}
        wanted = {q.name for layer in layers for q in (*layer.inputs, layer.output) if q is not None}
        wanted |= {layer.value for layer in layers if layer.output is None}
        wanted |= {name.removesuffix(":real") for name in values}
        self.runtime = Runtime(expose(proto, sorted(wanted & computed)))

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        return {**feeds, **self.runtime.run({name: feeds[name] for name in self.runtime.inputs})}


class _Sqnr:
    """Signal and noise power, summed over batches."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, wanted: NDArray[Any], found: NDArray[Any]) -> None:
        exact = wanted.astype(np.float64)
        self.signal += float(np.square(exact).sum())
        self.noise += float(np.square(found - exact).sum())

    def decibels(self) -> float | None:
        """None where there is nothing to compare, or no noise at all."""
        if self.signal == 0 or self.noise == 0:
            return None
        return 10 * math.log10(self.signal / self.noise)
