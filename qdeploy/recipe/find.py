"""Recipes by name: ``qat_eval/lstm`` is recipes/qat_eval/lstm.yaml, here or in qdeploy's own checkout."""

from __future__ import annotations

from pathlib import Path

from qdeploy.core.errors import QDeployError, nearest

HERE = Path("recipes")
SUFFIXES = (".yaml", ".yml")
_CHECKOUT = Path(__file__).resolve().parents[2]


def known() -> dict[str, Path]:
    """Every recipe by its name: those below recipes/ of the working directory, then those of the checkout."""
    found: dict[str, Path] = {}
    folders = [HERE, *([_CHECKOUT / HERE] if (_CHECKOUT / "pyproject.toml").is_file() else [])]
    for folder in folders:
        files = [path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
        for path in sorted(files):
            inner = path.relative_to(folder)
            if not any(part.startswith(".") for part in inner.parts):
                found.setdefault(inner.with_suffix("").as_posix(), path)
    return found


def find(recipe: str) -> Path:
    """The file that ``recipe`` names: a path, or a name. QDeployError: neither; a wrong name suggests the nearest."""
    path = Path(recipe)
    names = known()
    if path.is_file() or path.suffix in SUFFIXES or (path.exists() and recipe not in names):
        return path  # of a file that is not there load says so, with what lies beside it
    if recipe not in names:
        inner = [name for name in names if name.rpartition("/")[2] == recipe]
        hint = nearest(inner[0], inner) if inner else nearest(recipe, names)
        raise QDeployError(f"There is no recipe {recipe!r}, by path or by name.", hint)
    return names[recipe]


def base_of(path: Path) -> Path:
    """What paths in the recipe at ``path`` are relative to when not to the working directory: above recipes/.

    That is the folder that holds the one named recipes, however deep the file lies in it; else the file's folder's own.
    """
    folders = path.absolute().parents
    return next((folder.parent for folder in folders if folder.name == HERE.name), folders[min(1, len(folders) - 1)])
