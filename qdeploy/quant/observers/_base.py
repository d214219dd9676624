"""What the observers share: a streaming histogram, and a range that is never useless."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import QScheme
from qdeploy.quant.histogram import StreamingHistogram


class HistogramObserver(ABC):
    """Sees a tensor in batches, in any order, and chooses the real range that its quantizer covers.

    The state is ``histogram`` and nothing else, so memory does not grow with samples, and observing in batches,
    observing at once and merging observers give exactly the same range.
    """

    def __init__(self, scheme: QScheme) -> None:
        self.scheme = scheme
        self.histogram = StreamingHistogram()

    def observe(self, x: Tensor) -> None:
        """Take in the values of ``x``: any shape, device and real dtype; an empty tensor changes nothing.

        NaN and infinity are a QDeployError that counts them; the caller says in which layer.
        """
        self.histogram.observe(x)

    def merge(self, other: HistogramObserver) -> None:
        """Take in all that ``other``, an observer of the same kind, options and scheme, has seen."""
        if type(other) is not type(self) or other._options() != self._options():
            raise QDeployError("Only observers of one kind, with the same options and scheme, can be merged.")
        self.histogram.merge(other.histogram)

    def range(self) -> tuple[float, float]:
        """The chosen (low, high), within the smallest interval that holds zero and all values seen.

        ``core.affine.qparams`` widens it to hold zero. A choice that would leave only zero although there are other
        values (a tensor that is nearly always 0) gives way to the full range. QDeployError if nothing was seen.
        """
        if self.histogram.total == 0:
            raise QDeployError(
                "An observer has seen no values, so it can choose no range.",
                "Calibrate with at least one sample that reaches this layer.",
            )
        full = self.histogram.min, self.histogram.max
        if full[0] == full[1]:  # a constant is exact at either end of its range: there is nothing to choose
            return full
        low, high = self._choose(self.histogram)
        if min(low, 0.0) == max(high, 0.0):
            return full
        return low + 0.0, high + 0.0  # + 0.0 makes 0.0 of -0.0

    @abstractmethod
    def _choose(self, histogram: StreamingHistogram) -> tuple[float, float]:
        """The range for the values in ``histogram``, of which at least two differ."""

    def _options(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "histogram"}
