"""Capture a PyTorch model, once, as the graph that is calibrated, quantized, trained and exported.

torch.export traces the model to ATen operators; everything after this module works on that graph and never looks at
the Python code again. Every node learns the name of the PyTorch module it came from, which it keeps into the artifact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdeploy.core.errors import QDeployError
from qdeploy.graph.functional import make_functional
from qdeploy.graph.layers import name_layers
from qdeploy.graph.quiet import quiet
from qdeploy.graph.recurrent import shapes_without_steps


def capture(model: nn.Module, example: Tensor | Sequence[Tensor]) -> fx.GraphModule:
    """The model as a functional graph of ATen operators, in eval mode, with a dynamic batch.

    ``example``: one tensor or one tensor an input, each with a batch of at least 2 in dimension 0 (torch.export takes
    a batch of 1 for a constant). The model itself is left alone: the graph holds copies of its float32 weights.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    _check(model, inputs)
    program = _export(model, inputs)
    graph_module = program.module(check_guards=False)
    assert isinstance(graph_module, fx.GraphModule)
    _own_parameters(graph_module)
    _remove_guards(graph_module)
    make_functional(graph_module)
    name_layers(graph_module)
    return graph_module


def _export(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    training = {module: module.training for module in model.modules()}
    batch = torch.export.Dim("batch", min=1)
    try:
        with quiet(), shapes_without_steps():
            return torch.export.export(
                model.eval(), inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False
            )
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, LookupError) as error:
        raise _capture_error(model, inputs, error) from error
    finally:
        for module, mode in training.items():  # one by one: a model may train with some of its layers frozen
            module.training = mode


def _check(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    for number, x in enumerate(inputs):
        if x.dim() == 0 or len(x) < 2:
            raise QDeployError(
                f"Example input {number} has shape {tuple(x.shape)}: it needs a batch of at least 2 in dimension 0.",
                "torch.export takes a batch of 1 for a constant.",
            )
        if x.is_floating_point() and x.dtype != torch.float32:
            raise QDeployError(f"Example input {number} is {x.dtype}.", "Pass float32.")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise QDeployError(
                f"{name!r} of {type(model).__name__} is {tensor.dtype}; qdeploy starts from float32.",
                "Call model.float() first.",
            )
    for name, parameter in model.named_parameters():
        wrong = int((~torch.isfinite(parameter)).sum())
        if wrong:
            raise QDeployError(
                f"{wrong} of the {parameter.numel():,} values of {name!r} are NaN or infinite.",
                "Look for a diverged training run or a damaged checkpoint.",
            )


def _own_parameters(graph_module: fx.GraphModule) -> None:
    """Copy every parameter and buffer, so that folding and training never write into the caller's model."""
    copies: dict[int, Tensor] = {}  # tied parameters stay tied

    def own(tensor: Tensor) -> Tensor:
        if id(tensor) not in copies:
            copy = tensor.detach().clone()
            copies[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
        return copies[id(tensor)]

    for module in graph_module.modules():
        for tensors in (module._parameters, module._buffers):
            named: Any = tensors  # of parameters in the one, of tensors in the other
            named.update({name: own(tensor) for name, tensor in tensors.items() if tensor is not None})


def _remove_guards(graph_module: fx.GraphModule) -> None:
    """Drop the checks of the input's shape: a network of convolutions is trained on patches of what it is deployed for.

    A size that the graph cannot take still fails, in the operator that cannot take it.
    """
    for number, hook in list(graph_module._forward_pre_hooks.items()):
        if getattr(hook, "__name__", "") == "_check_input_constraints_pre_hook":
            del graph_module._forward_pre_hooks[number]
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and str(node.target).startswith("_guards"):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph_module.recompile()


def _capture_error(model: nn.Module, inputs: Sequence[Tensor], error: Exception) -> QDeployError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    if "specialized it to be a constant" in str(error):
        return QDeployError(
            f"{type(model).__name__} accepts one batch size only: its code makes the batch a constant.",
            "Look for a reshape to a fixed first size, a loop over the batch, len(x) or int(x.shape[0]); "
            "write x.flatten(1), or -1 for the batch.",
        )
    shape = ", ".join(str(list(x.shape)) for x in inputs)
    return QDeployError(
        f"{type(model).__name__} could not be captured by torch.export: {reason}",
        f"A model must run on the example input, here of shape {shape}: check the model's arguments against it. "
        "It must be without Python control flow on tensor values; "
        "torch.export.export(model, inputs, strict=False) on its own shows the whole message.",
    )
