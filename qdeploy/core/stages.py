"""Content-addressed stages: run what is not there yet, and never leave half of anything.

A stage's key is a hash of everything its result depends on. Its result is a folder of that key, made under a lock in
a temporary place and moved into place when it is complete, with the digest of every file: a killed build resumes
behind the last complete one, and an unchanged build finds everything done.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdeploy.core.errors import QDeployError
from qdeploy.core.files import sha256, write_json

Folders = Mapping[str, Path]
DIGESTS = "digests.json"  # of every file of a result, in its folder


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a build.

    ``name`` is unique in its plan; ``inputs`` are names of stages before it; ``run(folder, inputs)`` fills an empty
    folder from the folders of its inputs. ``key`` is what ``key_of`` made of all it depends on.
    """

    name: str
    key: str
    inputs: tuple[str, ...]
    run: Callable[[Path, Folders], None]


def key_of(*parts: Any) -> str:
    """A key, 32 hex digits, of plain JSON data: what a stage depends on, its inputs' keys among it."""
    text = json.dumps(parts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def folder_of(stage: Stage, store: Path) -> Path:
    """Where the result of a stage lies in a store."""
    return store / stage.name / stage.key


def is_done(stage: Stage, store: Path) -> bool:
    """Whether the stage's result is there, and every file of it is what the stage wrote."""
    return _is_whole(folder_of(stage, store))


def execute(plan: Sequence[Stage], store: Path, *, on_start: Callable[[Stage], None] | None = None) -> dict[str, Path]:
    """Run the stages of a plan in order, skipping those whose result is there; returns every stage's folder."""
    folders: dict[str, Path] = {}
    for stage in plan:
        folder = folder_of(stage, store)
        if not _is_whole(folder):
            with _locked(folder.with_name(f"{stage.key}.lock")):
                # Another process may have made it while this one waited for the lock.
                if not _is_whole(folder):
                    if on_start is not None:
                        on_start(stage)
                    _make(stage, folder, {name: folders[name] for name in stage.inputs})
        folders[stage.name] = folder
    return folders


def _is_whole(folder: Path) -> bool:
    """Whether a result is there and undamaged: a file cut short by a full disk must not be taken for a result."""
    try:
        expected = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(expected == _digests(folder))


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _make(stage: Stage, folder: Path, inputs: Folders) -> None:
    for abandoned in folder.parent.glob(f".{stage.key}.*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{stage.key}."))
    try:
        stage.run(temporary, inputs)
        write_json(temporary / DIGESTS, _digests(temporary))
        temporary.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)  # one that was damaged
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the operating system gives back when the process dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise QDeployError(f"{path.parent} cannot be written: {error.strerror}.", "Choose another --out.") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
