"""Empirical bias correction: a quantized layer's bias makes up for what quantization does to its mean output.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721, section 4.2,
with the expectation taken over calibration data, as in their appendix D.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from qdeploy.graph.layers import LAYER
from qdeploy.graph.operators import argument, set_parameter, tensor_at
from qdeploy.quant.moments import Moments


def correction(weight: NDArray[Any], quantized: NDArray[Any], moments: Moments) -> NDArray[np.float32]:
    """What to add to the bias so that the layer's mean output is again what it was: W E[x] - Q E[x_hat], [C_out].

    ``weight`` and ``quantized`` [C_out, ...] are the weights before and after quantization, as real numbers; the mean
    input E[x] is that of the float32 graph, E[x_hat] that of the quantized one (eq. 16 and 17, where they are equal).
    """
    groups, size = moments.mean.shape
    before, after = (np.asarray(w, np.float64).reshape(groups, -1, size) for w in (weight, quantized))
    shift = np.einsum("grk,gk->gr", before, moments.mean) - np.einsum("grk,gk->gr", after, moments.mean_hat)
    narrow: NDArray[np.float32] = shift.reshape(-1).astype(np.float32)
    return narrow


def shift_bias(graph_module: fx.GraphModule, layer: fx.Node, shift: NDArray[np.float32]) -> None:
    """Add ``shift`` [C_out] to a layer's bias, in place; a layer without a bias gets one.

    The bias becomes the layer's own: where another layer reads the same parameter, that one keeps its values.
    """
    node = argument(layer, 2, "bias")
    value = torch.from_numpy(np.asarray(shift, np.float32))
    if node is not None:
        bias = tensor_at(graph_module, str(node.target)).detach()
        value = bias + value.to(bias.device)
    path = f"{layer.meta[LAYER]}.corrected_bias"
    set_parameter(graph_module, path, value)
    with graph_module.graph.inserting_before(layer):
        corrected = graph_module.graph.get_attr(path)
    corrected.meta["val"] = value
    kwargs = {name: held for name, held in layer.kwargs.items() if name != "bias"}
    arguments = [*layer.args, None][: max(3, len(layer.args))]
    layer.args, layer.kwargs = (*arguments[:2], corrected, *arguments[3:]), kwargs
