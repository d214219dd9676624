"""Small real bundles for the tests of what reads and measures bundles: a float32 model and its QDQ twin."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qdeploy import runner
from qdeploy.bundle.archive import archive, npz

STEPS: list[dict[str, Any]] = [
    {"op": "channel"},
    {"op": "scale", "factor": 0.0625},
    {"op": "layout", "from": "HWC", "to": "CHW"},
]
CLASSES = [str(digit) for digit in range(10)]


def float_model(channels: int = 8) -> bytes:
    """Conv - Relu - Flatten - Gemm on [batch, 1, 8, 8]."""
    w, b, v, c = _parameters(channels)
    nodes = [
        helper.make_node("Conv", ["input", "w", "b"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("Flatten", ["relu"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "v", "c"], ["output"], name="fc", transB=1),
    ]
    return _model(nodes, {"w": w, "b": b, "v": v, "c": c})


def integer_model(channels: int = 8) -> bytes:
    """The same network with uint8 activations, int8 weights and int32 biases as QDQ nodes."""
    w, b, v, c = _parameters(channels)
    sx, sa, sw, sv = (np.float32(s) for s in (1 / 255, 2 / 255, abs(w).max() / 127, abs(v).max() / 127))
    constants: dict[str, Any] = {"sx": sx, "sa": sa, "sw": sw, "sv": sv, "sb": sx * sw, "sc": sa * sv}
    constants |= {"zero_u8": np.uint8(0), "zero_w": np.int8(0), "zero_v": np.int8(0), "zero_s32": np.int32(0)}
    constants |= {"w": np.rint(w / sw).astype(np.int8), "v": np.rint(v / sv).astype(np.int8)}
    constants |= {"b": np.rint(b / (sx * sw)).astype(np.int32), "c": np.rint(c / (sa * sv)).astype(np.int32)}
    nodes = [
        *_activation("input", "x", "sx"),
        *(_dequantize(name, f"s{name}", zero) for name, zero in (("w", "w"), ("b", "s32"), ("v", "v"), ("c", "s32"))),
        helper.make_node("Conv", ["x", "w_real", "b_real"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        *_activation("relu", "a", "sa"),
        helper.make_node("Flatten", ["a"], ["flat"], name="flatten"),
        *_activation("flat", "f", "sa"),
        helper.make_node("Gemm", ["f", "v_real", "c_real"], ["output"], name="fc", transB=1),
    ]
    return _model(nodes, constants)


def write_bundle(folder: Path, name: str = "ptq-int8", method: str = "ptq", **manifest: Any) -> Path:
    """A valid bundle FOLDER/NAME.qdeploy.zip; ``manifest`` replaces fields of its manifest."""
    model = float_model() if method == "float32" else integer_model()
    raw = np.random.default_rng(0).integers(0, 17, (8, 8, 8), dtype=np.uint8)
    outputs = runner.make_session(model, 1).run(["output"], {"input": runner.preprocess(raw, STEPS)})[0]
    comparison = {"comparison": "close", "tolerance": 1e-4} if method == "float32" else {"comparison": "exact"}
    metric = {"name": "top1", "value": 0.98, "low": 0.97, "high": 0.99, "samples": 360, "higher_is_better": True}
    fields = {
        "schema": runner.SCHEMA,
        "name": name,
        "recipe": "digits",
        "method": method,
        "model": {"file": "model.onnx", "opset": 21},
        "inputs": [
            {
                "name": "input",
                "dtype": "float32",
                "shape": ["batch", 1, 8, 8],
                "raw": {"dtype": "uint8", "shape": [8, 8], "range": [0, 16]},
                "preprocessing": STEPS,
            }
        ],
        "outputs": [{"name": "output", "dtype": "float32", "shape": ["batch", 10]}],
        "task": "classification",
        "classes": CLASSES,
        "quantization": {},
        "metric": {**metric, "dataset": "digits", "split": "evaluation", "fingerprint": "0123abcd"},
        "coverage": {"integer_mac_share": 0.0 if method == "float32" else 1.0, "layers": []},
        "parity": None,
        "portability": {"saturation": [], "arithmetic": []} if method == "float32" else None,
        "golden": {"file": "golden.npz", "samples": 8, "tolerance": 0.0, **comparison},
        "versions": {"qdeploy": "0.1.0", "onnxruntime": "1.31.1"},
        **manifest,
    }
    golden = npz({"input.input": raw, "output.output": outputs})
    files = {"model.onnx": model, "golden.npz": golden, "run.py": b"raise SystemExit('never run me')\n"}
    return write_members(folder / f"{name}.qdeploy.zip", fields, {**files, "README.md": b"# A bundle\n"})


def write_members(path: Path, manifest: dict[str, Any], files: dict[str, bytes]) -> Path:
    """Zip ``files`` with a manifest that lists their true digests, as ``qdeploy.bundle`` lays a zip out."""
    manifest = {**manifest, "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(archive({"manifest.json": json.dumps(manifest).encode(), **files}))
    return path


def read_members(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The inverse of write_members."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    return json.loads(files.pop("manifest.json")), files


def shift_golden(files: dict[str, bytes], step: float, at: Any = ...) -> dict[str, bytes]:
    """``files`` with the golden outputs moved by ``step`` where ``at`` indexes them."""
    with np.load(io.BytesIO(files["golden.npz"])) as loaded:
        arrays = dict(loaded)
    arrays["output.output"][at] += np.float32(step)
    return {**files, "golden.npz": npz(arrays)}


def unpack(path: Path, folder: Path) -> Path:
    """What a person without qdeploy has: the members of a bundle in a folder, run.py being the real runner."""
    manifest, files = read_members(path)
    whole = write_members(folder / "whole.zip", manifest, {**files, "run.py": Path(runner.__file__).read_bytes()})
    shutil.unpack_archive(whole, folder / "unpacked")
    return folder / "unpacked"


def _parameters(channels: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(1)
    w = rng.normal(0, 0.3, (channels, 1, 3, 3))
    b = rng.normal(0, 0.1, channels)
    v = rng.normal(0, 0.1, (10, channels * 64))
    c = rng.normal(0, 0.1, 10)
    return tuple(array.astype(np.float32) for array in (w, b, v, c))


def _activation(source: str, result: str, scale: str) -> list[onnx.NodeProto]:
    quantize = helper.make_node("QuantizeLinear", [source, scale, "zero_u8"], [f"{result}_codes"])
    return [quantize, helper.make_node("DequantizeLinear", [f"{result}_codes", scale, "zero_u8"], [result])]


def _dequantize(name: str, scale: str, zero: str) -> onnx.NodeProto:
    return helper.make_node("DequantizeLinear", [name, scale, f"zero_{zero}"], [f"{name}_real"])


def _model(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
