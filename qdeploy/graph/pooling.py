"""Pooling in the forms that have integer kernels: global average, plain average, plain maximum."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdeploy.graph.operators import argument, is_operator, shape_of, value_of
from qdeploy.graph.rewrite import derive, insert

aten = torch.ops.aten


def normalize(graph: fx.Graph) -> None:
    """Rewrite means, maxima and adaptive pools of a graph, in place."""
    for node in list(graph.nodes):
        if is_operator(node, "aten.mean", "aten.amax"):
            _merge(node)
            _to_pool(graph, node)
    for node in list(graph.nodes):
        if is_operator(node, "aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d"):
            _simplify_average(graph, node)
        elif is_operator(node, "aten.adaptive_max_pool1d", "aten.adaptive_max_pool2d"):
            _simplify_maximum(graph, node)
    for node in list(graph.nodes):
        if is_operator(node, "aten.avg_pool1d", "aten.avg_pool2d"):
            _exclude_padding(graph, node)


def _merge(node: fx.Node) -> None:
    """x.mean(3).mean(2) is x.mean((2, 3))."""
    first = node.args[0]
    if not isinstance(first, fx.Node) or first.target is not node.target or len(first.users) != 1:
        return
    keep = argument(node, 2, "keepdim", False)
    if keep != argument(first, 2, "keepdim", False):
        return
    inner, outer = _axes(first), _axes(node)
    if inner is None or outer is None or len(inner) != 1 or len(outer) != 1 or (keep and inner == outer):
        return
    # Without keepdim the first reduction takes its axis away, and those behind it move forward.
    moved = outer[0] + (0 if keep or outer[0] < inner[0] else 1)
    node.args, node.kwargs = (first.args[0], sorted((inner[0], moved)), keep), {}
    first.graph.erase_node(first)


def _to_pool(graph: fx.Graph, node: fx.Node) -> None:
    """A mean or maximum over all spatial axes of [N, C, L] or [N, C, H, W]."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape, rank = shape_of(source), len(shape_of(source))
    if _axes(node) != list(range(2, rank)) or rank not in (3, 4):
        return
    if is_operator(node, "aten.mean"):
        target = aten.adaptive_avg_pool1d.default if rank == 3 else aten.adaptive_avg_pool2d.default
        window = [1] * (rank - 2)
        value = value_of(source).mean(list(range(2, rank)), keepdim=True)
    else:
        target = aten.max_pool1d.default if rank == 3 else aten.max_pool2d.default
        window = list(shape[2:])
        if not all(isinstance(size, int) for size in window):
            return
        value = value_of(source).amax(list(range(2, rank)), keepdim=True)
    result = insert(graph, target, (source, window), value, before=node, like=node)
    if not argument(node, 2, "keepdim", False):
        result = insert(graph, aten.flatten.using_ints, (result, 1), value_of(node), before=node, like=node,
                        suffix=".flatten")  # fmt: skip
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _axes(node: fx.Node) -> list[int] | None:
    """The axes that a reduction reduces, counted from the front; None for all of them."""
    axes, rank = argument(node, 1, "dim"), len(shape_of(node.args[0]))  # type: ignore[arg-type]
    axes = [axes] if isinstance(axes, int) else axes
    return sorted(axis % rank for axis in axes) if axes and rank else None


def _simplify_average(graph: fx.Graph, node: fx.Node) -> None:
    windows = _equal_windows(node)
    if all(size == 1 for size in shape_of(node)[2:]) or windows is None:
        return
    if all(size == 1 for size in windows):
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        graph.erase_node(node)
        return
    node.target = aten.avg_pool1d.default if len(windows) == 1 else aten.avg_pool2d.default
    node.args, node.kwargs = (node.args[0], windows, windows), {}


def _simplify_maximum(graph: fx.Graph, node: fx.Node) -> None:
    """The adaptive form gives values and indices; the plain one, which has an integer kernel, only values."""
    users = list(node.users)
    if any(not is_operator(user, "getitem") or user.args[1] != 0 for user in users):
        return
    source = node.args[0]
    assert isinstance(source, fx.Node)
    for user in users:
        windows = _equal_windows(user, source)
        if windows is None:
            return
        target = aten.max_pool1d.default if len(windows) == 1 else aten.max_pool2d.default
        user.target, user.args = target, (source, windows, windows)
        derive(user, node)
    if not node.users:
        graph.erase_node(node)


def _equal_windows(node: fx.Node, source: fx.Node | None = None) -> list[int] | None:
    """The window, which is also the stride, that pools ``source`` to the shape of ``node``; None if windows differ."""
    source = source or node.args[0]  # type: ignore[assignment]
    assert source is not None
    have, want = shape_of(source)[2:], shape_of(node)[2:]
    if not have or not all(isinstance(size, int) for size in (*have, *want)):
        return None
    if any(h % w for h, w in zip(have, want, strict=True)):
        return None
    return [h // w for h, w in zip(have, want, strict=True)]


def _exclude_padding(graph: fx.Graph, node: fx.Node) -> None:
    """Average over what there is: without padding there is nothing else, and with ceil_mode the zeros are made real.

    A window that ceil_mode lets hang over the edge averages over less, padding included. onnxruntime's integer kernel
    gets that wrong (it divides by the whole window), unless it is told to leave padding out.
    """
    kernel = argument(node, 1, "kernel_size")
    spatial = len(shape_of(node)) - 2
    stride, padding = argument(node, 2, "stride") or kernel, _each(argument(node, 3, "padding", 0), spatial)
    ceil_mode, count_padding = argument(node, 4, "ceil_mode", False), argument(node, 5, "count_include_pad", True)
    if not count_padding or (any(padding) and not ceil_mode):
        return
    divisor = argument(node, 6, "divisor_override")
    source = node.args[0]
    assert isinstance(source, fx.Node)
    pads = [p for size in reversed(padding) for p in (size, size)]
    if any(padding):
        value = value_of(source)
        grown = [*value.shape[:2], *(n + 2 * p for n, p in zip(value.shape[2:], padding, strict=True))]
        source = insert(graph, aten.pad.default, (source, pads), value.new_empty(grown), before=node, like=node,
                        suffix=".pad")  # fmt: skip
    node.args = (source, kernel, stride, [0] * spatial, ceil_mode, False, *([] if divisor is None else [divisor]))
    node.kwargs = {}
    _cut(graph, node)


def _cut(graph: fx.Graph, node: fx.Node) -> None:
    """Drop the last window where it starts in what was padding: torch leaves it out, and now nothing is padding."""
    wanted = value_of(node)
    source, *arguments = node.args
    assert isinstance(source, fx.Node)
    found: torch.Tensor = node.target(value_of(source), *arguments)  # type: ignore[operator]
    node.meta["val"] = found
    result = node
    for axis in range(2, wanted.dim()):
        if found.shape[axis] != wanted.shape[axis]:
            size = wanted.shape[axis]
            found = found.narrow(axis, 0, size)
            after = result.next
            cut = insert(graph, aten.slice.Tensor, (result, axis, 0, size), found, before=after, like=node,
                         suffix=".cut")  # fmt: skip
            result.replace_all_uses_with(cut, delete_user_cb=lambda user, cut=cut: user is not cut)  # type: ignore[misc]
            result = cut


def _each(value: Any, axes: int) -> list[int]:
    """One number an axis, where one number may stand for all."""
    sizes = [value] if isinstance(value, int) else list(value)
    return sizes * (axes if len(sizes) == 1 else 1)
