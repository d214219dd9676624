"""Weights at their true width: exactly so many bytes, the same answers, the same kernels."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from qdeploy.core import scheme as schemes
from qdeploy.core.scheme import QScheme
from qdeploy.export.passes.pack_weights import pack, packed_bytes
from qdeploy.export.to_onnx import to_onnx
from qdeploy.runtimes.onnxruntime import Runtime, optimized_graph
from qdeploy.verify.inspection import layers_of
from tests.networks import Built, Net, build, conv, samples


def codebook(bits: int, *magnitudes: int) -> QScheme:
    return QScheme(bits, signed=True, codebook=tuple(sorted({*magnitudes, *(-m for m in magnitudes)})))


SCHEMES = {
    "sign": codebook(1, 1),
    **{f"{bits} bits": schemes.weight(bits) for bits in range(2, 8)},
    "3 bits with -4": QScheme(3, signed=True),
    "mid-rise": codebook(2, 1, 3),
    "3-bit codebook": codebook(3, 0, 1, 9, 127),
    "additive powers of two": codebook(4, 0, 1, 2, 4, 8, 16, 32, 48),
    "5-bit codebook": codebook(5, *range(0, 120, 8)),
    "7-bit codebook": codebook(7, *range(1, 128, 2)),
}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
SHAPES = [(1,), (3,), (7, 1), (5, 3, 3), (2, 2, 2), (8, 4, 3, 3), (13, 1, 1, 1), (3, 85)]


def random_codes(scheme: QScheme, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    values = scheme.codebook or range(scheme.qmin, scheme.qmax + 1)
    return np.random.default_rng(seed).choice(np.array(values, scheme.dtype), shape)


def stored_alone(codes: np.ndarray, scheme: QScheme) -> onnx.ModelProto:
    """A model that answers with a packed weight."""
    output = helper.make_tensor_value_info("output", onnx.TensorProto.INT8, codes.shape)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["output"])], "g", [], [output], [numpy_helper.from_array(codes, "w")]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = ir.from_proto(proto)
    pack(model, [(model.graph.initializers["w"], scheme)])
    packed = ir.to_proto(model)
    onnx.checker.check_model(packed, full_check=True)
    return packed


def stored_size(proto: onnx.ModelProto, name: str) -> int:
    (tensor,) = (t for t in proto.graph.initializer if t.name == name)
    return len(tensor.raw_data)


# ------------------------------------------------------------------------------------------------------------- layout


@every_scheme
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packing_is_exact_in_bytes_and_codes(scheme, shape):
    """With onnxruntime's optimizer, without it, and by onnx's reference."""
    codes = random_codes(scheme, shape)
    proto = stored_alone(codes, scheme)
    assert stored_size(proto, "w") == math.ceil(codes.size * scheme.bits / 8)
    plain = ort.SessionOptions()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for found in (
        *Runtime(proto.SerializeToString()).run({}).values(),
        *ort.InferenceSession(proto.SerializeToString(), plain).run(None, {}),
        *ReferenceEvaluator(proto).run(None, {}),
    ):
        assert found.dtype == codes.dtype
        np.testing.assert_array_equal(found, codes)


def test_the_layout_is_fields_of_all_weights_one_after_the_other():
    """Three bits are a field of two, the low ones, and a field of one, in two's complement."""
    codes = np.array([0, 1, 2, 3, -1, -2, -3, -4], np.int8)
    low, high = [0, 1, 2, 3, 3, 2, 1, 0], [0, 0, 0, 0, 1, 1, 1, 1]
    bits = [bit for value in low for bit in (value & 1, value >> 1)] + high
    expected = np.packbits(np.array(bits, np.uint8), bitorder="little")
    np.testing.assert_array_equal(packed_bytes(codes, QScheme(3, signed=True)), expected)


def test_an_empty_weight_and_one_of_eight_bits_are_left_alone():
    for scheme, codes in ((schemes.weight(3), np.zeros((0, 4), np.int8)), (schemes.weight(8), np.ones(9, np.int8))):
        proto = stored_alone(codes, scheme)
        assert [node.op_type for node in proto.graph.node] == ["Identity"]
        assert stored_size(proto, "w") == codes.size


# ----------------------------------------------------------------------------------------------------------- networks


def network() -> Net:
    """Sizes that are no multiples of eight; a convolution of every kind."""
    torch.manual_seed(0)
    return Net(
        lambda m, x: m.fc(m.c(m.b(m.a(x).relu()).relu()).relu().mean((2, 3))),
        a=conv(3, 5), b=conv(5, 5, groups=5), c=conv(5, 7, 1), fc=nn.Linear(7, 3),
    )  # fmt: skip


IMAGES = samples(4, 3, 8, 8)


@every_scheme
def test_integer_kernels_give_the_same_answers(scheme):
    """And nothing of the unpacking is left in the graph that runs."""
    packed = build(network(), IMAGES, weight=scheme)
    plain = to_onnx(packed.graph, IMAGES, packing="none")
    np.testing.assert_array_equal(packed.run()[0], Runtime(plain).run(packed.feeds)["output"])
    assert packed.kernels["QLinearConv"] == 3
    assert packed.kernels["QGemm"] == 1
    assert packed.running == Built(packed.net, packed.example, packed.graph, packed.placement, plain).running
    seen = packed.parity()
    assert [layer.op for layer in seen.layers] == ["Conv", "Conv", "Conv", "GlobalAveragePool", "Gemm"]
    assert seen.differing_codes == 0
    assert packed.coverage.integer_mac_share == 1
    assert {r.weight_bits for r in layers_of(packed.model, packed.coverage) if r.macs} == {scheme.bits}
    for name, shape in {"a": (5, 3, 3, 3), "b": (5, 1, 3, 3), "c": (7, 5, 1, 1), "fc": (3, 7)}.items():
        proto = onnx.load_from_string(packed.model)
        assert stored_size(proto, f"{name}.weight") == math.ceil(math.prod(shape) * scheme.bits / 8)


@pytest.mark.parametrize("name", ["sign", "3 bits", "4 bits", "7 bits", "additive powers of two"])
def test_the_file_is_smaller_by_what_was_packed(name):
    scheme = SCHEMES[name]
    net = Net(lambda m, x: m.b(m.a(x).relu()), a=conv(64, 64), b=conv(64, 64))
    packed = build(net, samples(2, 64, 6, 6), weight=scheme)
    plain = to_onnx(packed.graph, packed.example, packing="none")
    saved = 2 * 64 * 64 * 9 * (8 - scheme.bits) // 8
    unpacking = 4096  # the function, once for all layers, and two calls
    assert len(plain) - saved <= len(packed.model) < len(plain) - saved + unpacking
    assert packed.model == to_onnx(packed.graph, packed.example)


def test_what_unpacks_is_defined_once_for_each_scheme():
    net = Net(lambda m, x: m.c(m.b(m.a(x))), a=conv(), b=conv(), c=conv())
    built = build(net, samples(2, 8, 6, 6), weight=schemes.weight(2))
    proto = onnx.load_from_string(built.model)
    assert [function.name for function in proto.functions] == ["unpack_2bit"]
    assert [node.name for node in proto.graph.node if node.op_type == "unpack_2bit"] == [
        "a.weight:codes", "b.weight:codes", "c.weight:codes",
    ]  # fmt: skip
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 21), ("qdeploy", 1)]


def test_schemes_of_one_width_do_not_mix():
    """Two codebooks, a plain scheme, sizes that fill bytes and sizes that do not."""
    weights = {"a": codebook(3, 0, 1, 2, 5), "b": codebook(3, 0, 3, 7, 90), "c": schemes.weight(3)}
    for shape in ((8, 8), (3, 5)):
        codes = {name: random_codes(scheme, shape, seed=3) for name, scheme in weights.items()}
        graph = helper.make_graph(
            [helper.make_node("Identity", [name], [f"{name}.output"]) for name in codes], "g", [],
            [helper.make_tensor_value_info(f"{name}.output", onnx.TensorProto.INT8, shape) for name in codes],
            [numpy_helper.from_array(array, name) for name, array in codes.items()],
        )  # fmt: skip
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        model = ir.from_proto(proto)
        pack(model, [(model.graph.initializers[name], scheme) for name, scheme in weights.items()])
        packed = ir.to_proto(model)
        assert len(packed.functions) == 3
        found = Runtime(packed.SerializeToString()).run({})
        for name, expected in codes.items():
            np.testing.assert_array_equal(found[f"{name}.output"], expected)


def test_a_shared_module_is_packed_once():
    shared = conv(16, 16)
    built = build(Net(lambda m, x: m.a(m.a(x).relu()), a=shared), samples(2, 16, 6, 6), weight=schemes.weight(4))
    proto = onnx.load_from_string(built.model)
    weights = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT4]
    assert [(t.name, len(t.raw_data)) for t in weights] == [("a.weight", 16 * 16 * 9 // 2)]
    assert built.kernels["QLinearConv"] == 2
    assert built.parity().differing_codes == 0


def test_four_bits_are_the_standard_type():
    built = build(conv(), samples(2, 8, 6, 6), weight=schemes.weight(4))
    proto = onnx.load_from_string(built.model)
    (cast,) = (node for node in proto.graph.node if node.op_type == "Cast")
    assert [a.i for a in cast.attribute] == [onnx.TensorProto.INT8]
    assert not proto.functions
    assert "Cast" not in {node.op_type for node in onnx.load_from_string(optimized_graph(built.model)).graph.node}


def test_weights_without_packing_take_a_byte():
    net = Net(lambda m, x: m.a(x), a=conv())
    built = build(net, samples(2, 8, 6, 6), weight=schemes.weight(2), packing="none")
    proto = onnx.load_from_string(built.model)
    assert stored_size(proto, "a.weight") == 8 * 8 * 9
    assert not proto.functions
