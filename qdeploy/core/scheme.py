"""QScheme: the only place that knows which integer codes exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError

Grid = Literal["midtread", "midrise"]


@dataclass(frozen=True, slots=True)
class QScheme:
    """The integer codes that a tensor may take.

    ``bits`` is the information width, 1 to 8. ``signed`` says whether the codes lie in an int8 or a uint8
    container, which is what onnxruntime's kernels read. ``symmetric`` leaves out the lowest signed code, so that
    the range is -qmax..qmax and the zero point 0. ``codebook``, if given, is the sorted set of codes in use.
    """

    bits: int = 8
    signed: bool = False
    symmetric: bool = False
    codebook: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise QDeployError(
                f"A quantizer of {self.bits} bits does not exist: an integer code has 1 to 8.",
                "Use 1 to 8 bits here; 16-bit weights are a storage format, not integer codes.",
            )
        if self.symmetric and not self.signed:
            raise QDeployError("A symmetric range needs signed codes.", "Use signed=True.")
        if self.codebook is not None:
            container = np.iinfo(self.dtype)
            ordered = tuple(sorted(set(self.codebook)))
            if ordered != self.codebook or len(ordered) > 2**self.bits:
                raise QDeployError("A codebook is sorted, without repeats, and has at most 2**bits codes.")
            if ordered[0] < container.min or ordered[-1] > container.max:
                raise QDeployError(f"The codebook's codes do not fit {self.dtype}.")
        elif self.bits == 1 and self.symmetric:
            raise QDeployError("One symmetric bit is the codebook (-1, 1).", "Pass codebook=(-1, 1).")

    @property
    def dtype(self) -> np.dtype[np.int8] | np.dtype[np.uint8]:
        """The container that onnxruntime reads the codes from."""
        return np.dtype(np.int8) if self.signed else np.dtype(np.uint8)

    @property
    def qmin(self) -> int:
        """The lowest code."""
        if self.codebook is not None:
            return self.codebook[0]
        if not self.signed:
            return 0
        lowest: int = -(2 ** (self.bits - 1))
        return lowest + 1 if self.symmetric else lowest

    @property
    def qmax(self) -> int:
        """The highest code."""
        if self.codebook is not None:
            return self.codebook[-1]
        highest: int = 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1
        return highest

    @property
    def levels(self) -> int:
        """How many distinct codes there are."""
        return len(self.codebook) if self.codebook is not None else self.qmax - self.qmin + 1

    def contains(self, codes: NDArray[np.integer]) -> bool:
        """Whether every code is one that this scheme may take."""
        if codes.size == 0:
            return True
        if self.codebook is not None:
            return bool(np.isin(codes, np.asarray(self.codebook)).all())
        return bool(codes.min() >= self.qmin and codes.max() <= self.qmax)


def activation(bits: int = 8) -> QScheme:
    """Unsigned codes with a free zero point: what onnxruntime's x86 kernels want for activations."""
    return QScheme(bits=bits, signed=False)


def weight(bits: int = 8, *, grid: Grid = "midtread") -> QScheme:
    """Signed symmetric codes, zero point 0: what QLinearConv and QGemm want for weights.

    A "midtread" grid has a level at 0 and so 2**bits - 1 of them; a "midrise" one has all 2**bits, half a step beside
    0: the odd codes, -3, -1, 1 and 3 for 2 bits (Jayant and Noll 1984, section 4.2). One bit is a sign on either.
    """
    if bits == 1 or grid == "midrise":
        if bits > 7:
            raise QDeployError(
                f"A midrise grid of {bits} bits has codes up to {2**bits - 1}, beyond int8.", "Use midtread, or 7 bits."
            )
        reach = 2**bits - 1
        return QScheme(bits=bits, signed=True, symmetric=True, codebook=tuple(range(-reach, reach + 1, 2)))
    return QScheme(bits=bits, signed=True, symmetric=True)
