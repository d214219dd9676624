"""A small real model, its golden vectors and everything that packing it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qdeploy import runner
from qdeploy.bundle.pack import pack

PREPROCESSING = [{"op": "scale", "factor": 0.0625}, {"op": "channel"}, {"op": "layout", "from": "HWC", "to": "CHW"}]


def integer_model() -> bytes:
    """Conv and Gemm between QuantizeLinear and DequantizeLinear: [batch, 1, 8, 8] -> [batch, 10]."""
    rng = np.random.default_rng(0)
    constants = {
        "s": np.float32(1 / 255),
        "z": np.uint8(0),
        "ws": np.float32(0.01),
        "wz": np.int8(0),
        "ys": np.float32(0.02),
        "yz": np.uint8(128),
        "conv_w": rng.integers(-60, 61, (4, 1, 3, 3), dtype=np.int8),
        "fc_w": rng.integers(-60, 61, (10, 144), dtype=np.int8),
    }

    def qdq(name: str, scale: str, zero: str) -> list[onnx.NodeProto]:
        quantize = helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_q"])
        return [quantize, helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [f"{name}_d"])]

    nodes = [
        *qdq("input", "s", "z"),
        helper.make_node("DequantizeLinear", ["conv_w", "ws", "wz"], ["conv_wd"]),
        helper.make_node("Conv", ["input_d", "conv_wd"], ["conv"]),
        *qdq("conv", "ys", "yz"),
        helper.make_node("Flatten", ["conv_d"], ["flat"]),
        helper.make_node("DequantizeLinear", ["fc_w", "ws", "wz"], ["fc_wd"]),
        helper.make_node("Gemm", ["flat", "fc_wd"], ["fc"], transB=1),
        helper.make_node("QuantizeLinear", ["fc", "ys", "yz"], ["fc_q"]),
        helper.make_node("DequantizeLinear", ["fc_q", "ys", "yz"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@pytest.fixture(scope="session")
def contents() -> dict[str, Any]:
    """The keyword arguments of pack() for the small model. Tests copy it before they change it."""
    model = integer_model()
    raw = np.random.default_rng(1).integers(0, 17, (8, 8, 8), dtype=np.uint8)
    outputs = runner.run_session(runner.make_session(model, 1), {"input": runner.preprocess(raw, PREPROCESSING)})
    digits = [str(digit) for digit in range(10)]
    return {
        "name": "ptq-int8",
        "recipe": "digits",
        "method": "ptq",
        "inputs": [
            {
                "name": "input",
                "dtype": "float32",
                "shape": ["batch", 1, 8, 8],
                "raw": {"dtype": "uint8", "shape": [8, 8]},
                "preprocessing": PREPROCESSING,
            }
        ],
        "outputs": [{"name": "output", "dtype": "float32", "shape": ["batch", 10]}],
        "task": "classification",
        "classes": digits,
        "quantization": {"weights": {"bits": 8}, "activations": {"bits": 8, "observer": "mse"}, "rounding": "nearest"},
        "metric": {
            "name": "top1",
            "value": 0.975,
            "low": 0.9583,
            "high": 0.9889,
            "samples": 360,
            "higher_is_better": True,
            "dataset": "digits",
            "split": "evaluation",
            "fingerprint": "0123abcd",
        },
        "coverage": {
            "integer_mac_share": 1.0,
            "layers": [
                {"name": "conv", "op": "Conv", "kernel": "QLinearConv", "integer": True, "reason": "", "macs": 1296},
                {"name": "fc", "op": "Gemm", "kernel": "QGemm", "integer": True, "reason": "", "macs": 1440},
            ],
        },
        "parity": {"samples": 64, "outputs_checked": 9856, "differing_codes": 0},
        "versions": {"qdeploy": "0.1.0", "onnxruntime": "1.31.1", "numpy": "2.4.6"},
        "model": model,
        "golden": {"input.input": raw, "output.output": outputs["output"]},
        "comparison": "exact",
    }


@pytest.fixture(scope="session")
def bundle(contents: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed bundle. Tests read it and leave it as it is."""
    path = tmp_path_factory.mktemp("bundle") / "ptq-int8.qdeploy.zip"
    pack(path, **contents)
    return path
