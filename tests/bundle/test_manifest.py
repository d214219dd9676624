"""The manifest is exactly the contract's JSON: what goes in comes out, and nothing else goes in."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator
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
        *("metric", "coverage", "parity", "portability", "golden", "versions", "files"),
    ]
    assert data["schema"] == "qdeploy.bundle/2"
    assert data["model"] == {"file": "model.onnx", "opset": 21}
    assert data["golden"] == {"file": "golden.npz", "samples": 8, "comparison": "exact", "tolerance": 0.0}
    for key in ("inputs", "outputs", "classes", "quantization", "metric", "coverage", "parity", "versions"):
        assert data[key] == contents[key]


def test_zip_and_folder_say_the_same(bundle: Path, tmp_path: Path) -> None:
    unpack(bundle, tmp_path)
    assert manifest.read(tmp_path) == manifest.read(bundle)


def test_the_runner_reads_the_same_manifest(data: dict[str, Any], bundle: Path) -> None:
    assert runner.read_bundle(bundle)["manifest"] == data


BAD = {
    "unknown key": (lambda d: d.update(colour="red"), "colour is an unknown key"),
    "unknown key below": (
        lambda d: d["inputs"][0]["raw"].update(scale=1),
        r"raw\.scale is an unknown key",
    ),
    "missing key": (lambda d: d.pop("outputs"), "outputs is missing"),
    "missing key below": (lambda d: d["metric"].pop("dataset"), r"metric\.dataset is missing"),
    "other schema": (lambda d: d.update(schema="qdeploy.bundle/1"), "has schema 'qdeploy.bundle/1'"),
    "no schema": (lambda d: d.pop("schema"), "has schema None"),
    "number as text": (lambda d: d["metric"].update(value="0.98"), r"metric\.value: '0\.98' is no number"),
    "nan": (lambda d: d["metric"].update(value=float("nan")), "NaN is no finite number"),
    "infinity": (lambda d: d["metric"].update(high=float("-inf")), "-Infinity is no finite number"),
    "boolean as count": (lambda d: d["parity"].update(samples=True), r"parity\.samples: True is no whole number"),
    "number as boolean": (lambda d: d["metric"].update(higher_is_better=1), r"metric\.higher_is_better: 1 is none of"),
    "share above one": (lambda d: d["coverage"].update(integer_mac_share=1.5), r"coverage\.integer_mac_share: 1\.5"),
    "no inputs": (lambda d: d.update(inputs=[]), "inputs is no list of 1 or more"),
    "an input twice": (lambda d: d.update(inputs=d["inputs"] * 2), "inputs has one name twice"),
    "text for a list": (lambda d: d.update(classes="0123456789"), "classes is no list"),
    "list for an object": (lambda d: d.update(quantization=[]), "quantization is no object"),
    "no dimension": (lambda d: d["inputs"][0]["shape"].append(0), r"inputs\[0\]\.shape\[4\]: 0 cannot stand here"),
    "range upside down": (lambda d: d["inputs"][0]["raw"].update(range=[16, 0]), r"\.range: \[16, 0\] is not"),
    "range of three": (lambda d: d["inputs"][0]["raw"].update(range=[0, 1, 2]), r"\.range: \[0, 1, 2\] is not"),
    "unknown step": (
        lambda d: d["inputs"][0]["preprocessing"].append({"op": "rotate"}),
        r"inputs\[0\]\.preprocessing\[3\]: There is no preprocessing op 'rotate'. Known: ",
    ),
    "step without its argument": (
        lambda d: d["inputs"][0]["preprocessing"].append({"op": "scale"}),
        r"preprocessing\[3\]\.factor is missing",
    ),
    "no step": (lambda d: d["inputs"][0]["preprocessing"].append("scale"), r"preprocessing\[3\]: There is no"),
    "object type": (lambda d: d["inputs"][0]["raw"].update(dtype="object"), r"raw\.dtype: 'object' is none of"),
    "file not listed": (lambda d: d["files"].pop("run.py"), "files lists"),
    "manifest listed": (lambda d: d["files"].update({"manifest.json": "0" * 64}), "files lists"),
    "short digest": (lambda d: d["files"].update({"run.py": "abc"}), r"files\.run\.py: 'abc' cannot stand here"),
    "other model file": (
        lambda d: d["model"].update(file="../model.onnx"),
        r"model\.file: '\.\./model",
    ),
    "exact with a tolerance": (lambda d: d["golden"].update(tolerance=0.1), "an exact comparison has tolerance 0"),
    "markup in the name": (lambda d: d.update(name="a`b"), "name: 'a`b' cannot stand here"),
    "a line break in the name": (lambda d: d.update(name="a\n"), r"name: 'a\\n' cannot stand here"),
    "deep settings": (lambda d: d["quantization"].update(a=json.loads("[" * 300 + "]" * 300)), "is nested too deeply"),
    "no maker": (lambda d: d["versions"].pop("qdeploy"), r"versions\.qdeploy is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_manifests_are_named_errors(case: str, data: dict[str, Any]) -> None:
    change, message = BAD[case]
    changed = copy.deepcopy(data)
    change(changed)
    with pytest.raises(QDeployError, match=message):
        parse(changed)


RAW_JSON = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b"null",
    b"[" * 100_000,
    b'{"schema": 1e999}',
    b'{"a": 1, "a": 1}',
    b"9" * 5000,
]


@pytest.mark.parametrize("raw", RAW_JSON, ids=[str(i) for i in range(len(RAW_JSON))])
def test_what_is_no_json_object_is_an_error(raw: bytes) -> None:
    with pytest.raises(QDeployError, match=r"^test "):
        manifest.parse(raw, "test")


def test_a_manifest_without_measurements(data: dict[str, Any]) -> None:
    bare = {**data, "metric": None, "coverage": None, "parity": None}
    assert json.loads(parse(bare).to_json()) == bare


def test_the_raw_range_is_written_where_there_is_one(data: dict[str, Any]) -> None:
    assert "range" not in data["inputs"][0]["raw"]
    data["inputs"][0]["raw"]["range"] = [0, 16]
    assert parse(data).inputs[0].raw.range == (0, 16)
    assert json.loads(parse(data).to_json()) == data


REPLACEMENTS: list[Any] = [None, True, -1, 0.5, 10**400, 1e308, "", "x\n", [], [[]], {}, {"a": {}}]


def test_whatever_stands_in_a_manifest_is_read_or_refused(data: dict[str, Any]) -> None:
    """Every value replaced by every kind of value: what the rules accept, the typed objects can hold."""
    accepted = 0
    for holder, key in [*_places(data)]:
        kept = holder[key]
        for value in REPLACEMENTS:
            holder[key] = value
            try:
                assert json.loads(parse(data).to_json()) == data
                accepted += 1
            except QDeployError:
                pass
        holder[key] = kept
    assert accepted > 50


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) within JSON data."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def test_frozen(bundle: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        manifest.read(bundle).name = "other"


def test_the_typed_objects_have_the_keys_that_the_rules_know() -> None:
    """Each step's model, and its rule, have the arguments of the operation that executes it."""
    models = steps.Step.__origin__.__args__
    by_op = {model.model_fields["op"].annotation.__args__[0]: model for model in models}
    assert set(by_op) == set(runner.STEPS) == set(runner.OPERATIONS)
    for op, model in by_op.items():
        arguments = {field.alias or name for name, field in model.model_fields.items()} - {"op"}
        assert arguments == set(runner.STEPS[op]), op
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
