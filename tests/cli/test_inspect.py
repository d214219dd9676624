"""``qdeploy inspect``: a bundle, an unpacked one, an .onnx file, or a whole build."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from qdeploy.cli import main
from tests.bundles import integer_model, unpack, write_bundle


def inspect(*arguments: object):
    return CliRunner().invoke(main.app, ["inspect", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def build(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "build", "fp32", "float32")
    return write_bundle(tmp_path / "build", "ptq-int8").parent


def test_the_forms_of_a_model_say_the_same(build: Path, tmp_path: Path):
    zipped = build / "ptq-int8.qdeploy.zip"
    (tmp_path / "model.onnx").write_bytes(integer_model())
    outputs = [inspect(path).output for path in (zipped, unpack(zipped, tmp_path), tmp_path / "model.onnx")]
    for output in outputs:
        assert "QLinearConv" in output
        assert "100% of" in output
    assert "variant:    ptq-int8 (ptq)" in outputs[0]


def test_a_build_folder_shows_all_of_its_bundles(build: Path):
    result = inspect(build)
    assert result.exit_code == 0
    assert [line for line in result.output.splitlines() if line.startswith("variant:")] == [
        "variant:    fp32 (float32)",
        "variant:    ptq-int8 (ptq)",
    ]


def test_json_is_an_object_or_for_a_folder_a_list(build: Path):
    one = json.loads(inspect(build / "fp32.qdeploy.zip", "--json").output)
    assert one["integer_mac_share"] == 0.0
    assert [entry["variant"] for entry in json.loads(inspect(build, "--json").output)] == [
        "fp32 (float32)",
        "ptq-int8 (ptq)",
    ]


def test_operators_that_are_integer_in_the_file_are_not_taken_for_portable(tmp_path: Path):
    """They are no layers of the table, which shows what onnxruntime makes of QuantizeLinear and DequantizeLinear."""
    weight = numpy_helper.from_array(np.full((2, 1), 127, np.int8), "w")
    entry, output = [
        helper.make_tensor_value_info(name, kind, ["N", width])
        for name, kind, width in (("x", TensorProto.UINT8, 2), ("y", TensorProto.INT32, 1))
    ]
    product = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph([product], "product", [entry], [output], [weight])
    path = tmp_path / "model.onnx"
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    path.write_bytes(model.SerializeToString())
    shown = inspect(path).output
    assert "not portable: y: 1 pairs of weights in 1 output channels can saturate" in shown


@pytest.mark.parametrize(("name", "said"), [("none.onnx", "There is no"), ("empty", "There is no bundle")])
def test_what_is_not_there_is_an_error(name: str, said: str, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    result = inspect(tmp_path / name)
    assert result.exit_code == 2
    assert said in result.output
