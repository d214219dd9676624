"""What every test folder shares: the place of real data, and a fair share of the machine."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import warnings
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
pytest_plugins = ["tests.emulation"]


@pytest.fixture(scope="session", autouse=True)
def _torch_threads() -> None:
    """Torch takes two threads: more only fight each other in CI, and timings and sums stay comparable."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(2)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: $QDEPLOY_DATA, else shared/data beside the checkout. Skips where it is absent."""
    named = os.environ.get("QDEPLOY_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not (folder / "loaders.py").is_file():
        pytest.skip(f"real data is not here: no {folder}/loaders.py (set QDEPLOY_DATA to the folder that holds it)")
    return folder


@pytest.fixture(scope="session")
def data_loaders(shared_data: Path) -> ModuleType:
    """The module loaders.py that lies beside the data and reads it."""
    spec = importlib.util.spec_from_file_location("shared_data_loaders", shared_data / "loaders.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def torchvision_root(data_loaders: ModuleType, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root for torchvision's data sets, written once: FashionMNIST and CIFAR-10, as far as they are here.

    The loaders see these two data sets only; writing the others would take half a minute.
    """
    destination = tmp_path_factory.mktemp("torchvision")
    source = tmp_path_factory.mktemp("source")
    for name in ("fashion_mnist", "cifar10"):
        (source / name).symlink_to(shared_data / name, target_is_directory=True)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the loaders leave closing their files to the collector
        data_loaders.write_torchvision(str(destination), root=str(source))
    return destination


@pytest.fixture(scope="session")
def fashion_mnist_root(torchvision_root: Path) -> Path:
    """A root that torchvision's FashionMNIST reads: 10,000 test images and the first 20,000 of train."""
    return torchvision_root


@pytest.fixture(scope="session")
def cifar10_root(torchvision_root: Path) -> Path:
    """A root with cifar10.npz and those of the official batch files that can be written from it."""
    return torchvision_root


@pytest.fixture(scope="session")
def cifar10_npz(cifar10_root: Path) -> Path:
    """cifar10.npz: x_train, y_train (the first 10,000), x_test, y_test (all 10,000)."""
    return cifar10_root / "cifar10.npz"
