"""Operators that only move values, in forms through which onnxruntime passes integer codes."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.nn import functional

from qdeploy.graph.layers import LAYER, unique_layer
from qdeploy.graph.operators import argument, is_operator, is_tensor, set_parameter, shape_of, value_of
from qdeploy.graph.rewrite import insert

aten = torch.ops.aten

_RESHAPES = ("aten.reshape", "aten.unflatten")
_SPLITS = ("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unbind")
# A clip is monotone, so it may be applied before any of these as well as behind it.
_MOVES = tuple(
    f"aten.{name}"
    for name in (
        *("max_pool1d", "max_pool2d", "flatten", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "slice"),
        *("select", "index_select", "upsample_nearest2d", "pixel_shuffle"),
    )
)
_CLIPS = ("aten.relu", "aten.relu6", "aten.hardtanh", "aten.clamp")


def splits_to_slices(graph: fx.Graph) -> None:
    """Make every split slices, and what is unbound selected, in place: Split would stay float32."""
    for node in list(graph.nodes):
        if is_operator(node, *_SPLITS):
            _split_to_slices(graph, node)


def normalize(graph_module: fx.GraphModule) -> None:
    """Rewrite reshapes, resizes and clips of a graph, in place."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if is_operator(node, *_RESHAPES):
            _constant_shape(node)
        elif is_operator(node, "aten.channel_shuffle"):
            _channel_shuffle(graph, node)
        elif is_operator(node, "aten.upsample_nearest2d"):
            _resize_nearest(graph_module, node)
    for node in list(graph.nodes):
        if is_operator(node, *_CLIPS) and is_tensor(node):
            node.args = tuple(float(a) if isinstance(a, int) else a for a in node.args)  # clamp(x, 0.5, 5) is no Clip
            while _step_before_move(node):
                pass


def _constant_shape(node: fx.Node) -> None:
    """Torch writes the batch size into a shape as a computed value; -1 says the same if it is the only unknown."""
    shape = [size if isinstance(size, int) else -1 for size in shape_of(node)]
    if shape.count(-1) <= 1 and 0 not in shape:
        node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0], shape), {}


def _split_to_slices(graph: fx.Graph, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    unbound = is_operator(node, "aten.unbind")
    axis = argument(node, 1 if unbound else 2, "dim", 0) % len(shape_of(source))
    sizes = [1 if unbound else part.shape[axis] for part in node.meta["val"]]
    if not all(isinstance(size, int) for size in sizes) or not all(is_operator(part, "getitem") for part in node.users):
        return
    for part in list(node.users):
        index = part.args[1]
        assert isinstance(index, int)
        start = sum(sizes[:index])
        target, args = (
            (aten.select.int, (source, axis, index)) if unbound
            else (aten.slice.Tensor, (source, axis, start, start + sizes[index]))
        )  # fmt: skip
        taken = insert(graph, target, args, value_of(part), before=part, like=part)
        taken.meta[LAYER] = unique_layer(graph, f"{node.meta[LAYER]}.{index}")
        part.replace_all_uses_with(taken)
        graph.erase_node(part)
    graph.erase_node(node)


def _channel_shuffle(graph: fx.Graph, node: fx.Node) -> None:
    """The transpose that it is: of [N, groups, C/groups, ...]."""
    source, groups = node.args
    assert isinstance(source, fx.Node)
    assert isinstance(groups, int)
    channels, *rest = shape_of(source)[1:]
    if not all(isinstance(size, int) for size in (channels, *rest)):
        return
    value = value_of(source).reshape(-1, groups, channels // groups, *rest)
    apart = insert(graph, aten.reshape.default, (source, [-1, *value.shape[1:]]), value, before=node, like=node,
                   suffix=".reshape")  # fmt: skip
    turned = insert(graph, aten.transpose.int, (apart, 1, 2), value.transpose(1, 2), before=node, like=node,
                    suffix=".transpose")  # fmt: skip
    node.target, node.args = aten.reshape.default, (turned, [-1, channels, *rest])


def _resize_nearest(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """By whole factors it is a Resize; by others it picks rows and columns, which are computed here as torch does."""
    graph, source, result = graph_module.graph, node.args[0], value_of(node)
    assert isinstance(source, fx.Node)
    have, want = shape_of(source)[2:], tuple(result.shape[2:])
    if node.target is not aten.upsample_nearest2d.vec or not all(isinstance(size, int) for size in (*have, *want)):
        return
    if all(w % h == 0 for h, w in zip(have, want, strict=True)):
        node.args = (source, None, [float(w // h) for h, w in zip(have, want, strict=True)])
        return
    sizes, factors = argument(node, 1, "output_size"), argument(node, 2, "scale_factors")
    for i, axis in enumerate((2, 3)):
        places = torch.arange(have[i], dtype=torch.float32).reshape(1, 1, -1)
        picked = functional.interpolate(
            places, size=sizes and [sizes[i]], scale_factor=factors and [factors[i]], mode="nearest"
        )
        path = f"{node.meta[LAYER]}.index{axis}"
        set_parameter(graph_module, path, picked.reshape(-1).long())
        with graph.inserting_before(node):
            indices = graph.get_attr(path)
        indices.meta["val"] = picked.reshape(-1).long()
        shape = [*shape_of(source)[:axis], want[i], *shape_of(source)[axis + 1 :]]
        source = insert(graph, aten.index_select.default, (source, axis, indices), result.new_empty(shape),
                        before=node, like=node, suffix=".rows" if axis == 2 else ".columns")  # fmt: skip
    node.replace_all_uses_with(source)
    graph.erase_node(node)


def _step_before_move(clip: fx.Node) -> bool:
    """Exchange a clip with the move before it, if nobody else reads either of the two values before it."""
    move = clip.args[0]
    if not isinstance(move, fx.Node) or not is_operator(move, *_MOVES) or len(move.users) != 1:
        return False
    source = move.args[0]
    if not isinstance(source, fx.Node) or len(source.users) != 1 or any(isinstance(a, fx.Node) for a in clip.args[1:]):
        return False
    clip.replace_all_uses_with(move)
    move.replace_input_with(source, clip)
    clip.replace_input_with(move, source)
    move.prepend(clip)
    before = source.meta.get("val")
    assert isinstance(before, Tensor)
    clip.meta["val"] = before
    return True
