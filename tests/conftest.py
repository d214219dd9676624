"""What every test folder shares: the place of real data, and a fair share of the machine."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import itertools
import lzma
import os
import warnings
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
pytest_plugins = ["tests.emulation"]


@pytest.fixture(scope="session", autouse=True)
def _torch_threads() -> None:
    """Torch takes one thread where tests run side by side and two otherwise: more only fight each other."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


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


@pytest.fixture(scope="session")
def cifar100_root(data_loaders: ModuleType, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root that torchvision's CIFAR100 reads, complete. Writing it takes 20 seconds."""
    destination = tmp_path_factory.mktemp("cifar100")
    (destination / "cifar-100-python").mkdir()
    for split in ("train", "test"):
        images, labels = data_loaders.cifar("cifar100", split)
        meta = data_loaders.meta("cifar100")[split]
        title = f"{split}ing batch 1 of 1"
        written = data_loaders.cifar100_file(title, labels.tolist(), meta["coarse_labels"], images, meta["filenames"])
        (destination / "cifar-100-python" / split).write_bytes(written)
    (destination / "cifar-100-python" / "meta").write_bytes((shared_data / "cifar100" / "meta").read_bytes())
    return destination


@pytest.fixture(scope="session")
def csv_options(shared_data: Path) -> dict[str, Any]:
    """The options of data set csv for 4,424 students in 3 classes."""
    return {"path": str(shared_data / "student_dropout" / "data.csv.xz"), "target": "Target"}


@pytest.fixture(scope="session")
def eurosat_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with 20 images of every class, in torchvision's layout."""
    destination = tmp_path_factory.mktemp("eurosat")
    with zipfile.ZipFile(next((shared_data / "eurosat").glob("*.zip"))) as archive:
        members = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        for _, of_class in itertools.groupby(members, key=lambda name: name.split("/")[2]):
            archive.extractall(destination, itertools.islice(of_class, 20))
    return destination


@pytest.fixture(scope="session")
def imdb_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with 150 reviews of every class and part, as tables."""
    destination = tmp_path_factory.mktemp("imdb")
    for part in ("train", "test"):
        with lzma.open(shared_data / "imdb" / f"imdb_{part}.csv.xz", "rt", encoding="utf-8", newline="") as text:
            header, *rows = csv.reader(text)
        with lzma.open(destination / f"imdb_{part}.csv.xz", "wt", preset=0, encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows[:150], *rows[-150:]])
    return destination


@pytest.fixture(scope="session")
def sequences_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the first 1,000 users of Video.txt."""
    destination = tmp_path_factory.mktemp("sequences")
    lines = lzma.decompress((shared_data / "seqrec" / "Video.txt.xz").read_bytes()).decode().splitlines()
    kept = [line for line in lines if int(line.split()[0]) <= 1000]
    (destination / "sequences").mkdir()
    (destination / "sequences" / "Video.txt").write_text("\n".join(kept) + "\n")
    return destination


@pytest.fixture(scope="session")
def super_resolution_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with all images of T91, Set5 and Set14."""
    destination = tmp_path_factory.mktemp("super_resolution")
    (destination / "sr").symlink_to(shared_data / "sr", target_is_directory=True)
    return destination
