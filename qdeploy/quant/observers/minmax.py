"""The full range of the data: nothing is clipped, and one outlier coarsens every step."""

from __future__ import annotations

from qdeploy.quant.histogram import StreamingHistogram
from qdeploy.quant.observers._base import HistogramObserver


class Observer(HistogramObserver):
    """Chooses (min, max), exactly."""

    def _choose(self, histogram: StreamingHistogram) -> tuple[float, float]:
        return histogram.min, histogram.max
