"""The modules that placement puts into the graph.

An ActivationQuantizer sits on a value, a WeightQuantizer on a stored weight. During calibration they watch; in
quantization-aware training a fake quantizer computes in their place; then they hold integer parameters and compute what
the artifact computes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from qdeploy.core import affine
from qdeploy.core.errors import QDeployError
from qdeploy.core.qtensor import QTensor
from qdeploy.core.scheme import QScheme
from qdeploy.quant import ops
from qdeploy.quant.histogram import StreamingHistogram


class ActivationQuantizer(nn.Module):
    """Quantizes one activation tensor, per tensor.

    ``watch(observer)`` makes it observe and pass values through; ``freeze()`` turns what was observed into ``scale``
    (float32 scalar) and ``zero_point`` (scalar of the scheme's dtype) and makes it quantize. Until then it is the
    identity. While ``fake`` holds a fake quantizer, that computes instead. ``dequantize_scale`` is what a code counts
    for behind the quantizer: ``scale``, unless a quantizer stretches its interval (QIL).
    """

    scale: Tensor
    dequantize_scale: Tensor
    zero_point: Tensor

    def __init__(self, name: str, scheme: QScheme) -> None:
        super().__init__()
        self.name = name
        self.scheme = scheme
        self.observer: object | None = None
        self.histogram: StreamingHistogram | None = None  # of what was observed, for reports
        self.fake: nn.Module | None = None
        self.frozen = False
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("dequantize_scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int8 if scheme.signed else torch.uint8))

    def watch(self, observer: object) -> None:
        """Observe from now on with ``observer`` (an observer plugin's instance)."""
        self.observer = observer
        self.histogram = getattr(observer, "histogram", None)

    def freeze(self) -> None:
        """Choose the range from what was observed and quantize from now on."""
        self.set_range(*self.observed_range())

    def observed_range(self) -> tuple[float, float]:
        """The range that the observer chooses from what it has seen."""
        try:
            low, high = self.observer.range()  # type: ignore[union-attr]
        except QDeployError as error:
            raise QDeployError(f"Calibrating {self.name!r}: {error.message}", error.hint) from None
        return float(low), float(high)

    def set_range(self, low: float, high: float) -> None:
        """Quantize from now on, with the parameters that cover [low, high]."""
        scale, zero_point = affine.qparams(low, high, self.scheme)
        self.set(float(scale), zero_point)

    def set(self, scale: float, zero_point: int, dequantize_scale: float | None = None) -> None:
        """Quantize from now on with these parameters; both scales are float32 values."""
        self.scale.fill_(scale)
        self.dequantize_scale.fill_(scale if dequantize_scale is None else dequantize_scale)
        self.zero_point.fill_(zero_point)
        self.observer = self.fake = None
        self.frozen = True

    @property
    def range(self) -> tuple[float, float]:
        """The real values of the lowest and highest code."""
        scale, zero_point = float(self.scale), int(self.zero_point)
        return (self.scheme.qmin - zero_point) * scale, (self.scheme.qmax - zero_point) * scale

    def saturates_like(self, low: float, high: float) -> bool:
        """Whether quantizing alone gives the codes of clamp(x, low, high) followed by quantizing, for every x."""
        scale, zero_point = float(self.scale), int(self.zero_point)
        lowest = -np.inf if low == -np.inf else round(low / scale) + zero_point
        highest = np.inf if high == np.inf else round(high / scale) + zero_point
        return bool(lowest <= self.scheme.qmin and highest >= self.scheme.qmax)

    def forward(self, x: Tensor, moved: bool = False) -> Tensor:
        """Identity, observation, or quantize and dequantize. ``moved``: x holds values that this quantizer made."""
        if self.observer is not None and not moved:
            self._observe(x.detach())
        if not self.frozen:
            return x if self.fake is None or moved else self.fake(x)
        codes = ops.quantize(
            x, self.dequantize_scale if moved else self.scale, self.zero_point, self.scheme.qmin, self.scheme.qmax
        )
        values: Tensor = ops.dequantize(codes, self.dequantize_scale, self.zero_point, -1)
        return values

    def _observe(self, x: Tensor) -> None:
        try:
            self.observer.observe(x)  # type: ignore[union-attr]
        except QDeployError as error:
            raise QDeployError(
                f"Calibrating {self.name!r}: {error.message}",
                error.hint
                or "Look for a division by zero or an overflow in the model, or for bad calibration samples.",
            ) from None


class WeightQuantizer(nn.Module):
    """Holds the codes of one stored weight, per output channel (axis 0), once ``set`` has given them.

    Until then it passes the float weight on, through the fake quantizer ``fake`` if it has one.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, name: str, scheme: QScheme) -> None:
        super().__init__()
        self.name = name
        self.scheme = scheme
        self.fake: nn.Module | None = None
        self.frozen = False

    def set(self, weight: QTensor) -> None:
        """Use the codes of ``weight`` from now on, whatever is passed in."""
        assert weight.axis == 0
        self.scheme, self.fake = weight.scheme, None
        self.register_buffer("codes", torch.from_numpy(weight.codes.copy()))
        self.register_buffer("scale", torch.from_numpy(weight.scale.copy()))
        self.register_buffer("zero_point", torch.from_numpy(weight.zero_point.copy()))
        self.frozen = True

    @property
    def tensor(self) -> QTensor:
        """The codes that ``set`` has given it."""
        codes, scale, zero_point = (x.cpu().numpy() for x in (self.codes, self.scale, self.zero_point))
        return QTensor(codes, scale, zero_point, self.scheme, axis=0)

    def forward(self, weight: Tensor | None = None) -> Tensor:
        """The float weight before codes are set, fake-quantized or not; the dequantized codes after."""
        if not self.frozen:
            assert weight is not None
            return weight if self.fake is None else self.fake(weight)
        values: Tensor = ops.dequantize(self.codes, self.scale, self.zero_point, 0)
        return values


class StoredWeight(nn.Module):
    """The codes of a weight and their scales in the layout of a kernel that quantizes what it reads itself."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, codes: np.ndarray, scale: np.ndarray, scheme: QScheme) -> None:
        super().__init__()
        self.scheme = scheme
        # Zeros, but each weight has its own: onnxruntime cannot load what shares them (export/passes/sharing.py).
        self.register_buffer("zero_point", torch.zeros(scale.shape, dtype=torch.int8))
        self.register_buffer("codes", torch.from_numpy(np.ascontiguousarray(codes)))
        self.register_buffer("scale", torch.from_numpy(np.ascontiguousarray(scale)))


class BiasQuantizer(nn.Module):
    """A bias as int32 codes with scale x_scale * w_scale, which integer kernels add to their accumulator."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, codes: np.ndarray, scale: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(codes.astype(np.int32)))
        self.register_buffer("scale", torch.from_numpy(scale.astype(np.float32)))
        self.register_buffer("zero_point", torch.zeros(codes.shape, dtype=torch.int32))

    def forward(self) -> Tensor:
        """The bias, float32 [C_out]."""
        values: Tensor = ops.dequantize(self.codes, self.scale, self.zero_point, 0)
        return values
