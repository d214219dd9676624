"""Capture a PyTorch model, once, as the graph that is calibrated, quantized, trained and exported.

torch.export traces the model to ATen operators; everything after this module works on that graph and never looks at
the Python code again. Every node learns the name of the PyTorch module it came from, which it keeps into the artifact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from qdeploy.core.errors import QDeployError
from qdeploy.graph.functional import make_functional
from qdeploy.graph.operators import operator_name

LAYER = "qdeploy_layer"  # key in node.meta: the layer's readable, unique name


def capture(model: nn.Module, example: Tensor | Sequence[Tensor]) -> fx.GraphModule:
    """The model as a functional graph of ATen operators, in eval mode, with a dynamic batch.

    ``example``: one tensor or one tensor an input, each with a batch of at least 2 in dimension 0 (torch.export takes
    a batch of 1 for a constant). The model's own weights are left alone: the graph holds copies.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    training = model.training
    batch = torch.export.Dim("batch", min=1)
    try:
        program = torch.export.export(
            model.eval(), inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False
        )
    except (torch.export.UnsupportedOperatorException, torch._dynamo.exc.TorchDynamoException) as error:  # type: ignore[attr-defined]
        raise _capture_error(model, error) from error
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise _capture_error(model, error) from error
    finally:
        model.train(training)
    graph_module = program.module(check_guards=False)
    if not isinstance(graph_module, fx.GraphModule):
        raise QDeployError("torch.export returned no graph.")
    _own_parameters(graph_module)
    _remove_guards(graph_module)
    make_functional(graph_module)
    name_layers(graph_module)
    return graph_module


def name_layers(graph_module: fx.GraphModule) -> None:
    """Give every operator node a unique readable name: its module's path, and the operator's where that is not enough.

    A leaf module of torch.nn does one thing and lends its path alone ("layer1.0.conv1"); an operator called in a
    user's forward gets the operator's name behind the path ("layer1.0.add").
    """
    used: set[str] = set()
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            name = str(node.target)
        elif node.op == "call_function":
            name = _layer_name(node)
        else:
            continue
        unique, count = name, 0
        while unique in used:
            count += 1
            unique = f"{name}_{count}"
        used.add(unique)
        node.meta[LAYER] = unique


def _layer_name(node: fx.Node) -> str:
    operator = operator_name(node).removeprefix("aten.")
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return operator
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    if path and kind.startswith("torch.nn.modules.") and not kind.startswith("torch.nn.modules.container"):
        return str(path)
    return f"{path}.{operator}" if path else operator


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
            tensors.update({name: own(t) for name, t in tensors.items() if t is not None})  # type: ignore[call-overload]


def _remove_guards(graph_module: fx.GraphModule) -> None:
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and str(node.target).startswith("_guards"):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph_module.recompile()


def _capture_error(model: nn.Module, error: Exception) -> QDeployError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return QDeployError(
        f"{type(model).__name__} could not be captured by torch.export: {reason}",
        "A model must run without Python control flow on tensor values and accept any batch size; "
        "try torch.export.export(model, inputs, strict=False) on its own to see the whole message.",
    )
