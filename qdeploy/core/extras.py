"""Say clearly that a command needs the "build" extra, instead of failing in the middle of an import."""

from __future__ import annotations

import importlib.util

from qdeploy.core.errors import QDeployError

BUILD = ("torch", "torchvision", "lightning_fabric", "onnx_ir", "onnxscript", "safetensors", "sklearn")


def require_build() -> None:
    """Raise a QDeployError if a package that building needs is missing."""
    missing = [name for name in BUILD if importlib.util.find_spec(name) is None]
    if missing:
        raise QDeployError(
            f"Building needs {', '.join(missing)}, which is not installed here.",
            'Install everything with: pip install "qdeploy[build]". Measuring (bench, inspect, verify) works without.',
        )
