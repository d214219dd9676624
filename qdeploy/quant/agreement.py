"""Scales at which an Add or Mul of two tensors gives the same codes on every CPU, for every pair of codes.

Kernels round sums that lie near the middle between two codes differently (core/elementwise.py). A result's scale that
is a few hundred-thousandths larger moves all of them off the middle.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from torch import fx

from qdeploy.core.elementwise import Operand, disagreements
from qdeploy.graph.operators import operator_name
from qdeploy.quant.placement import is_clip
from qdeploy.quant.quantizer import ActivationQuantizer

STEP = 2e-5  # of a scale: it moves the largest sum by half a hundredth of a code
MOST = 90  # steps: a range that is 0.2% larger still ends where the clip before it does

OPERATORS = {"aten.add": "Add", "aten.mul": "Mul"}


def agree(graph_module: fx.GraphModule, quantizers: Collection[ActivationQuantizer] | None = None) -> None:
    """Adjust the result's scale of every Add and Mul between frozen activation quantizers, in place, in graph order.

    ``quantizers``: only those results. Where no scale is found it stays as it is; verify/portability.py tells.
    """
    for node in graph_module.graph.nodes:
        op = OPERATORS.get(operator_name(node))
        if op is None or len(node.args) < 2:
            continue
        a, b = (_quantizer(graph_module, source) for source in node.args[:2])
        result = _result(graph_module, node)
        if a is None or b is None or result is None or not (a.frozen and b.frozen and result.frozen):
            continue
        if quantizers is None or any(result is one for one in quantizers):
            _adjust(op, a, b, result)


def _adjust(op: str, a: ActivationQuantizer, b: ActivationQuantizer, result: ActivationQuantizer) -> None:
    operands = [Operand(float(x.dequantize_scale), int(x.zero_point), x.scheme) for x in (a, b)]
    scale, dequantize_scale, zero_point = float(result.scale), float(result.dequantize_scale), int(result.zero_point)
    for step in range(MOST):
        larger = 1 + step * STEP
        tried = Operand(float(np.float32(scale * larger)), zero_point, result.scheme)
        if not disagreements(op, operands[0], operands[1], tried):
            if step:
                result.set(tried.scale, zero_point, dequantize_scale * larger)
            return


def _result(graph_module: fx.GraphModule, node: fx.Node) -> ActivationQuantizer | None:
    """The quantizer of what ``node`` computes, behind the clips that it absorbs."""
    while len(node.users) == 1:
        (node,) = node.users
        if not is_clip(node):
            return _quantizer(graph_module, node)
    return None


def _quantizer(graph_module: fx.GraphModule, node: object) -> ActivationQuantizer | None:
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    module = graph_module.get_submodule(str(node.target))
    return module if isinstance(module, ActivationQuantizer) else None
