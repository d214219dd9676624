"""QTensor: integer codes together with what they mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import QScheme

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class QTensor:
    """A quantized tensor: real value = (codes - zero_point) * scale.

    ``codes`` has the scheme's integer dtype. ``scale`` (float32) and ``zero_point`` (the codes' dtype) are scalars,
    or vectors along ``axis`` of ``codes``. The invariants are checked when a QTensor is made, so code that receives
    one need not check again.
    """

    codes: NDArray[np.int8 | np.uint8]
    scale: Float32
    zero_point: NDArray[np.int8 | np.uint8]
    scheme: QScheme
    axis: int | None = None

    def __post_init__(self) -> None:
        if self.codes.dtype != self.scheme.dtype:
            raise QDeployError(f"Codes are {self.codes.dtype}, their scheme says {self.scheme.dtype}.")
        if not self.scheme.contains(self.codes):
            raise QDeployError(f"Codes leave the scheme's range {self.scheme.qmin}..{self.scheme.qmax}.")
        if self.scale.dtype != np.float32 or not np.all(np.isfinite(self.scale)) or not np.all(self.scale > 0):
            raise QDeployError("A scale is a positive, finite float32.")
        expected = () if self.axis is None else (self.codes.shape[self.axis],)
        if self.scale.shape != expected or self.zero_point.shape != expected:
            raise QDeployError(f"Scale and zero point have shape {expected}, not {self.scale.shape}.")
        if self.zero_point.dtype != self.scheme.dtype:
            raise QDeployError(f"The zero point is {self.zero_point.dtype}, the codes are {self.scheme.dtype}.")

    def dequantize(self) -> Float32:
        """The real values, float32, shaped like ``codes``."""
        scale, zero_point = self.scale, self.zero_point.astype(np.int32)
        if self.axis is not None:
            shape = [1] * self.codes.ndim
            shape[self.axis] = -1
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        return ((self.codes.astype(np.int32) - zero_point).astype(np.float32) * scale).astype(np.float32)
