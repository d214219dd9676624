"""What code a result depends on: the digest of a module's source and of everything of qdeploy's that it imports.

Read from the source text, without importing anything, so that a plan can be made before any work.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGE = "qdeploy"


def digest(*modules: str) -> str:
    """One digest over the sources of ``modules`` ("qdeploy.quant.ptq") and of all they import, directly or not."""
    reached: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting.extend(imported(module))
    total = hashlib.sha256()
    for module in sorted(reached):
        total.update(module.encode() + b"\0" + _path(module).read_bytes() + b"\0")
    return total.hexdigest()


@functools.cache
def imported(module: str) -> frozenset[str]:
    """The modules of qdeploy that a module of qdeploy imports, anywhere in its text."""
    tree = ast.parse(_path(module).read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            # "from qdeploy.quant import ptq" names a module or something in one.
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return frozenset(name for name in names if name.split(".")[0] == _PACKAGE and _exists(name))


def plugin_digest(package: str, name: str) -> str:
    """The digest of a plugin: of a module of ``package`` and what it imports, or of the user's file ``name``."""
    return file_digest(Path(name)) if name.endswith(".py") else digest(f"{package}.{name}")


def file_digest(path: Path) -> str:
    """The digest of one source file of the user's."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _exists(module: str) -> bool:
    return _path(module).is_file()


def _path(module: str) -> Path:
    base = _ROOT.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
