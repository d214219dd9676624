"""AdaRound: learn for every weight whether to round it up or down (Nagel 2020).

Minimises a layer's output error over continuous variables V that move each weight between its two neighbouring codes,
with a regulariser that drives them to one or the other: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training
Quantization", arXiv:2004.10568. The paper draws batches of activations for stochastic gradients of the error. Without
the activation function behind the layer that error is tr((W - Q) H (W - Q)^T) exactly, so here its full gradient comes
from the second moment H alone, for all channels at once. Coordinate descent then mends single codes, which is free to
leave the two neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import QScheme
from qdeploy.quant.codes import neighbouring_codes
from qdeploy.quant.rounding._descent import descend
from qdeploy.quant.rounding._layer import Float64, Layer

ZETA, GAMMA = 1.1, -0.1  # the stretch of the rectified sigmoid, below eq. 23
BETA_START, BETA_END = 20.0, 2.0  # of the regulariser's exponent, annealed
DECAYS, TINY = (0.9, 0.999), np.float32(1e-12)  # of Adam

Float32 = NDArray[np.float32]


def round_weight(
    weight: NDArray[np.float32],
    scale: NDArray[np.float32],
    scheme: QScheme,
    *,
    second_moment: NDArray[np.floating] | None = None,
    seed: int = 0,
    iterations: int = 1000,
    learning_rate: float = 0.05,
    regularisation: float = 0.3,
    warm_up: float = 0.2,
    sweeps: int = 20,
) -> NDArray[np.int8]:
    """Codes like those of ``nearest.round_weight``, whose arguments these are; no channel is worse than nearest.

    ``iterations`` of Adam with ``learning_rate``; ``regularisation`` is lambda of eq. 21, against an error that is 1
    for nearest rounding; it acts after the share ``warm_up`` of the iterations. ``sweeps`` limits the descent that
    follows; 0 leaves it out. Nothing is random. Memory: a few times that of H. QDeployError: NaN or infinity.
    """
    if iterations < 0 or sweeps < 0 or not 0 <= warm_up < 1:
        raise QDeployError(
            f"rounding has iterations {iterations}, sweeps {sweeps}, warm_up {warm_up}.",
            "iterations and sweeps are 0 or more, warm_up is at least 0 and less than 1.",
        )
    layer = Layer.of(weight, scale, scheme, second_moment)
    if second_moment is None or weight.size == 0:
        return layer.best()  # with independent inputs nearest is best
    learned = _learn(layer, iterations, learning_rate, regularisation, warm_up)
    return layer.best(learned, descend(layer, learned, sweeps=sweeps))


def _learn(layer: Layer, iterations: int, learning_rate: float, regularisation: float, warm_up: float) -> Float64:
    """Eq. 21: argmin over V of the error, relative to each channel's for nearest rounding, plus lambda f_reg(V)."""
    lower, upper = neighbouring_codes(layer.steps, layer.scheme)
    problem = Problem.of(layer, lower, upper)
    v = start(layer, lower, upper)
    first, second = np.zeros_like(v), np.zeros_like(v)
    for step in range(1, iterations + 1):
        progress = (step / iterations - warm_up) / (1 - warm_up)
        gradient = problem.gradient(v, progress, regularisation)
        first += np.float32(1 - DECAYS[0]) * (gradient - first)
        second += np.float32(1 - DECAYS[1]) * (np.square(gradient, out=gradient) - second)
        rate = np.float32(learning_rate * np.sqrt(1 - DECAYS[1] ** step) / (1 - DECAYS[0] ** step))
        v -= rate * first / (np.sqrt(second) + TINY)
    return np.where(rectified(v) >= 0.5, upper, lower)


@dataclass(frozen=True, slots=True)
class Problem:
    """The quadratic of every channel, normalised so that nearest rounding has error 1; arrays are float32.

    ``offset`` is lower code - steps, ``gap`` upper - lower, [groups, R, K]; ``moment`` [groups, K, K]; ``weight``
    [groups, R, 1] is that of each channel's error.
    """

    offset: Float32
    gap: Float32
    moment: Float32
    weight: Float32

    @classmethod
    def of(cls, layer: Layer, lower: Float64, upper: Float64) -> Problem:
        """Between the codes ``lower`` and ``upper``, shaped like the layer's steps."""
        size = max(layer.moment.max(initial=0.0), np.finfo(np.float64).tiny)
        nearest = layer.error(layer.nearest)[..., None] / size
        weight = 1 / np.where(nearest > 0, nearest, 1.0)
        arrays = (lower - layer.steps, upper - lower, layer.moment / size, weight)
        return cls(*(array.astype(np.float32) for array in arrays))

    def gradient(self, v: Float32, progress: float, regularisation: float) -> Float32:
        """Of error + lambda * f_reg with respect to V; the regulariser is off while ``progress`` is not over 0."""
        one = np.float32(1)
        sigmoid = one / (one + np.exp(-v))
        h = sigmoid * np.float32(ZETA - GAMMA) + np.float32(GAMMA)
        inside = (h > 0) & (h < 1)
        np.clip(h, 0, 1, out=h)
        gradient: Float32 = (self.offset + self.gap * h) @ self.moment
        gradient *= self.gap * (2 * self.weight)
        if progress > 0:  # eq. 24: f_reg = sum 1 - |2h - 1|^beta
            beta = BETA_START + (BETA_END - BETA_START) * progress
            centred = 2 * h - 1
            power = np.abs(centred) ** np.float32(beta - 1)
            gradient -= np.float32(2 * regularisation * beta) * np.copysign(power, centred)
        gradient *= np.float32(ZETA - GAMMA) * sigmoid * (1 - sigmoid) * inside
        return gradient


def start(layer: Layer, lower: Float64, upper: Float64) -> Float32:
    """V at which h(V) gives each weight its own value, where that lies between the codes."""
    share = np.divide(layer.steps - lower, upper - lower, out=np.zeros_like(lower), where=upper > lower)
    sigmoid = (np.clip(share, 0.01, 0.99) - GAMMA) / (ZETA - GAMMA)
    return np.log(sigmoid / (1 - sigmoid)).astype(np.float32)


def rectified(v: Float32) -> Float32:
    """Eq. 23: h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)."""
    return np.clip((ZETA - GAMMA) / (1 + np.exp(-v)) + GAMMA, 0, 1)
