"""Turn a calibrated graph into the integer graph that ships: codes for weights and biases, clips absorbed.

The converted PyTorch graph computes with the codes that the artifact holds; exporting it changes their container, not
their values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from qdeploy.core import affine
from qdeploy.core.errors import QDeployError
from qdeploy.graph.operators import argument, delete_unused_parameters, stored, tensor_at
from qdeploy.quant import dynamic
from qdeploy.quant.placement import Placement, QuantizedLayer, clip_range, is_clip
from qdeploy.quant.quantizer import ActivationQuantizer, BiasQuantizer, WeightQuantizer

INT32_MAX = 2**31 - 1


def convert(graph_module: fx.GraphModule, placement: Placement) -> None:
    """Finish the graph, in place, after every activation quantizer is frozen and every weight has its codes."""
    for layer in placement.layers:
        if layer.input is not None:
            _convert_bias(graph_module, layer, layer.input)
    dynamic.convert(graph_module, placement)
    graph_module.graph.eliminate_dead_code()
    _drop_float_weights(graph_module)
    _absorb_clips(graph_module)
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.delete_all_unused_submodules()
    delete_unused_parameters(graph_module)
    graph_module.recompile()


def smallest_weight_scale(bias: np.ndarray | None, x_scale: float, products: np.ndarray) -> np.ndarray:
    """The smallest weight scale [C_out] at which bias and accumulator together stay in int32.

    ``products`` [C_out]: the largest magnitude that the sum of products can reach, in codes. The bias code is
    bias / (x_scale * w_scale); a tiny scale makes it overflow, so the scale is raised instead.
    """
    room = INT32_MAX - products
    if np.any(room <= 0):
        raise QDeployError("The products of a layer alone overflow int32.", "Use fewer weight bits for this layer.")
    # The product of both scales is a scale as well: it must not leave float32's normal numbers.
    smallest = np.full(len(products), affine.SMALLEST_SCALE / min(x_scale, 1.0))
    if bias is not None:
        # 1.001 keeps float32 rounding of the scale from eating the last code.
        smallest = np.maximum(smallest, 1.001 * np.abs(bias.astype(np.float64)) / (x_scale * room))
    return smallest.astype(np.float32)


def smallest_scale(codes: np.ndarray, bias: np.ndarray | None, layer: QuantizedLayer) -> np.ndarray:
    """The scales [C_out] below which a bias and the products of a layer's ``codes`` may leave int32.

    Where the layer's input has no quantizer, biases stay float32: only a scale that is no normal number is too small.
    """
    if layer.input is None:
        return np.full(len(codes), affine.SMALLEST_SCALE, np.float32)
    zero_point = int(layer.input.zero_point)
    products = [affine.accumulator_bound(channel[None], None, zero_point, layer.input.scheme) for channel in codes]
    return smallest_weight_scale(bias, float(layer.input.dequantize_scale), np.array(products))


def layer_bias(graph_module: fx.GraphModule, layer: QuantizedLayer) -> np.ndarray | None:
    """A layer's float32 bias [C_out], or None; an LSTM's is added by its kernel as it is, and no weight's affair."""
    bias: Any = None if layer.recurrent else argument(layer.node, 2, "bias")
    return tensor_at(graph_module, bias.target).detach().cpu().numpy() if stored(bias) else None


def _convert_bias(graph_module: fx.GraphModule, layer: QuantizedLayer, source: ActivationQuantizer) -> None:
    """Make a layer's bias int32 codes, and prove that its accumulator stays in int32."""
    bias = layer_bias(graph_module, layer)
    codes_bias = None
    if bias is not None:
        scale = (np.float32(source.dequantize_scale.item()) * layer.weight.scale.cpu().numpy()).astype(np.float32)
        codes = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
        if np.any(np.abs(codes) > INT32_MAX):
            raise QDeployError(
                f"The bias of {layer.name!r} does not fit int32.", "Report this: the scale guard failed."
            )
        codes_bias = codes.astype(np.int32)
        path = f"{layer.name}.bias_quantizer"
        graph_module.add_submodule(path, BiasQuantizer(codes_bias, scale))
        node = argument(layer.node, 2, "bias")
        with graph_module.graph.inserting_before(layer.node):
            call = graph_module.graph.call_module(path, ())
        call.meta["val"] = node.meta.get("val")
        layer.node.replace_input_with(node, call)
    reach = affine.accumulator_bound(
        layer.weight.codes.cpu().numpy(), codes_bias, int(source.zero_point), source.scheme
    )
    if reach > INT32_MAX:
        raise QDeployError(
            f"The accumulator of {layer.name!r} can reach {reach}, beyond int32.",
            "Use fewer weight bits for this layer.",
        )


def _drop_float_weights(graph_module: fx.GraphModule) -> None:
    """A frozen weight quantizer reads no float weight, so the float weight leaves the graph."""
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and isinstance(graph_module.get_submodule(str(node.target)), WeightQuantizer):
            node.args = ()


def _absorb_clips(graph_module: fx.GraphModule) -> None:
    """Remove a clip whose quantizer saturates exactly where the clip does."""
    for node in reversed(list(graph_module.graph.nodes)):  # of two clips in a row, the second first
        if not is_clip(node) or len(node.users) != 1:
            continue
        (user,) = node.users
        module = graph_module.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, ActivationQuantizer) and module.saturates_like(*clip_range(node)):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
