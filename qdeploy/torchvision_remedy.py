"""Import torchvision beside a torch that its binary was not linked against.

On Linux x86-64 the torchvision of the package registry is linked against CUDA. Beside a CPU-only torch its C++
extension does not load, and ``import torchvision`` then fails with "operator torchvision::nms does not exist",
because its Python code registers fake implementations of two operators that the extension should have defined.
Models, transforms and data sets need neither operator: declaring the two schemas is enough. Every import of
torchvision in qdeploy goes through here; where the extension loads, nothing is changed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from qdeploy.core.errors import QDeployError

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A Library takes its definitions with it when it is collected, so it lives as long as the process.
_declared: list[Any] = []


def import_torchvision(submodule: str = "") -> ModuleType:
    """The module ``torchvision`` (or ``torchvision.<submodule>``), imported so that it works beside a CPU-only torch.

    Raises QDeployError where torch or torchvision is not installed.
    """
    for package in ("torch", "torchvision"):
        if not _installed(package):
            hint = 'Install what building needs: pip install "qdeploy[build]".'
            raise QDeployError(f"{package} is not installed.", hint)
    make_importable()
    return importlib.import_module(f"torchvision.{submodule}" if submodule else "torchvision")


def make_importable() -> None:
    """See to it that a later ``import torchvision`` works, in whatever module it stands. Imports torch only."""
    if "torchvision" in sys.modules or not _installed("torchvision"):
        return
    import torch

    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None, "torchvision is a regular package"
    if _extension_loads(Path(spec.origin).parent) or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    _declared.append(library)


def _installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


def _extension_loads(folder: Path) -> bool:
    """Whether the C++ extension in torchvision's ``folder`` loads, tried in the way that torchvision tries it."""
    import torch

    for suffix in (".so", ".pyd", ".dylib"):
        for file in folder.glob(f"_C*{suffix}"):
            try:
                torch.ops.load_library(str(file))
            except OSError:
                continue
            return True
    return False
