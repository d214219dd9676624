from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from qdeploy.core.errors import QDeployError
from qdeploy.train import checkpoint


def network(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))


def same(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_safetensors_round_trip(tmp_path: Path):
    saved, loaded = network(), network()
    saved[1].running_mean.fill_(0.5)
    assert not same(saved, loaded)
    checkpoint.save(tmp_path / "a" / "m.safetensors", saved.state_dict())
    checkpoint.load(tmp_path / "a" / "m.safetensors", loaded)
    assert same(saved, loaded)


def test_the_same_weights_are_the_same_bytes(tmp_path: Path):
    model = network()
    for name in ("a", "b"):
        checkpoint.save(tmp_path / f"{name}.safetensors", model.state_dict())
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_tensors_that_share_memory_are_saved(tmp_path: Path):
    weight = torch.arange(4.0)
    checkpoint.save(tmp_path / "m.safetensors", {"a": weight, "b": weight, "c": weight[::2]})
    read = checkpoint.read(tmp_path / "m.safetensors")
    assert read["b"].tolist() == [0, 1, 2, 3]
    assert read["c"].tolist() == [0, 2]


@pytest.mark.parametrize("suffix", [".pth", ".th", ".pt"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_pickles_of_all_shapes(tmp_path: Path, suffix, wrapper, prefix):
    saved, loaded = network(), network()
    state = {prefix + name: tensor for name, tensor in saved.state_dict().items()}
    path = tmp_path / f"m{suffix}"
    torch.save({wrapper: state, "best_prec1": 91.7} if wrapper else state, path)
    checkpoint.load(path, loaded)
    assert same(saved, loaded)


def test_a_prefix_that_only_some_have_is_a_name(tmp_path: Path):
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "m.pt")
    assert set(checkpoint.read(tmp_path / "m.pt")) == {"module.a", "b"}


def test_batch_counters_may_be_missing(tmp_path: Path):
    model = network()
    old = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    torch.save(old, tmp_path / "m.pt")
    checkpoint.load(tmp_path / "m.pt", model)


def test_missing_and_unexpected_keys_are_listed(tmp_path: Path):
    state = network().state_dict()
    state["fc.weight"] = state.pop("3.weight")
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(QDeployError, match=r"1 missing keys \(3.weight\); 1 unexpected keys \(fc.weight\)") as error:
        checkpoint.load(tmp_path / "m.pt", network())
    assert "model.factory" in error.value.hint
    checkpoint.load(tmp_path / "m.pt", network(), strict=False)


def test_other_shapes_are_listed_even_when_not_strict(tmp_path: Path):
    torch.save(network(4).state_dict(), tmp_path / "m.pt")
    with pytest.raises(QDeployError, match=r"0\.weight is \[4, 1, 3, 3\], the model's is \[3, 1, 3, 3\]"):
        checkpoint.load(tmp_path / "m.pt", network(3), strict=False)


class Attack:
    def __reduce__(self):
        return (Path.touch, (Path("owned"),))


@pytest.mark.parametrize("content", [Attack(), {"state_dict": {"a": Attack()}}, network()])
def test_a_pickle_runs_no_code(tmp_path: Path, content, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(QDeployError, match="cannot be read as a checkpoint of weights") as error:
        checkpoint.read(tmp_path / "m.pt")
    assert "state dict" in error.value.hint
    assert "it holds more than weights" in error.value.message
    assert "weights_only" not in str(error.value)  # torch's own advice is to load it all the same
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [torch.zeros(3), {}, {"epoch": 3}, {"a": [1]}, {0: torch.zeros(3)}])
def test_a_file_without_a_state_dict(tmp_path: Path, content):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(QDeployError, match="holds no state dict"):
        checkpoint.read(tmp_path / "m.pt")


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth"])
@pytest.mark.parametrize("content", [b"", b"garbage, not a checkpoint", b"PK\x03\x04half"])
def test_damaged_files(tmp_path: Path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(QDeployError, match=name):
        checkpoint.read(tmp_path / name)


def test_a_truncated_file(tmp_path: Path):
    checkpoint.save(tmp_path / "m.safetensors", network().state_dict())
    (tmp_path / "m.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:-5])
    with pytest.raises(QDeployError, match="not a readable safetensors file"):
        checkpoint.read(tmp_path / "m.safetensors")


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64])
def test_codes_are_no_weights(tmp_path: Path, kind):
    state = {name: t.to(kind) if t.is_floating_point() else t for name, t in network().state_dict().items()}
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(QDeployError, match=f"holds {kind}, the model's is torch.float32"):
        checkpoint.load(tmp_path / "m.pt", network())


def test_half_precision_is_weights(tmp_path: Path):
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in network().state_dict().items()},
               tmp_path / "m.pt")  # fmt: skip
    checkpoint.load(tmp_path / "m.pt", network())


def test_no_file_or_another_kind_of_file(tmp_path: Path):
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(QDeployError, match="is a folder, not a checkpoint"):
        checkpoint.read(tmp_path / "folder.pth")
    with pytest.raises(QDeployError, match="There is no checkpoint"):
        checkpoint.read(tmp_path / "m.pth")
    (tmp_path / "m.onnx").touch()
    with pytest.raises(QDeployError, match=r"unknown suffix '.onnx'"):
        checkpoint.read(tmp_path / "m.onnx")
