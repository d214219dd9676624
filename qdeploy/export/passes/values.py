"""Constants of an ONNX graph, read and made: what several passes share."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


def array(value: ir.Value | None) -> np.ndarray | None:
    """The stored tensor that ``value`` is; None for a computed value, or none at all."""
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def dtype_of(value: ir.Value | None) -> ir.DataType:
    """What the elements of ``value`` are."""
    assert value is not None
    assert value.dtype is not None
    return value.dtype


def equal(first: ir.Value | None, second: ir.Value | None) -> bool:
    """Whether both are stored tensors of the same elements."""
    one, other = array(first), array(second)
    return one is not None and other is not None and np.array_equal(one, other)


def initializer(graph: ir.Graph, name: str, tensor: np.ndarray) -> ir.Value:
    """A new initializer of ``graph``, called ``name``."""
    stored = ir.tensor(tensor, name=name)
    value = ir.Value(name=name, const_value=stored, shape=ir.Shape(tensor.shape), type=ir.TensorType(stored.dtype))
    graph.initializers.add(value)
    return value


def store_as(
    graph: ir.Graph, value: ir.Value, tensor: np.ndarray, op_type: str, *inputs: ir.Value, name: str, **options: Any
) -> None:
    """Store ``tensor`` in the place of the initializer ``value``, under its name.

    The readers of ``value`` read op_type(tensor, *inputs) instead, a node called ``name`` whose ``options`` are those
    of ir.node.
    """
    readers = {use.node for use in value.uses()}
    computed = ir.Value(name=name, shape=value.shape, type=value.type)
    value.replace_all_uses_with(computed)
    graph.initializers.pop(str(value.name))
    stored = initializer(graph, str(value.name), tensor)
    node = ir.node(op_type, [stored, *inputs], outputs=[computed], name=name, **options)
    graph.insert_before(next(reader for reader in graph if reader in readers), node)
