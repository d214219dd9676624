"""Packing and unpacking a bundle: NAME.qdeploy.zip, the one file that leaves a build.

The same arguments give the same bytes, on any machine: nothing in a bundle says when, where or how fast.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from qdeploy import runner
from qdeploy.bundle import card, manifest
from qdeploy.bundle.archive import CARD, GOLDEN, MANIFEST, MODEL, RUNNER, archive, npz
from qdeploy.bundle.manifest import Manifest
from qdeploy.core.errors import QDeployError
from qdeploy.core.files import write_atomic
from qdeploy.runtimes._errors import qdeploy_errors

_UNKNOWN = "0" * 64  # the card's digest while the card, which does not show it, is being written


def pack(
    path: Path,
    *,
    name: str,
    recipe: str,
    method: str,
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    task: str,
    classes: Sequence[str],
    quantization: Mapping[str, Any],
    versions: Mapping[str, str],
    model: bytes,
    golden: Mapping[str, NDArray[Any]],
    comparison: str,
    tolerance: float = 0.0,
    metric: Mapping[str, Any] | None = None,
    coverage: Mapping[str, Any] | None = None,
    parity: Mapping[str, Any] | None = None,
    portability: Mapping[str, Any] | None = None,
) -> str:
    """Write the bundle to ``path``, atomically, and return the sha256 of the zip as hex.

    ``model`` is the ONNX file's content; the opset is read from it, and ``inputs`` and ``outputs`` have to name what
    it has. ``golden`` holds "input.NAME" (raw samples, [N, ...raw shape]) and "output.NAME" ([N, ...]) for each of
    them. The other arguments are the manifest's fields, as plain JSON data (``bundle.manifest``). A field that the
    manifest refuses, or one that contradicts the model or the golden arrays, is a QDeployError.
    """
    graph = onnx.load_model_from_string(model)
    files = {MODEL: model, GOLDEN: npz(golden), RUNNER: resources.files("qdeploy").joinpath("runner.py").read_bytes()}
    fields = {
        "name": name,
        "recipe": recipe,
        "method": method,
        "model": {"file": MODEL, "opset": _opset(graph, path)},
        "inputs": [dict(item) for item in inputs],
        "outputs": [dict(item) for item in outputs],
        "task": task,
        "classes": list(classes),
        "quantization": dict(quantization),
        "metric": metric,
        "coverage": coverage,
        "parity": parity,
        "portability": portability,
        "golden": {"file": GOLDEN, "samples": _samples(golden), "comparison": comparison, "tolerance": tolerance},
        "versions": dict(versions),
        "files": _digests(files) | {CARD: _UNKNOWN},
    }
    draft = manifest.build(fields, str(path))
    _check_model(draft, graph.graph, path)
    files[CARD] = card.render(draft).encode()
    final = manifest.build(fields | {"files": _digests(files)}, str(path))
    members = {MANIFEST: final.to_json(), **files}
    with qdeploy_errors():
        runner.check_members(path, members)
    data = archive(members)
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def unpack(path: Path, folder: Path) -> Manifest:
    """Write the five files of the bundle ``path`` into ``folder``, made if need be, and return the manifest.

    Everything is checked before the first byte is written, as ``runner.read_bundle`` checks it. A bundle that fails
    is a QDeployError and leaves nothing behind.
    """
    with qdeploy_errors():
        members, _ = runner.read_members(path)
        runner.check_members(path, members)
    if folder.exists() and not folder.is_dir():
        raise QDeployError(f"{folder} is a file, not a folder.", "Name a folder to unpack into.")
    for name, data in members.items():
        write_atomic(folder / name, data)
    return manifest.parse(members[MANIFEST], str(path))


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def _opset(model: onnx.ModelProto, path: Path) -> int:
    versions = [int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise QDeployError(f"{path}: the model names no ONNX opset.", "Export it with one, 21 for example.")
    return versions[0]


def _samples(golden: Mapping[str, NDArray[Any]]) -> int:
    return min((len(array) if array.ndim else 0 for array in golden.values()), default=0)


def _check_model(found: Manifest, graph: onnx.GraphProto, path: Path) -> None:
    """The manifest's inputs and outputs are the graph's, in name, type and known dimensions."""
    constants = {initializer.name for initializer in graph.initializer}
    fed = [value for value in graph.input if value.name not in constants]
    for label, listed, real in (("inputs", found.inputs, fed), ("outputs", found.outputs, graph.output)):
        claimed = [(tensor.name, tensor.dtype, _known(tensor.shape)) for tensor in listed]
        actual = [_describe(value) for value in real]
        if claimed != actual:
            raise QDeployError(f"{path}: the manifest's {label} {claimed} are not the model's {actual}.")


def _describe(value: onnx.ValueInfoProto) -> tuple[str, str, list[int | None]]:
    tensor = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    return value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape


def _known(shape: Sequence[int | str]) -> list[int | None]:
    return [dimension if isinstance(dimension, int) else None for dimension in shape]
