"""OpenVINO: integer kernels of its own, which round ties in other ways than onnxruntime, and what it does not load."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qdeploy import runner
from qdeploy.core import scheme
from qdeploy.core.errors import QDeployError
from qdeploy.export.passes.pack_weights import pack
from qdeploy.runtimes.openvino import Runtime
from qdeploy.targets.qemu import Target
from tests.bundles import float_model, integer_model

SCALE = np.float32(0.02)  # of the activations below
FEED = {"input": np.random.default_rng(0).uniform(0, 1, (500, 1, 8, 8)).astype(np.float32)}


def here(model: bytes, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return runner.run_session(runner.make_session(model, 1), dict(feeds))


def check_but_for_ties(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to float rounding; but where a value lay in the middle of two codes, off by what one step changes."""
    difference = np.abs(found - expected)
    assert difference.max() < 0.01 * np.ptp(expected)
    assert np.mean(difference.max(axis=1) > 1e-5) < 0.05  # of the samples


def kernels(loaded: Runtime) -> dict[str, str]:
    """Layer -> type of what OpenVINO runs, as it says itself."""
    operations = loaded._request.get_compiled_model().get_runtime_model().get_ordered_ops()
    about = [operation.get_rt_info() for operation in operations]
    return {info["layerType"].astype(str): info["runtimePrecision"].astype(str) for info in about}


# ------------------------------------------------------------------------------------------------------------ answers


def test_the_layers_of_an_integer_model_run_in_integer_kernels():
    integer, floating = kernels(Runtime(integer_model(), threads=1)), kernels(Runtime(float_model(), threads=1))
    assert (integer["Convolution"], integer["FullyConnected"]) == ("u8", "u8")
    assert (floating["Convolution"], floating["FullyConnected"]) == ("f32", "f32")


def test_floats_are_float32_also_where_the_cpu_has_bfloat16():
    """bfloat16 has 8 bits of mantissa: it would be off by 1e-3."""
    expected = here(float_model(), FEED)["output"]
    np.testing.assert_allclose(Runtime(float_model(), threads=1).run(FEED)["output"], expected, atol=1e-5)


def test_decisions_of_an_integer_model_are_those_of_onnxruntime():
    found, expected = Runtime(integer_model(), threads=1).run(FEED)["output"], here(integer_model(), FEED)["output"]
    assert np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    check_but_for_ties(found, expected)


LAYERS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], float]] = {
    # operator, attributes, shape of its quantized input, most of the codes that may differ
    "QuantizeLinear": ("Identity", {}, (64, 16, 8, 8), 0.0),
    "Conv": ("Conv", {"pads": [1, 1, 1, 1]}, (32, 16, 12, 12), 1e-3),
    "depthwise Conv": ("Conv", {"pads": [1, 1, 1, 1], "group": 16}, (32, 16, 12, 12), 1e-3),
    "MaxPool": ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}, (64, 16, 8, 8), 0.0),
    "GlobalAveragePool": ("GlobalAveragePool", {}, (64, 16, 7, 7), 0.02),
    "AveragePool": ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}, (64, 16, 8, 8), 0.5),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_differs_by_one_step_at_the_most(layer):
    """Convolutions hardly ever; averages of four codes often, since many are ties."""
    operator, attributes, shape, most = LAYERS[layer]
    model = between_quantizers(operator, attributes)
    codes = np.random.default_rng(0).integers(0, 256, shape)
    feeds = {"x": codes.astype(np.float32) * SCALE}
    steps = (Runtime(model, threads=1).run(feeds)["y"].astype(np.float64) - here(model, feeds)["y"]) / SCALE
    assert np.abs(steps).max() < 1.001
    assert np.mean(np.abs(steps) > 0.5) <= most


def test_a_sum_differs_by_one_step_at_the_most_and_hardly_ever():
    codes, node = np.arange(256, dtype=np.float32), helper.make_node
    scales = {"as": np.float32(0.0291), "bs": np.float32(0.0037), "ys": np.float32(0.0323)}
    nodes = [
        *(node("QuantizeLinear", [name, f"{name}s", "z"], [f"{name}c"]) for name in "ab"),
        *(node("DequantizeLinear", [f"{name}c", f"{name}s", "z"], [f"{name}r"]) for name in "ab"),
        node("Add", ["ar", "br"], ["sum"]),
        node("QuantizeLinear", ["sum", "ys", "z"], ["yc"]),
        node("DequantizeLinear", ["yc", "ys", "z"], ["y"]),
    ]
    a, b, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "m"]) for name in "aby")
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in {**scales, "z": np.uint8(0)}.items()]
    graph = helper.make_graph(nodes, "sum", [a, b], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    feeds = {"a": np.repeat(codes[:, None], 256, 1) * scales["as"], "b": np.repeat(codes[None], 256, 0) * scales["bs"]}
    steps = (Runtime(model, threads=1).run(feeds)["y"] - here(model, feeds)["y"]) / scales["ys"]
    assert np.abs(steps).max() < 1.001
    assert np.mean(np.abs(steps) > 0.5) < 1e-3


def between_quantizers(operator: str, attributes: dict[str, Any], weight: np.ndarray | None = None) -> bytes:
    """Quantize - operator - Quantize on [N, 16, H, W], all activations of one scale; the weights of a Conv are random.

    A given ``weight`` gets the scale by which 100 is the exact code of the output where all codes of the input are 255.
    """
    rng, group = np.random.default_rng(1), attributes.get("group", 1)
    bias = np.zeros(16, np.int32) if weight is not None else rng.integers(0, 5000, 16).astype(np.int32)
    if weight is not None:
        w_scale = np.full(16, 100 / (weight[0].sum(dtype=np.int64) * 255), np.float32)
    else:
        weight = rng.integers(-127, 128, (16, 16 // group, 3, 3)).astype(np.int8)
        w_scale = rng.uniform(0.5, 1, 16).astype(np.float32) / np.float32(127 * np.sqrt(weight[0].size))
    constants = {"s": SCALE, "z": np.uint8(0), "w": weight, "ws": w_scale, "wz": np.zeros(16, np.int8)}
    constants |= {"b": bias, "bs": w_scale * SCALE, "bz": np.zeros(16, np.int32)}
    node = helper.make_node
    parameters = ["w", "b"] if operator == "Conv" else []
    reals = [node("DequantizeLinear", [p, f"{p}s", f"{p}z"], [f"{p}_real"], axis=0) for p in parameters]
    layer = node(operator, ["a", *(f"{p}_real" for p in parameters)], ["r"], **attributes)
    nodes = [*_quantize("x", "xc", "a"), *reals, layer, *_quantize("r", "yc", "y")]
    used = {name for each in nodes for name in each.input}
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, "h", "w_"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16, "p", "q"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def _quantize(source: str, codes: str, result: str) -> list[onnx.NodeProto]:
    quantize = helper.make_node("QuantizeLinear", [source, "s", "z"], [codes])
    return [quantize, helper.make_node("DequantizeLinear", [codes, "s", "z"], [result])]


@pytest.mark.slow
@pytest.mark.usefixtures("emulators")
def test_without_vnni_products_saturate_in_openvino_too(tmp_path):
    """And it has no setting against that. Depthwise convolutions and weights of 7 bits are exact."""
    shapes = {"dense": (16, 16, 3, 3), "grouped": (16, 4, 3, 3), "depthwise": (16, 1, 3, 3), "small": (16, 16, 3, 3)}
    for name, shape in shapes.items():
        weight = np.full(shape, 64 if name == "small" else 127, np.int8)
        (tmp_path / f"{name}.onnx").write_bytes(between_quantizers("Conv", {"group": 16 // shape[1]}, weight))
    script = tmp_path / "script.py"
    script.write_text("""
import json, pathlib, sys
import numpy
from qdeploy.runtimes.openvino import Runtime
models = pathlib.Path(sys.argv[1]).glob("*.onnx")
feed = {"x": numpy.full((1, 16, 3, 3), 5.1, numpy.float32)}
print(json.dumps({path.stem: round(Runtime(path, threads=1).run(feed)["y"].mean() / 0.02) for path in models}))
""")
    command = [*Target("Haswell").python, script, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {"dense": 51, "grouped": 51, "depthwise": 100, "small": 100}


# ----------------------------------------------------------------------------------------------------- packed weights


def packed(bits: int) -> tuple[bytes, bytes]:
    """The integer model with weights of ``bits`` bits in its convolution: packed, and a byte each."""
    weights, model = scheme.weight(bits), onnx.load_model_from_string(integer_model())
    (w,) = (tensor for tensor in model.graph.initializer if tensor.name == "w")
    codes = np.random.default_rng(0).integers(weights.qmin, weights.qmax + 1, w.dims).astype(np.int8)
    w.CopyFrom(numpy_helper.from_array(codes, "w"))
    tight = ir.from_proto(model)
    pack(tight, [(tight.graph.initializers["w"], weights)])
    return ir.to_proto(tight).SerializeToString(), model.SerializeToString()


def test_four_bits_are_loaded_packed_and_run_in_integer_kernels():
    tight, plain = (Runtime(model, threads=1) for model in packed(4))
    assert kernels(tight)["Convolution"] == "u8"
    assert np.array_equal(tight.run(FEED)["output"], plain.run(FEED)["output"])


@pytest.mark.parametrize("bits", [2, 3, 5, 7])
def test_other_packed_widths_are_refused_with_the_way_out(bits):
    tight, plain = packed(bits)
    with pytest.raises(QDeployError, match=f"operations: qdeploy.unpack_{bits}bit") as caught:
        Runtime(tight)
    assert "packing: none" in caught.value.hint
    check_but_for_ties(Runtime(plain).run(FEED)["output"], here(plain, FEED)["output"])


# -------------------------------------------------------------------------------------------------------------- calls


def test_every_batch_gets_the_same_answers():
    """The model is compiled again for every shape."""
    loaded = Runtime(integer_model(), threads=1)
    whole = loaded.run(FEED)["output"]
    parts = [loaded.run({"input": part})["output"] for part in np.split(FEED["input"], [1, 50])]
    assert np.array_equal(np.concatenate(parts), whole)


def test_a_shape_that_the_model_does_not_declare_is_refused():
    """OpenVINO gives a model new shapes when it is asked to, also those that were fixed in it."""
    loaded = Runtime(between_quantizers("MaxPool", {"kernel_shape": [2, 2]}), threads=1)
    assert loaded.run({"x": np.zeros((1, 16, 4, 6), np.float32)})["y"].shape == (1, 16, 3, 5)
    with pytest.raises(QDeployError, match=r"'x' is float32 \[1, 8, 4, 6\], and the model takes float32 \[\?,16"):
        loaded.run({"x": np.zeros((1, 8, 4, 6), np.float32)})


def test_options_are_openvinos_properties():
    Runtime(float_model(), threads=1, options={"ENABLE_CPU_PINNING": "NO"})
    with pytest.raises(QDeployError, match=r"Unsupported property session.x64quantprecision"):
        Runtime(float_model(), options={"session.x64quantprecision": "1"})


def test_where_it_is_not_installed_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(QDeployError, match="'openvino' is not installed here") as caught:
        Runtime(float_model())
    assert 'pip install "qdeploy[openvino]"' in caught.value.hint
