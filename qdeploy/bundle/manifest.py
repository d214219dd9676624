"""The manifest: what a bundle says about itself, as typed objects.

The JSON is the contract (schema "qdeploy.bundle/2"). ``runner.MANIFEST`` holds its rules and ``runner.parse_manifest``
enforces them, on a device and here alike; the models below give what it has accepted names and types. Field order is
the order in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, model_serializer

from qdeploy import runner
from qdeploy.bundle.archive import MANIFEST
from qdeploy.bundle.steps import Part, Step
from qdeploy.core.errors import QDeployError
from qdeploy.runtimes._errors import qdeploy_errors

Dimension = int | str  # a dimension that is free has a name, "batch"


class Raw(Part):
    """One sample as people have it, before preprocessing; without the batch axis.

    ``range`` (low, high) is where raw values do not fill their type, and else not in the file.
    """

    dtype: str
    shape: tuple[Dimension, ...]
    range: tuple[float, float] | None = None

    @model_serializer(mode="wrap")
    def _without_no_range(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if key != "range" or value is not None}


class Input(Part):
    """A graph input, and how raw samples become it."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...]
    raw: Raw
    preprocessing: tuple[Step, ...]


class Output(Part):
    """A graph output."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...]


class Model(Part):
    """The ONNX file."""

    file: Literal["model.onnx"]
    opset: int


class Metric(Part):
    """The deployed metric: model.onnx run in onnxruntime over a whole split, with its 95% bootstrap interval."""

    name: str
    value: float
    low: float
    high: float
    samples: int
    higher_is_better: bool
    dataset: str
    split: str
    fingerprint: str


class CoverageLayer(Part):
    """One compute layer and the kernel that runs it."""

    name: str
    op: str
    kernel: str
    integer: bool
    reason: str  # why it runs in float32; empty for an integer layer
    macs: int


class Coverage(Part):
    """The share of multiply-accumulates in integer kernels, read from the graph that onnxruntime runs."""

    integer_mac_share: float
    layers: tuple[CoverageLayer, ...]


class Parity(Part):
    """Output codes of the artifact compared with the integer reference arithmetic, layer by layer."""

    samples: int
    outputs_checked: int
    differing_codes: int


class SaturatingLayer(Part):
    """A layer in which products of codes can saturate on x86 without VNNI.

    ``pairs`` of weights that reach beyond 16 bits, in ``channels`` output channels; ``worst`` is the largest sum.
    """

    name: str
    channels: int
    pairs: int
    worst: int


class Disagreement(Part):
    """An Add or Mul of two tensors that CPUs round differently, for ``pairs`` of the pairs of codes."""

    name: str
    op: str
    pairs: int


class Portability(Part):
    """Where other CPUs can answer otherwise. Two empty lists prove that none does, for any input."""

    saturation: tuple[SaturatingLayer, ...]
    arithmetic: tuple[Disagreement, ...]


class Golden(Part):
    """The raw inputs and expected outputs that any device can check itself against."""

    file: Literal["golden.npz"]
    samples: int
    comparison: Literal["exact", "close"]
    tolerance: float


class Manifest(Part):
    """A bundle's manifest.json. From ``metric`` to ``portability``: None where nothing was measured."""

    # The key is "schema"; pydantic keeps that name for itself.
    schema_: Annotated[str, Field(alias="schema")]
    name: str
    recipe: str
    method: str
    model: Model
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    task: str
    classes: tuple[str, ...]
    quantization: dict[str, JsonValue]
    metric: Metric | None
    coverage: Coverage | None
    parity: Parity | None
    portability: Portability | None
    golden: Golden
    versions: dict[str, str]
    files: dict[str, str]

    def to_json(self) -> bytes:
        """The manifest as the file holds it: the same bytes for the same content."""
        data = self.model_dump(mode="json", by_alias=True)
        return (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse(data: bytes, where: str) -> Manifest:
    """The manifest in ``data`` (JSON, UTF-8). ``where`` names its bundle in errors (QDeployError)."""
    with qdeploy_errors():
        return Manifest.model_validate(runner.parse_manifest(data, where))


def build(fields: Mapping[str, Any], where: str) -> Manifest:
    """The manifest with ``fields``, plain JSON data. What a written manifest could not be is a QDeployError."""
    try:
        data = json.dumps({"schema": runner.SCHEMA, **fields}, allow_nan=False).encode()
    except ValueError as error:
        raise QDeployError(f"{where}: {error}.", "A manifest holds finite numbers only.") from error
    return parse(data, where)


def read(path: Path) -> Manifest:
    """The manifest of a bundle, a .qdeploy.zip or the folder of an unpacked one, which is checked as a whole."""
    with qdeploy_errors():
        members, _ = runner.read_members(path)
        runner.check_members(path, members)
    return parse(members[MANIFEST], str(path))
