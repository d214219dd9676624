"""The preprocessing steps that a manifest may hold, in words.

A step is data. ``qdeploy.runner.preprocess`` is the only code that executes one, and ``runner.STEPS`` says what each
may hold.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PerChannel = float | tuple[float, ...]


class Part(BaseModel):
    """What every part of a manifest is: frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Scale(Part):
    """x.astype(float32) * float32(factor)."""

    op: Literal["scale"]
    factor: float

    def words(self) -> str:
        """The step as a phrase for people."""
        divisor = 1 / self.factor if self.factor else 0.0
        exact = round(divisor) > 1 and abs(divisor - round(divisor)) < 1e-6 * divisor
        amount = f"divide by {round(divisor)}" if exact else f"multiply by {self.factor:.9g}"
        return f"convert to float32 and {amount}"


class Normalize(Part):
    """(x - mean) / std, per channel on the last axis."""

    op: Literal["normalize"]
    mean: PerChannel
    std: PerChannel

    def words(self) -> str:
        """The step as a phrase for people."""
        return f"subtract the mean {_numbers(self.mean)} and divide by the standard deviation {_numbers(self.std)}"


class Layout(Part):
    """A permutation of the axes behind the batch axis."""

    op: Literal["layout"]
    source: Annotated[str, Field(alias="from")]
    to: str

    def words(self) -> str:
        """The step as a phrase for people."""
        return f"reorder the axes from {self.source} to {self.to}"


class Channel(Part):
    """[N, H, W] -> [N, H, W, 1]."""

    op: Literal["channel"]

    def words(self) -> str:
        """The step as a phrase for people."""
        return "add a channel axis behind height and width"


class Resize(Part):
    """Bilinear with antialiasing, half-pixel centres."""

    op: Literal["resize"]
    height: int
    width: int

    def words(self) -> str:
        """The step as a phrase for people."""
        return f"resize to {self.height}x{self.width} (height x width; bilinear, antialiased)"


class ResizeShorter(Part):
    """Resize so that the shorter side has ``size`` pixels."""

    op: Literal["resize_shorter"]
    size: int

    def words(self) -> str:
        """The step as a phrase for people."""
        return f"resize the shorter side to {self.size} pixels (bilinear, antialiased)"


class CenterCrop(Part):
    """Cut the middle out."""

    op: Literal["center_crop"]
    height: int
    width: int

    def words(self) -> str:
        """The step as a phrase for people."""
        return f"cut out the centre, {self.height}x{self.width} (height x width)"


class Cast(Part):
    """x.astype(dtype)."""

    op: Literal["cast"]
    dtype: str

    def words(self) -> str:
        """The step as a phrase for people."""
        return f"convert to {self.dtype}"


Step = Annotated[
    Scale | Normalize | Layout | Channel | Resize | ResizeShorter | CenterCrop | Cast, Field(discriminator="op")
]


def _numbers(values: float | tuple[float, ...]) -> str:
    listed = (values,) if isinstance(values, float) else values
    return ", ".join(f"{value:.6g}" for value in listed)
