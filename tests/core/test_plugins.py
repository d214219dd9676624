"""Plugins by file name: found by looking, suggested when misspelt, and given by path."""

import sys
from pathlib import Path

import pytest

from qdeploy.core import plugins
from qdeploy.core.errors import QDeployError


@pytest.fixture
def user_modules():
    """Forget the modules that a test imports by path."""
    yield
    for name in [name for name in sys.modules if name.startswith("qdeploy_user_")]:
        del sys.modules[name]


@pytest.mark.parametrize("label", plugins.KINDS)
def test_names_are_the_files_of_the_folder(label):
    package = plugins.KINDS[label].package
    folder = Path(plugins.__file__).parents[2] / package.replace(".", "/")
    expected = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert set(plugins.names(label)) == expected


@pytest.mark.parametrize(
    ("label", "name"), [(label, name) for label in plugins.KINDS for name in plugins.names(label)], ids="-".join
)
def test_every_plugin_defines_its_symbol_and_says_what_it_is(label, name):
    assert callable(plugins.load(label, name))
    assert plugins.summary(label, name)


def test_summary_does_not_import():
    before = set(sys.modules)
    for label in plugins.KINDS:
        for name in plugins.names(label):
            plugins.summary(label, name)
    grown = {name for name in set(sys.modules) - before if name.startswith("qdeploy.")}
    assert all(name in {kind.package for kind in plugins.KINDS.values()} for name in grown)
    assert plugins.summary("observer", "no_such_plugin") == ""


def test_a_wrong_name_suggests_the_nearest():
    with pytest.raises(QDeployError, match="no observer named 'minmx'") as caught:
        plugins.load("observer", "minmx")
    assert "'minmax'" in caught.value.hint
    with pytest.raises(QDeployError) as caught:
        plugins.load("observer", "qqqqq")
    assert all(name in caught.value.hint for name in ("entropy", "minmax", "mse", "percentile"))


@pytest.mark.parametrize("name", ["_base", "_cells", "../observers/mse", "mse.observer", ""])
def test_what_is_no_plugin_is_no_name(name):
    with pytest.raises(QDeployError, match="no observer named"):
        plugins.load("observer", name)


def test_a_path_works_as_well_as_a_name(tmp_path, monkeypatch, user_modules):
    (tmp_path / "numpy.py").write_text("class Observer:\n    answer = 42\n")  # a name that must not shadow
    monkeypatch.chdir(tmp_path)
    observer = plugins.load("observer", "numpy.py")
    assert observer.answer == 42
    assert plugins.load("observer", str(tmp_path / "numpy.py")) is observer
    assert hasattr(sys.modules["numpy"], "ndarray")


def test_a_changed_file_is_read_again(tmp_path, user_modules):
    path = tmp_path / "mine.py"
    path.write_text("Observer = 1\n")
    assert plugins.load("observer", str(path)) == 1
    path.write_text("Observer = 2\n")
    assert plugins.load("observer", str(path)) == 2


def test_same_names_in_two_folders_are_two_plugins(tmp_path, user_modules):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text("Observer = __file__\n")
    assert plugins.load("observer", str(tmp_path / "a/mine.py")) != plugins.load(
        "observer", str(tmp_path / "b/mine.py")
    )


def test_a_missing_file_and_a_missing_symbol(tmp_path, user_modules):
    with pytest.raises(QDeployError, match=r"no file .*absent\.py"):
        plugins.load("observer", str(tmp_path / "absent.py"))
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(QDeployError, match="no file"):
        plugins.load("observer", str(tmp_path / "folder.py"))
    (tmp_path / "other.py").write_text("class Observe: ...\n")
    with pytest.raises(QDeployError, match="defines no 'Observer'") as caught:
        plugins.load("observer", str(tmp_path / "other.py"))
    assert "qdeploy/quant/observers" in caught.value.hint


def test_a_file_that_fails_leaves_no_half_made_module(tmp_path, user_modules):
    """The user's own error comes through with its traceback, and comes again the next time."""
    path = tmp_path / "broken.py"
    path.write_text("class Observer: ...\n1 / 0\n")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            plugins.load("observer", str(path))
        assert not [name for name in sys.modules if name.startswith("qdeploy_user_broken")]


def test_a_file_that_is_no_python_names_its_line(tmp_path, user_modules):
    path = tmp_path / "typo.py"
    path.write_text("import math\n\nclass Observer\n    pass\n")
    for _ in range(2):  # nothing of it stays behind
        with pytest.raises(QDeployError, match=r"typo\.py, line 3: expected ':'") as caught:
            plugins.load("observer", str(path))
        assert caught.value.hint == "Python reads: class Observer"


def test_an_import_that_fails_is_named(tmp_path, user_modules):
    path = tmp_path / "mine.py"
    path.write_text("from absent_package import thing\n")
    with pytest.raises(QDeployError, match=r"mine\.py cannot be imported: No module named 'absent_package'"):
        plugins.load("observer", str(path))
