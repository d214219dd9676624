"""Plugins by file name: ``observer: mse`` imports ``qdeploy/quant/observers/mse.py``.

There is no registry. A kind is a package and the one symbol that each of its modules must define; the file name
is the key. A path to a Python file of the user's own works in the place of a name.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdeploy.core.errors import QDeployError, nearest


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of plugin: what people call it, the package its modules live in, the symbol each one defines."""

    label: str
    package: str
    symbol: str


KINDS = {
    kind.label: kind
    for kind in (
        Kind("dataset", "qdeploy.datasets", "Dataset"),
        Kind("metric", "qdeploy.metrics", "Metric"),
        Kind("observer", "qdeploy.quant.observers", "Observer"),
        Kind("fake quant", "qdeploy.quant.fake_quant", "FakeQuant"),
        Kind("rounding", "qdeploy.quant.rounding", "round_weight"),
        Kind("runtime", "qdeploy.runtimes", "Runtime"),
        Kind("target", "qdeploy.targets", "Target"),
        Kind("logger", "qdeploy.loggers", "Logger"),
    )
}


def names(label: str) -> list[str]:
    """The plugins of a kind that ship with qdeploy, found by looking at the folder."""
    package = importlib.import_module(KINDS[label].package)
    found = [m.name for m in pkgutil.iter_modules(package.__path__)]
    return sorted(name for name in found if not name.startswith("_"))


def is_path(name: str) -> bool:
    """Whether ``name`` refers to a Python file of the user's rather than to a plugin that ships with qdeploy."""
    return name.endswith(".py")


def load(label: str, name: str) -> Any:
    """The symbol that plugin ``name`` of kind ``label`` defines. A wrong name suggests the nearest ones."""
    kind = KINDS[label]
    if is_path(name):
        module = import_file(Path(name))
    else:
        if name not in names(label):
            raise QDeployError(f"There is no {label} named {name!r}.", nearest(name, names(label)))
        module = importlib.import_module(f"{kind.package}.{name}")
    if not hasattr(module, kind.symbol):
        raise QDeployError(
            f"{name} is no {label}: it defines no {kind.symbol!r}.",
            f"Define {kind.symbol} in it; any file in {kind.package.replace('.', '/')}/ shows how.",
        )
    return getattr(module, kind.symbol)


def summary(label: str, name: str) -> str:
    """The first line of a plugin's module docstring, read without importing it."""
    spec = importlib.util.find_spec(f"{KINDS[label].package}.{name}")
    if spec is None or spec.origin is None:
        return ""
    import ast

    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0] if text else ""


def import_file(path: Path) -> Any:
    """Import a Python file by its path, once per content, under a name that cannot shadow a package."""
    if not path.is_file():
        raise QDeployError(f"There is no file {path}.", "Give a path relative to the working directory.")
    resolved = path.resolve()
    source = resolved.read_bytes()
    digest = hashlib.sha256(resolved.as_posix().encode() + source).hexdigest()[:16]
    name = f"qdeploy_user_{resolved.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None:
        raise QDeployError(f"{path} is not a Python file.", "Give a file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # Not the loader's own: that takes compiled code of the same second and size for the file's.
        exec(compile(source, str(resolved), "exec", dont_inherit=True), vars(module))
    except (SyntaxError, ImportError) as error:
        del sys.modules[name]
        raise _import_error(path, error) from error
    except SystemExit as error:
        del sys.modules[name]
        raise QDeployError(f"{path} ends Python when it is imported.", "Remove its call of sys.exit().") from error
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_error(path: Path, error: SyntaxError | ImportError) -> QDeployError:
    if isinstance(error, SyntaxError):
        # The file itself, or a file that it imports.
        file = path if error.filename is None or Path(error.filename) == path.resolve() else error.filename
        return QDeployError(f"{file}, line {error.lineno}: {error.msg}.", f"Python reads: {(error.text or '').strip()}")
    return QDeployError(f"{path} cannot be imported: {error}.", "Install what it imports, or correct the import.")
