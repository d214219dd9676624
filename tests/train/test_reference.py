from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from qdeploy.core.errors import QDeployError
from qdeploy.train.reference import load_model, source_files

MODEL = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width: int, depth: int = 1):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

def net4(**kwargs):
    return Net(4, **kwargs)

def nothing():
    return 3

WIDTH = 4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with models/mine.py, which is the working directory."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_relative_to_the_working_directory(folder: Path):
    assert load_model("models/mine.py:Net", width=3).layers[0].in_features == 3
    assert len(load_model("models/mine.py:net4", depth=2).layers) == 2


def test_a_file_relative_to_base(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert isinstance(load_model("models/mine.py:net4", base=folder), nn.Module)
    with pytest.raises(QDeployError, match=r"There is no file models/mine\.py"):
        load_model("models/mine.py:net4")


def test_the_working_directory_comes_first(folder: Path, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "models").mkdir()
    (other / "models" / "mine.py").write_text("raise AssertionError")
    load_model("models/mine.py:net4", base=other)


def test_an_installed_module():
    model = load_model("torchvision.models:resnet18", num_classes=7)
    assert model.fc.out_features == 7


def test_a_file_that_imports_torchvision_itself(folder: Path):
    (folder / "own.py").write_text(
        "from torchvision.models import resnet18\ndef small(): return resnet18(num_classes=2)"
    )
    assert load_model("own.py:small").fc.out_features == 2


def test_initial_weights_depend_on_the_seed_alone(folder: Path):
    before = torch.get_rng_state()
    first, again, other = (load_model("models/mine.py:Net", width=3, seed=seed).layers[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("factory", "kwargs", "said", "hint"),
    [
        ("models/mine.py", {}, "does not name a model", "models/vgg.py:vgg11"),
        ("models/mine.py:", {}, "does not name a model", "models/vgg.py:vgg11"),
        ("models/min.py:Net", {}, "no file models/min.py", "'models/mine.py'"),
        ("models/mine.py:Nett", {}, "defines no 'Nett'", "'Net'"),
        ("models/mine.py:WIDTH", {}, "not callable", ""),
        ("models/mine.py:nothing", {}, "returns int", ""),
        ("models/mine.py:Net", {"widht": 3}, "no argument 'widht'", "'width'"),
        ("models/mine.py:Net", {}, "needs the argument 'width'", "width: ..."),
        ("models/mine.py:net4", {"dept": 3}, "unexpected keyword argument 'dept'", "net4"),
        ("models/mine.py:Net", {"width": "x"}, "fails", "width: int"),
        ("torchvision.models:resnet19", {}, "no 'resnet19'", "'resnet18'"),
        ("torchvision.modles:resnet18", {}, "no module 'torchvision.modles'", "torchvision.models"),
        ("not_installed.models:net", {}, "no installed package 'not_installed'", "models/vgg.py:vgg11"),
    ],
)
def test_errors_say_what_was_meant(folder: Path, factory, kwargs, said, hint):
    with pytest.raises(QDeployError, match=said) as error:
        load_model(factory, **kwargs)
    assert hint in error.value.hint


def test_a_file_that_lacks_what_it_imports(folder: Path):
    (folder / "broken.py").write_text("import not_installed_either")
    with pytest.raises(QDeployError, match="not_installed_either"):
        load_model("broken.py:net")


def test_an_installed_module_that_lacks_what_it_imports(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """An installation to mend, not a wrong reference: it keeps its error."""
    (folder / "broken_package.py").write_text("import not_installed_either")
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(ModuleNotFoundError, match="not_installed_either"):
        load_model("broken_package:net")


def test_source_files_are_what_a_result_depends_on(folder: Path):
    assert source_files("models/mine.py:Net") == [Path("models/mine.py")]
    files = source_files("torchvision.models:resnet18")
    assert {"resnet.py", "vgg.py"} <= {file.name for file in files}
    assert files == sorted(files)
    with pytest.raises(QDeployError, match="There is no file"):
        source_files("models/other.py:Net")
