"""GPTQ: round one input's weights at a time, and let the inputs that follow make up for the error (Frantar 2022).

Minimises a layer's output error tr((W - Q) H (W - Q)^T), with H = E[x x^T] of its inputs, greedily and in closed form:
Frantar et al., "GPTQ", arXiv:2210.17323, algorithm 1, with columns in the order of falling H_jj (act-order).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import QScheme
from qdeploy.quant.codes import nearest_codes
from qdeploy.quant.rounding._layer import Float64, Layer

BLOCK = 128  # columns whose error reaches the later ones in one product (section 3.3, step 2)


def round_weight(
    weight: NDArray[np.float32],
    scale: NDArray[np.float32],
    scheme: QScheme,
    *,
    second_moment: NDArray[np.floating] | None = None,
    seed: int = 0,
    damping: float = 0.01,
    act_order: bool = True,
) -> NDArray[np.int8]:
    """Codes like those of ``nearest.round_weight``, whose arguments these are; no channel is worse than nearest.

    ``damping``, over 0: the share of H's mean diagonal that is added to its diagonal, so that it can be inverted
    (section 3.3, step 3). ``act_order``: columns in the order of falling H_jj rather than as they come. Nothing is
    random. Memory: a few times that of H. QDeployError: NaN or infinity, an H that is not positive semidefinite.
    """
    if not damping > 0:
        raise QDeployError(f"rounding.damping is {damping}.", "Give a number over 0, such as 0.01.")
    layer = Layer.of(weight, scale, scheme, second_moment)
    if second_moment is None or weight.size == 0:
        return layer.best()  # with independent inputs no error can be made up for
    return layer.best(solve(layer, Spread.of(layer, damping, act_order=act_order)))


@dataclass(frozen=True, slots=True)
class Spread:
    """How the error of one input's weights spreads to those that follow; it depends on the inputs' moment alone.

    ``order`` [groups, K] is the order in which inputs are rounded, ``factor`` [groups, K, K] the upper Cholesky factor
    U of the inverse of their damped moment in that order, H^-1 = U^T U.
    """

    order: NDArray[np.intp]
    factor: Float64

    @classmethod
    def of(cls, layer: Layer, damping: float = 0.01, *, act_order: bool = True) -> Spread:
        """For a layer's moment. QDeployError: it is not positive semidefinite."""
        moment, size = layer.damped(damping), layer.moment.shape[-1]
        order = np.tile(np.arange(size), (len(moment), 1))
        if act_order:
            order = np.argsort(-np.diagonal(moment, axis1=1, axis2=2), axis=1, kind="stable")
        moment = np.take_along_axis(np.take_along_axis(moment, order[:, :, None], 1), order[:, None, :], 2)
        return cls(order, _inverse_cholesky(moment))


def solve(layer: Layer, spread: Spread) -> Float64:
    """The algorithm itself: codes [groups, R, K]."""
    order, factor, size = spread.order, spread.factor, layer.moment.shape[-1]
    rest = np.take_along_axis(layer.steps, order[:, None, :], 2)  # what is left to round, in steps
    codes = np.empty_like(rest)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        errors = np.empty((*rest.shape[:2], stop - start))
        for j in range(start, stop):
            codes[..., j] = nearest_codes(rest[..., j], layer.scheme)
            error = errors[..., j - start] = (rest[..., j] - codes[..., j]) / factor[:, None, j, j]
            rest[..., j + 1 : stop] -= error[..., None] * factor[:, None, j, j + 1 : stop]
        rest[..., stop:] -= errors @ factor[:, start:stop, stop:]
    return np.take_along_axis(codes, np.argsort(order, axis=1)[:, None, :], 2)


def _inverse_cholesky(moment: Float64) -> Float64:
    """The upper Cholesky factor U of the inverse, H^-1 = U^T U: its row j says how column j's error spreads.

    From the factor of H turned round, H = V V^T with V upper, U is V^-1: more exact than inverting H first.
    """
    try:
        factor = np.linalg.cholesky(moment[:, ::-1, ::-1])[:, ::-1, ::-1]
    except np.linalg.LinAlgError:
        raise QDeployError(
            "The second moment of a layer's inputs is not positive definite.", "Raise rounding.damping."
        ) from None
    upper = torch.from_numpy(factor.copy())
    identity = torch.eye(upper.shape[-1], dtype=upper.dtype).expand_as(upper)
    inverse: Float64 = torch.linalg.solve_triangular(upper, identity, upper=True).numpy()
    return inverse
