"""The range with the least squared quantization error: clips when finer steps are worth more than what is lost."""

from __future__ import annotations

from qdeploy.quant.histogram import StreamingHistogram
from qdeploy.quant.observers._base import HistogramObserver
from qdeploy.quant.observers._cells import Float64, Masses, squared_error
from qdeploy.quant.observers._search import best_range

SMALLEST_FRACTION = 2.0**-10  # of the full range; below it the histogram's 2**12 to 2**13 bins say too little


class Observer(HistogramObserver):
    """Minimises the squared error over the histogram, with the rounding and clipping of the scheme's own grid.

    Both ends are searched together, or one where the data are one-sided. Never worse than minmax on that error.
    """

    def _choose(self, histogram: StreamingHistogram) -> tuple[float, float]:
        masses = Masses.of(histogram)
        low, high = min(histogram.min, 0.0), max(histogram.max, 0.0)

        def cost(lows: Float64, highs: Float64) -> Float64:
            return squared_error(masses, lows, highs, self.scheme)

        two_sided = low < 0.0 < high
        return best_range(cost, low, high, smallest=SMALLEST_FRACTION, coarse=28 if two_sided else 160)
