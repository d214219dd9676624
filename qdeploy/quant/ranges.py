"""Activation ranges learned by reconstruction: a quantizer's range is judged by the layers that read it.

An observer asks how well single values survive; a layer only cares for the sums that it makes of them, and by how much
its inputs already differ from the float32 graph's. So the range is searched that minimises the error of the readers'
outputs, in the way that Li et al., "BRECQ", arXiv:2102.05426, section 3.3, learn the step of activations.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, fx

from qdeploy.graph.operators import argument, operator_name
from qdeploy.quant.fusion_table import BY_ATEN, Role
from qdeploy.quant.lockstep import Lockstep
from qdeploy.quant.quantizer import ActivationQuantizer

SAMPLES = 128  # that judge a range: every candidate runs the readers on them

# What an end of the range is multiplied with: coarse steps first, then fine ones around the best.
COARSE = np.geomspace(0.4, 1.25, 9)
FINE = np.geomspace(0.93, 1.07, 5)


@torch.no_grad()
def learn_range(lockstep: Lockstep, node: fx.Node, quantizer: ActivationQuantizer) -> None:
    """Set the range of ``quantizer``, which ``node`` calls, where the walk stands; never worse than the one it has.

    The error is that of x - Q(x_hat), x from the float32 graph, behind each reader relative to the power of x behind
    it: a reader with weights multiplies it with them, for another one it is what counts as it is. An end of the range
    at 0 stays there, because a ReLU is the clip of its quantizer.
    """
    data = list(_samples(lockstep, node.all_input_nodes[0]))
    power = _energy(lockstep, node, [x for x, _ in data])
    power = np.where(power > 0, power, 1.0)

    def cost(ends: tuple[float, float]) -> float:
        quantizer.set_range(*ends)
        errors = [x - quantizer(x_hat) for x, x_hat in data]
        return float((_energy(lockstep, node, errors) / power).sum())

    best = quantizer.range
    least = cost(best)
    for fractions in (COARSE, FINE):
        for end in (1, 0):
            centre = best
            for fraction in fractions if centre[end] else ():
                trial = (centre[0] * fraction, centre[1]) if end == 0 else (centre[0], centre[1] * fraction)
                found = cost(trial)
                if found < least:
                    best, least = trial, found
    quantizer.set_range(*best)


def _samples(lockstep: Lockstep, source: fx.Node) -> Iterator[tuple[Tensor, Tensor]]:
    """The first SAMPLES samples of a value, in both graphs."""
    left = SAMPLES
    for x, x_hat, _ in lockstep.pairs(source):
        if left > 0:
            yield x[:left], x_hat[:left]
        left -= len(x)


def _energy(lockstep: Lockstep, node: fx.Node, batches: list[Tensor]) -> np.ndarray:
    """The summed squares of values behind each reader of ``node``, without its bias: float64 [readers]."""
    return np.array(
        [sum(float(_behind(lockstep, reader, x).double().square().sum()) for x in batches) for reader in node.users]
    )


def _behind(lockstep: Lockstep, reader: fx.Node, x: Tensor) -> Tensor:
    row = BY_ATEN.get(operator_name(reader))
    if row is None or row.role is not Role.WEIGHTED:
        return x
    weight = lockstep.parameter(argument(reader, 1, "weight"), quantized=False)
    others = {name: value for name, value in reader.kwargs.items() if name not in ("weight", "bias")}
    result: Tensor = reader.target(x, weight, None, *reader.args[3:], **others)  # type: ignore[operator]
    return result
