"""What is to be measured: bundles, by the names that a table shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qdeploy.core.errors import QDeployError, nearest
from qdeploy.core.records import Metric, from_json
from qdeploy.verify.bundle import read_bundle


@dataclass(frozen=True, slots=True)
class Subject:
    """One bundle of a bench, read and checked."""

    name: str  # unique within the bench
    path: Path
    method: str
    size_bytes: int  # of model.onnx
    sha256: str
    metric: Metric | None
    integer_mac_share: float | None


def read_subjects(paths: Sequence[Path]) -> list[Subject]:
    """Read and check every bundle; the first one that is wrong is a QDeployError."""
    subjects = [_read(path) for path in paths]
    names = _unique_names(subjects)
    return [
        Subject(name, s.path, s.method, s.size_bytes, s.sha256, s.metric, s.integer_mac_share)
        for name, s in zip(names, subjects, strict=True)
    ]


def choose_baseline(subjects: Sequence[Subject], name: str | None) -> Subject | None:
    """The bundle called ``name``, or the one float32 bundle; None where there is none, or several."""
    if name is not None:
        chosen = [subject for subject in subjects if subject.name == name]
        if not chosen:
            names = [subject.name for subject in subjects]
            raise QDeployError(f"No bundle here is named {name!r}, the baseline.", nearest(name, names))
        return chosen[0]
    floats = [subject for subject in subjects if subject.method == "float32"]
    return floats[0] if len(floats) == 1 else None


def _read(path: Path) -> Subject:
    bundle = read_bundle(path)
    manifest = bundle["manifest"]
    fields = ("name", "value", "low", "high", "samples", "higher_is_better")
    found = manifest.get("metric")
    metric = {key: found[key] for key in fields if key in found} if found else None
    return Subject(
        name=manifest["name"],
        path=path,
        method=manifest["method"],
        size_bytes=len(bundle["model"]),
        sha256=bundle["sha256"],
        metric=from_json(Metric, metric, f"{path}: metric") if metric else None,
        integer_mac_share=(manifest.get("coverage") or {}).get("integer_mac_share"),
    )


def _unique_names(subjects: Sequence[Subject]) -> list[str]:
    """The bundles' own names, with their folder, then a number, where two have the same."""
    names = [subject.name for subject in subjects]
    for i, subject in enumerate(subjects):
        if [s.name for s in subjects].count(subject.name) > 1:
            names[i] = f"{subject.path.resolve().parent.name}/{subject.name}"
    return [f"{name} ({names[: i + 1].count(name)})" if name in names[:i] else name for i, name in enumerate(names)]
