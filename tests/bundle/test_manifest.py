"""The manifest is exactly the contract's JSON: what goes in comes out, and nothing else goes in."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from qdeploy import runner
from qdeploy.bundle import manifest, steps
from qdeploy.bundle.pack import unpack
from qdeploy.core.errors import QDeployError


@pytest.fixture
def data(bundle: Path) -> dict[str, Any]:
    """The manifest as JSON data, to be changed."""
    return dict(json.loads(manifest.read(bundle).to_json()))


def parse(data: dict[str, Any]) -> manifest.Manifest:
    return manifest.parse(json.dumps(data).encode(), "test")


def test_round_trip(data: dict[str, Any], bundle: Path) -> None:
    found = manifest.read(bundle)
    assert parse(data) == found
    assert json.loads(parse(data).to_json()) == data
    assert parse(data).to_json() == found.to_json()


def test_it_is_the_contract(data: dict[str, Any], contents: dict[str, Any]) -> None:
    assert list(data) == [
        *("schema", "name", "recipe", "method", "model", "inputs", "outputs", "task", "classes", "quantization"),
        *("metric", "coverage", "parity", "golden", "versions", "files"),
    ]
    assert data["schema"] == "qdeploy.bundle/1"
    assert data["model"] == {"file": "model.onnx", "opset": 21}
    assert data["golden"] == {"file": "golden.npz", "samples": 8, "comparison": "exact", "tolerance": 0.0}
    for key in ("inputs", "outputs", "classes", "quantization", "metric", "coverage", "parity", "versions"):
        assert data[key] == contents[key]


def test_zip_folder_and_file_say_the_same(bundle: Path, tmp_path: Path) -> None:
    unpack(bundle, tmp_path)
    assert manifest.read(tmp_path) == manifest.read(tmp_path / "manifest.json") == manifest.read(bundle)


def test_the_runner_reads_the_same_manifest(data: dict[str, Any], bundle: Path) -> None:
    assert runner.read_bundle(bundle)["manifest"] == data


BAD = {
    "unknown key": (lambda d: d.update(colour="red"), "colour: Extra inputs are not permitted"),
    "missing key": (lambda d: d.pop("outputs"), "outputs: Field required"),
    "other schema": (lambda d: d.update(schema="qdeploy.bundle/2"), "has schema 'qdeploy.bundle/2'"),
    "no schema": (lambda d: d.pop("schema"), "has schema None"),
    "number as text": (lambda d: d["metric"].update(value="0.98"), r"metric\.value: Input should be a valid number"),
    "nan": (lambda d: d["metric"].update(value=float("nan")), "NaN is not a JSON number"),
    "boolean as count": (lambda d: d["parity"].update(samples=True), r"parity\.samples"),
    "share above one": (lambda d: d["coverage"].update(integer_mac_share=1.5), r"coverage\.integer_mac_share"),
    "no inputs": (lambda d: d.update(inputs=[]), "inputs: "),
    "unknown step": (lambda d: d["inputs"][0]["preprocessing"].append({"op": "rotate"}), "preprocessing"),
    "step without its argument": (lambda d: d["inputs"][0]["preprocessing"].append({"op": "scale"}), "factor"),
    "object type": (lambda d: d["inputs"][0]["raw"].update(dtype="object"), "dtype"),
    "file not listed": (lambda d: d["files"].pop("run.py"), "files lists"),
    "manifest listed": (lambda d: d["files"].update({"manifest.json": "0" * 64}), "files lists"),
    "short digest": (lambda d: d["files"].update({"run.py": "abc"}), r"files\.run\.py"),
    "other model file": (lambda d: d["model"].update(file="../model.onnx"), r"model\.file"),
    "exact with a tolerance": (lambda d: d["golden"].update(tolerance=0.1), "an exact comparison has tolerance 0"),
    "markup in the name": (lambda d: d.update(name="a`b"), "name: "),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_manifests_are_named_errors(case: str, data: dict[str, Any]) -> None:
    change, message = BAD[case]
    changed = copy.deepcopy(data)
    change(changed)
    with pytest.raises(QDeployError, match=message):
        parse(changed)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000])
def test_what_is_no_json_object_is_an_error(raw: bytes) -> None:
    with pytest.raises(QDeployError, match="test "):
        manifest.parse(raw, "test")


def test_frozen(bundle: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        manifest.read(bundle).name = "other"


def test_steps_are_the_runners_operations() -> None:
    """Each step has the arguments of the operation that executes it, and every operation is a step."""
    models = steps.Step.__origin__.__args__
    by_op = {model.model_fields["op"].annotation.__args__[0]: model for model in models}
    assert set(by_op) == set(runner.OPERATIONS)
    for op, model in by_op.items():
        arguments = {field.alias or name for name, field in model.model_fields.items()} - {"op"}
        parameters = inspect.signature(runner.OPERATIONS[op]).parameters.values()
        named = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"x"}
        assert arguments == (named or arguments), op


WORDS = [
    (steps.Scale(op="scale", factor=1 / 255), "convert to float32 and divide by 255"),
    (steps.Scale(op="scale", factor=1.0), "convert to float32 and multiply by 1"),
    (steps.Scale(op="scale", factor=0.3), "convert to float32 and multiply by 0.3"),
    (
        steps.Normalize(op="normalize", mean=(0.5, 0.25), std=0.125),
        "subtract the mean 0.5, 0.25 and divide by the standard deviation 0.125",
    ),
    (steps.Resize(op="resize", height=4, width=6), "resize to 4x6 (height x width; bilinear, antialiased)"),
    (steps.ResizeShorter(op="resize_shorter", size=8), "resize the shorter side to 8 pixels (bilinear, antialiased)"),
    (steps.CenterCrop(op="center_crop", height=4, width=6), "cut out the centre, 4x6 (height x width)"),
    (steps.Cast(op="cast", dtype="int64"), "convert to int64"),
]


@pytest.mark.parametrize(("step", "words"), WORDS)
def test_steps_in_words(step: Any, words: str) -> None:
    assert step.words() == words
