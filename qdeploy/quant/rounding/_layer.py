"""A layer as rounding solvers see it: rows of weights in steps of their scales, and what they meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import QScheme
from qdeploy.quant.codes import nearest_codes
from qdeploy.quant.finite import refusal

Float64 = NDArray[np.float64]

TIE = 1e-6  # relative: errors closer than this may order otherwise in the float32 of the artifact


@dataclass(frozen=True, slots=True)
class Layer:
    """``steps`` [groups, R, K]: weight / scale, R output channels a group. ``moment`` [groups, K, K]: E[x x^T].

    In steps, every channel is solved alike: its scale does not change which of two codes is better.
    """

    steps: Float64
    moment: Float64
    scheme: QScheme
    shape: tuple[int, ...]

    @classmethod
    def of(
        cls, weight: NDArray[Any], scale: NDArray[Any], scheme: QScheme, second_moment: NDArray[Any] | None
    ) -> Layer:
        """From a rounding plugin's arguments; without a second moment, all inputs are alike and independent.

        QDeployError: NaN or infinite weights, scales or moments, scales that are not positive, shapes that disagree.
        """
        for name, array in (("weight", weight), ("scale", scale), ("second moment", second_moment)):
            if array is not None and not np.isfinite(array).all():
                raise refusal(int(np.isnan(array).sum()), int(np.isinf(array).sum()), f"in the {name}")
        if scale.shape != weight.shape[:1] or not (scale > 0).all():
            raise QDeployError(f"Rounding needs {len(weight)} positive scales, one an output channel.")
        size = int(np.prod(weight.shape[1:]))
        moment = np.eye(size) if second_moment is None else np.asarray(second_moment, np.float64)
        moment = moment[None] if moment.ndim == 2 else moment
        if moment.shape[1:] != (size, size) or len(weight) % len(moment):
            raise QDeployError(
                f"The second moment has shape {np.asarray(second_moment).shape}, the weight {weight.shape}.",
                f"Give [{size}, {size}], or [groups, {size}, {size}] for a grouped layer.",
            )
        steps = weight.reshape(len(weight), size).astype(np.float64) / scale.astype(np.float64)[:, None]
        return cls(steps.reshape(len(moment), len(weight) // len(moment), size), moment, scheme, weight.shape)

    @property
    def nearest(self) -> Float64:
        """The nearest codes, shaped like ``steps``."""
        return nearest_codes(self.steps, self.scheme)

    def error(self, codes: Float64) -> Float64:
        """E[((steps - codes) x)^2] of each channel, [groups, R]."""
        difference = self.steps - codes
        errors: Float64 = np.einsum("grk,grk->gr", difference @ self.moment, difference)
        return errors

    def damped(self, damping: float) -> Float64:
        """The moment, plus ``damping`` times its mean diagonal on the diagonal; the identity where that is zero."""
        mean = np.trace(self.moment, axis1=1, axis2=2)[:, None, None] / max(self.moment.shape[-1], 1)
        return self.moment + np.where(mean > 0, damping * mean, 1.0) * np.eye(self.moment.shape[-1])

    def best(self, *candidates: Float64) -> NDArray[Any]:
        """Of several candidates and the nearest codes, each channel's best, as the plugin returns codes."""
        best = self.nearest
        least = self.error(best)
        for codes in candidates:
            error = self.error(codes)
            better = error < least * (1 - TIE)
            best, least = np.where(better[..., None], codes, best), np.where(better, error, least)
        return best.reshape(self.shape).astype(self.scheme.dtype)
