"""Checkpoints: safetensors written by qdeploy, PyTorch's pickles read with ``weights_only``."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from qdeploy.core.errors import QDeployError
from qdeploy.core.files import write_atomic

PICKLES = (".pth", ".th", ".pt")
WRAPPERS = ("state_dict", "model_state_dict", "model")
SHOWN = 4
# What torch.load raises on files that are damaged or something else.
DAMAGES = (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError)


def save(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Write ``state_dict`` to ``path`` as safetensors, atomically. The same tensors give the same bytes."""
    # safetensors refuses tensors that share memory; a checkpoint stores each of them.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
    write_atomic(path, safetensors.torch.save(tensors))


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in ``path`` (.safetensors, .pth, .th, .pt), on the CPU, without a common prefix "module.".

    Pickles are read with ``weights_only``: no code of the file's runs. Raises QDeployError where the file is
    missing, damaged, or holds no state dict.
    """
    if path.is_dir():
        raise QDeployError(f"{path} is a folder, not a checkpoint.", "Name the file in it.")
    if not path.is_file():
        raise QDeployError(f"There is no checkpoint {path}.", "Give the path of a .safetensors, .pth, .th or .pt file.")
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    elif path.suffix in PICKLES:
        state = _read_pickle(path)
    else:
        raise QDeployError(
            f"Checkpoint {path} has the unknown suffix {path.suffix!r}.", "Known: .safetensors, .pth, .th, .pt."
        )
    prefix = "module."
    if all(name.startswith(prefix) for name in state):  # what DataParallel leaves behind
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def load(path: Path, model: nn.Module, strict: bool = True) -> None:
    """Load the checkpoint at ``path`` into ``model``, in place.

    With ``strict``, keys that are missing or unexpected raise QDeployError; shapes that differ always do. Counters
    of batch norm (num_batches_tracked) may be missing, as in checkpoints older than they are.
    """
    state = read(path)
    own = model.state_dict()
    problems = [
        f"{name} is {list(state[name].shape)}, the model's is {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems += [
        f"{name} holds {state[name].dtype}, the model's is {tensor.dtype}"
        for name, tensor in own.items()
        if name in state and tensor.is_floating_point() and not state[name].is_floating_point()
    ]
    if strict:
        problems += _key_problems(set(own), set(state))
    if problems:
        raise QDeployError(
            f"Checkpoint {path} does not fit {type(model).__name__}: {'; '.join(problems)}.",
            "Check model.factory and its arguments against the model that the checkpoint was saved from.",
        )
    model.load_state_dict(state, strict=False)


def _key_problems(own: set[str], found: set[str]) -> list[str]:
    missing = sorted(name for name in own - found if not name.endswith("num_batches_tracked"))
    unexpected = sorted(found - own)
    return [
        f"{len(names)} {what} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for what, names in (("missing keys", missing), ("unexpected keys", unexpected))
        if names
    ]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise QDeployError(f"{path} is not a readable safetensors file: {error}.") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (*DAMAGES, pickle.UnpicklingError) as error:
        # torch's message of a pickle with more in it than weights recommends to load it all the same.
        more = isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error).lower()
        said = str(error).partition("\n")[0].rstrip(".")
        reason = "it holds more than weights" if more else f"{type(error).__name__}: {said}"
        raise QDeployError(
            f"{path} cannot be read as a checkpoint of weights: {reason}.",
            "Save the state dict alone: torch.save(model.state_dict(), PATH). A pickled model is never loaded.",
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    ):
        raise QDeployError(
            f"{path} holds no state dict.", f"Expected tensors by name, or such a mapping under one of {WRAPPERS}."
        )
    return dict(content)
