"""The manifest: what a bundle says about itself, as strict models of its JSON.

The JSON is the contract (schema "qdeploy.bundle/1"); the models here refuse anything else: unknown or missing keys,
wrong types, NaN, a listing that leaves out a file. Field order is the order in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from qdeploy.bundle.archive import CARD, GOLDEN, MANIFEST, MODEL, RUNNER, read_members
from qdeploy.bundle.steps import Size, Step, Strict
from qdeploy.core.errors import QDeployError

SCHEMA: Final = "qdeploy.bundle/1"

Text = Annotated[str, Field(min_length=1)]
Label = Annotated[str, Field(pattern=r"^[^\x00-\x1f`|<>]+$")]  # what is shown, and used in file names, as it is
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
DType = Literal[
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"
]
Dimension = Size | Text  # a dimension that is free has a name, "batch"


class Raw(Strict):
    """One sample as people have it, before preprocessing; without the batch axis."""

    dtype: DType
    shape: tuple[Dimension, ...]


class Input(Strict):
    """A graph input, and how raw samples become it."""

    name: Text
    dtype: DType
    shape: tuple[Dimension, ...]
    raw: Raw
    preprocessing: tuple[Step, ...]


class Output(Strict):
    """A graph output."""

    name: Text
    dtype: DType
    shape: tuple[Dimension, ...]


class Model(Strict):
    """The ONNX file."""

    file: Literal["model.onnx"]
    opset: Count


class Metric(Strict):
    """The deployed metric: model.onnx run in onnxruntime over a whole split, with its 95% bootstrap interval."""

    name: Text
    value: float
    low: float
    high: float
    samples: Count
    higher_is_better: bool
    dataset: Text
    split: Text
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]*$")]


class CoverageLayer(Strict):
    """One compute layer and the kernel that runs it."""

    name: Text
    op: Text
    kernel: Text
    integer: bool
    reason: str  # why it runs in float32; empty for an integer layer
    macs: Count


class Coverage(Strict):
    """The share of multiply-accumulates in integer kernels, read from the graph that onnxruntime runs."""

    integer_mac_share: Share
    layers: tuple[CoverageLayer, ...]


class Parity(Strict):
    """Output codes of the artifact compared with the integer reference arithmetic, layer by layer."""

    samples: Count
    outputs_checked: Count
    differing_codes: Count


class Golden(Strict):
    """The raw inputs and expected outputs that any device can check itself against."""

    file: Literal["golden.npz"]
    samples: Size
    comparison: Literal["exact", "close"]
    tolerance: Annotated[float, Field(ge=0.0)]

    @model_validator(mode="after")
    def _exact_tolerates_nothing(self) -> Golden:
        if self.comparison == "exact" and self.tolerance != 0.0:
            raise ValueError("an exact comparison has tolerance 0")
        return self


class Manifest(Strict):
    """A bundle's manifest.json. ``metric``, ``coverage`` and ``parity`` are None where nothing was measured."""

    # The key is "schema"; pydantic keeps that name for itself.
    schema_: Annotated[Literal["qdeploy.bundle/1"], Field(alias="schema")] = SCHEMA
    name: Label
    recipe: Label
    method: Label
    model: Model
    inputs: Annotated[tuple[Input, ...], Field(min_length=1)]
    outputs: Annotated[tuple[Output, ...], Field(min_length=1)]
    task: Label
    classes: tuple[str, ...]
    quantization: dict[str, JsonValue]
    metric: Metric | None
    coverage: Coverage | None
    parity: Parity | None
    golden: Golden
    versions: dict[str, str]
    files: dict[str, Digest]

    @model_validator(mode="after")
    def _names_its_makers(self) -> Manifest:
        missing = sorted({"qdeploy", "onnxruntime"} - set(self.versions))
        if missing:
            raise ValueError(f"versions lacks {missing[0]}")
        return self

    @model_validator(mode="after")
    def _lists_every_file(self) -> Manifest:
        expected = {MODEL, GOLDEN, RUNNER, CARD}
        if set(self.files) != expected:
            raise ValueError(f"files lists {sorted(self.files)}, not {sorted(expected)}")
        return self

    def to_json(self) -> bytes:
        """The manifest as the file holds it: the same bytes for the same content."""
        data = self.model_dump(mode="json", by_alias=True)
        return (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse(data: bytes, where: str) -> Manifest:
    """The manifest in ``data`` (JSON, UTF-8). ``where`` names its source in errors (QDeployError)."""
    try:
        found = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise QDeployError(
            f"{where} is not JSON: {error}.", "The bundle is damaged; build or fetch it again."
        ) from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise QDeployError(
            f"{where} has schema {schema!r}, this version of qdeploy reads {SCHEMA!r}.",
            "Build the bundle again, or use the version of qdeploy that wrote it.",
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise QDeployError(f"{where}: {_first(error)}.", f"A manifest has exactly the keys of {SCHEMA}.") from error


def build(fields: Mapping[str, Any], where: str) -> Manifest:
    """The manifest with ``fields``, plain JSON data. What a written manifest could not be is a QDeployError."""
    try:
        data = json.dumps({"schema": SCHEMA, **fields}, allow_nan=False).encode()
    except ValueError as error:
        raise QDeployError(f"{where}: {error}.", "A manifest holds finite numbers only.") from error
    return parse(data, where)


def read(path: Path) -> Manifest:
    """The manifest of a bundle: a .qdeploy.zip, the folder of an unpacked one, or a manifest.json.

    Reads the manifest alone; ``pack.unpack`` and ``runner.read_bundle`` check the other files against its digests.
    """
    if path.name == MANIFEST and path.is_file():
        path = path.parent
    return parse(read_members(path, (MANIFEST,))[MANIFEST], f"{path}: {MANIFEST}")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _first(error: ValidationError) -> str:
    """The first problem as "key.key[0]: message", with how many others there are."""
    problems = error.errors(include_url=False)
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problems[0]["loc"]).lstrip(".")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where or 'the manifest'}: {problems[0]['msg']}{more}"
