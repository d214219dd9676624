"""Percentiles of the data: a fixed share of the values is clipped at each end (99.99% by default)."""

from __future__ import annotations

from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import QScheme
from qdeploy.quant.histogram import StreamingHistogram
from qdeploy.quant.observers._base import HistogramObserver


class Observer(HistogramObserver):
    """Chooses the (100 - percentile)th and the ``percentile``th percentile of the values, exact to a bin width.

    ``percentile`` lies above 50 and at 100 at most, where it is minmax.
    """

    def __init__(self, scheme: QScheme, *, percentile: float = 99.99) -> None:
        super().__init__(scheme)
        if not 50.0 < percentile <= 100.0:
            raise QDeployError(
                f"The percentile observer cannot keep {percentile}% of the values.",
                "percentile is more than 50 and at most 100; usual values are 99.9 to 99.999.",
            )
        self.percentile = float(percentile)

    def _choose(self, histogram: StreamingHistogram) -> tuple[float, float]:
        clipped = (100.0 - self.percentile) / 100.0
        return histogram.quantile(clipped), histogram.quantile(1.0 - clipped)
