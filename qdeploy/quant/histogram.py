"""StreamingHistogram: an exactly mergeable histogram of real values in constant memory.

Bins are [k*w, (k+1)*w) with w = 2**e, aligned at multiples of their width, so a bin at width 2w is exactly the union
of two bins at width w. The width is the smallest power of two at which the bins from the smallest value seen to the
largest number at most ``bins``: a function of the two extremes alone, which only grows as they move apart. Counts
are integers. Together that makes the state a function of the multiset of values, whatever the order and the batches
they came in. The window follows the data, so one-sided data use all bins.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdeploy.core.errors import QDeployError
from qdeploy.quant.finite import refusal

# Every float32 is a multiple of 2**-149, and of 2**-24 times the power of two above the largest magnitude around:
# finer bins would tell nothing more, and a bin number stays within 2**24, which float32 holds exactly.
SMALLEST_EXPONENT = -149
MANTISSA_BITS = 24

# Values binned at a time: temporaries that stay in a core's cache are twice as fast as ones that do not, and an
# accelerator wants fewer, larger kernels.
CHUNK_CPU, CHUNK_ACCELERATOR = 1 << 17, 1 << 24


class StreamingHistogram:
    """Counts of real values in at most ``bins`` equal bins, with the exact extremes and the exact number of zeros.

    ``min``, ``max`` are the float32 extremes (inf, -inf while empty), ``total`` the number of values, ``zeros`` how
    many of them are exactly 0, ``counts`` int64 [n <= bins], the first and the last of them not zero.
    """

    def __init__(self, bins: int = 8192) -> None:
        if bins < 2:
            raise QDeployError(f"A histogram of {bins} bins cannot widen them.", "Use at least 2 bins.")
        self.bins = bins
        self.min, self.max = math.inf, -math.inf
        self.total = 0
        self.zeros = 0
        self.counts: NDArray[np.int64] = np.zeros(0, np.int64)
        self._exponent = SMALLEST_EXPONENT  # bins are 2**_exponent wide
        self._first = 0  # counts[0] is of bin number _first

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same state, bit for bit."""
        if not isinstance(other, StreamingHistogram):
            return NotImplemented
        return self._scalars() == other._scalars() and bool(np.array_equal(self.counts, other.counts))

    __hash__ = None  # type: ignore[assignment]  # mutable

    @property
    def width(self) -> float:
        """The width of a bin, a power of two."""
        return math.ldexp(1.0, self._exponent)

    @property
    def edges(self) -> NDArray[np.float64]:
        """The bins' edges, float64 [n + 1]; exact."""
        return np.ldexp(np.arange(self._first, self._first + self.counts.size + 1, dtype=np.float64), self._exponent)

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin, within [min, max], float64 [n]."""
        return np.clip(self.edges[:-1] + self.width / 2, self.min, self.max)

    def observe(self, x: Tensor) -> None:
        """Count the values of ``x``, a tensor of any shape, device and real dtype, taken as float32.

        An empty tensor changes nothing. NaN or infinity (also a value beyond float32) is a QDeployError and changes
        nothing either.
        """
        flat = x.detach().reshape(-1).to(torch.float32)
        if flat.numel() == 0:
            return
        low, high = (float(extreme) + 0.0 for extreme in torch.aminmax(flat))  # + 0.0 makes 0.0 of -0.0
        if not (math.isfinite(low) and math.isfinite(high)):
            nan = int(flat.isnan().sum())
            raise refusal(nan, int(flat.isinf().sum()), f"among the {flat.numel():,} of the observed tensor")
        batch = StreamingHistogram(self.bins)
        batch.min, batch.max, batch.total = low, high, flat.numel()
        batch._exponent = _exponent(low, high, self.bins)
        batch._first = _bin(low, batch._exponent)
        last = _bin(high, batch._exponent)
        batch.counts, batch.zeros = _count(flat, batch._exponent, batch._first, last - batch._first + 1)
        self.merge(batch)

    def merge(self, other: StreamingHistogram) -> None:
        """Count everything that ``other`` has counted; ``other`` stays as it is."""
        if other.bins != self.bins:
            raise QDeployError(f"A histogram of {other.bins} bins cannot be merged into one of {self.bins}.")
        low, high = min(self.min, other.min), max(self.max, other.max)
        total, zeros = self.total + other.total, self.zeros + other.zeros
        if total == 0:
            return
        exponent = _exponent(low, high, self.bins)
        first = _bin(low, exponent)
        counts = np.zeros(_bin(high, exponent) - first + 1, np.int64)
        for part in (self, other):
            if part.total:
                start, coarse = _coarsen(part._first, part.counts, exponent - part._exponent)
                counts[start - first : start - first + coarse.size] += coarse
        self.min, self.max, self.total, self.zeros = low, high, total, zeros
        self.counts, self._exponent, self._first = counts, exponent, first

    def quantile(self, p: float) -> float:
        """The p-quantile (0 <= p <= 1) of the values, as numpy.quantile has it, exact to one bin width.

        quantile(0) and quantile(1) are exactly ``min`` and ``max``.
        """
        if self.total == 0:
            raise QDeployError("A histogram without values has no quantile.")
        if not 0.0 <= p <= 1.0:
            raise QDeployError(f"A quantile lies between 0 and 1, not at {p}.")
        rank = p * (self.total - 1)
        below = math.floor(rank)
        left, right = self._ordered(below), self._ordered(min(below + 1, self.total - 1))
        return left + (rank - below) * (right - left)

    def rebinned(self, bins: int, low: float, high: float) -> tuple[int, ...]:
        """Counts in ``bins`` equal bins over [low, high], for a picture; values outside are left out.

        A bin that an edge cuts is divided in proportion, so that the steps of this histogram do not show in the new
        one; the counts stay integers, and over a range that holds all values they sum to ``total``. With low == high
        the first bin has the values there.
        """
        if self.total == 0:
            return (0,) * bins
        if self.min == self.max or low == high:
            return self._single(bins, low, high)
        edges = np.clip(self.edges, self.min, self.max)
        cumulative = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.float64)
        # Everything at or below an edge: at the last edge, and only there, including the values on it.
        below = np.interp(np.linspace(low, high, bins + 1), edges, cumulative)
        return tuple(int(count) for count in np.diff(np.rint(below)))

    def _single(self, bins: int, low: float, high: float) -> tuple[int, ...]:
        counts = [0] * bins
        if self.min == self.max and low <= self.min <= high:
            position = (self.min - low) / (high - low) if high > low else 0.0
            counts[min(int(position * bins), bins - 1)] = self.total
        elif low == high and self.min <= low <= self.max:
            counts[0] = int(self.counts[_bin(low, self._exponent) - self._first])
        return tuple(counts)

    def _ordered(self, rank: int) -> float:
        """The value of ``rank`` (0 the smallest); a bin's values count as evenly spread, but for the exact zeros."""
        if rank == 0:
            return self.min
        if rank == self.total - 1:
            return self.max
        cumulative = np.cumsum(self.counts)
        at = int(np.searchsorted(cumulative, rank, side="right"))
        place, count = rank - int(cumulative[at] - self.counts[at]), int(self.counts[at])
        if self._first + at == 0:  # the bin [0, w), where zeros come first
            if place < self.zeros:
                return 0.0
            place, count = place - self.zeros, count - self.zeros
        position = (place + 0.5) / count
        value = math.ldexp(self._first + at + position, self._exponent)
        return min(max(value, self.min), self.max)

    def _scalars(self) -> tuple[Any, ...]:
        return self.bins, self.min, self.max, self.total, self.zeros, self._exponent, self._first


def _bin(value: float, exponent: int) -> int:
    """The number of the bin of width 2**exponent that holds ``value``: exact, as a power of two only shifts it."""
    return math.floor(math.ldexp(value, -exponent))


def _exponent(low: float, high: float, bins: int) -> int:
    """The smallest exponent whose bins from ``low`` to ``high`` number at most ``bins``.

    It never falls when the range grows, as a range that fits at one width fits at all larger ones.
    """
    magnitude = math.frexp(max(abs(low), abs(high)))[1]
    exponent = max(magnitude - MANTISSA_BITS, SMALLEST_EXPONENT)
    while _bin(high, exponent) - _bin(low, exponent) >= bins:
        exponent += 1
    return exponent


def _count(flat: Tensor, exponent: int, first: int, size: int) -> tuple[NDArray[np.int64], int]:
    """How many values of ``flat`` (float32, finite) lie in bins first .. first + size - 1, and how many are 0."""
    # Scaling by a power of two is exact in float32 unless it leaves the normal numbers, which would put small
    # negative values into bin 0 instead of -1. Dividing by a width of at most 1 cannot.
    exact = torch.float32 if -126 <= exponent <= 0 else torch.float64
    device = flat.device
    if exact == torch.float64 and device.type == "mps":  # which has no float64
        flat = flat.cpu()
    counts = torch.zeros(size, dtype=torch.int64, device=flat.device)
    nonzero = torch.zeros((), dtype=torch.int64, device=flat.device)
    for chunk in flat.split(CHUNK_CPU if flat.device.type == "cpu" else CHUNK_ACCELERATOR):
        numbers = chunk.to(exact).mul(math.ldexp(1.0, -exponent)).floor_().to(torch.int32).sub_(first)
        counts += torch.bincount(numbers, minlength=size)
        nonzero += torch.count_nonzero(chunk.bool())  # four times faster than counting chunk == 0
    return counts.cpu().numpy(), flat.numel() - int(nonzero)


def _coarsen(first: int, counts: NDArray[np.int64], doublings: int) -> tuple[int, NDArray[np.int64]]:
    """The first bin's number and the counts after the bins' width doubled ``doublings`` times."""
    if doublings == 0:
        return first, counts
    # Bin numbers stay within 2**25: a shift by 62 already leaves only 0 and -1, and beyond 63 it is undefined in C.
    numbers = np.arange(first, first + counts.size, dtype=np.int64) >> min(doublings, 62)
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    return int(numbers[0]), np.add.reduceat(counts, starts)
