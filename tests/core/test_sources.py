"""A digest changes with every source that a module reaches, and with no other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qdeploy.core import sources


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package "qdeploy" of five modules in the place of the real one."""
    root = tmp_path / "qdeploy"
    (root / "sub").mkdir(parents=True)
    for name in ("__init__.py", "sub/__init__.py"):
        (root / name).write_text("")
    (root / "a.py").write_text("from qdeploy import b\nfrom qdeploy.sub.c import thing\nimport json\n")
    (root / "b.py").write_text("def f():\n    import qdeploy.sub.d\n")
    (root / "sub" / "c.py").write_text("thing = 1\n")
    (root / "sub" / "d.py").write_text("from qdeploy.a import nothing\n")  # a circle ends
    (root / "e.py").write_text("")
    monkeypatch.setattr(sources, "_ROOT", root)
    sources.imported.cache_clear()
    yield root
    sources.imported.cache_clear()


def changed(package: Path, name: str, text: str = "# changed\n") -> bool:
    """Whether a digest of module a changes when a file does."""
    sources.imported.cache_clear()
    before = sources.digest("qdeploy.a")
    path = package / name
    path.write_text(path.read_text() + text)
    sources.imported.cache_clear()
    return sources.digest("qdeploy.a") != before


def test_imports_are_found_wherever_they_stand(package):
    assert sources.imported("qdeploy.a") == {"qdeploy", "qdeploy.b", "qdeploy.sub.c"}
    assert sources.imported("qdeploy.b") == {"qdeploy.sub.d"}


@pytest.mark.parametrize("name", ["a.py", "b.py", "sub/c.py", "sub/d.py", "__init__.py"])
def test_a_digest_changes_with_what_the_module_reaches(package, name):
    assert changed(package, name)


def test_a_digest_does_not_change_with_other_modules(package):
    assert not changed(package, "e.py")


def test_a_digest_is_of_sources_not_of_their_place(package, tmp_path, monkeypatch):
    before = sources.digest("qdeploy.a")
    shutil.copytree(package, tmp_path / "elsewhere" / "qdeploy")
    monkeypatch.setattr(sources, "_ROOT", tmp_path / "elsewhere" / "qdeploy")
    sources.imported.cache_clear()
    assert sources.digest("qdeploy.a") == before
    assert sources.digest("qdeploy.a", "qdeploy.b") == before  # b is reached from a anyway
    assert sources.digest("qdeploy.e") != before


def test_every_real_module_can_be_digested_without_importing_it():
    code = (
        "import sys\nfrom qdeploy.core import sources\n"
        "sources.digest('qdeploy.export.artifact', 'qdeploy.verify.prove')\n"
        "assert 'torch' not in sys.modules and 'onnx' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_real_export_reaches_what_decides_its_bytes():
    reached = set()
    waiting = ["qdeploy.export.artifact"]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting.extend(sources.imported(module))
    assert {"qdeploy.quant.placement", "qdeploy.core.affine", "qdeploy.export.passes.names"} <= reached


def test_a_users_file(tmp_path):
    (tmp_path / "model.py").write_text("x = 1\n")
    before = sources.file_digest(tmp_path / "model.py")
    (tmp_path / "model.py").write_text("x = 2\n")
    assert sources.file_digest(tmp_path / "model.py") != before
