"""The preprocessing steps that a manifest may hold: what each one says, and what it says in words.

A step is data. ``qdeploy.runner.preprocess`` is the only code that executes one; these models refuse a step that it
would not know before the step gets into a bundle.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Size = Annotated[int, Field(ge=1)]
PerChannel = float | Annotated[tuple[float, ...], Field(min_length=1)]


class Strict(BaseModel):
    """What every part of a manifest is: frozen, no unknown keys, no conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)


class Scale(Strict):
    """x.astype(float32) * float32(factor)."""

    op: Literal["scale"]
    factor: float

    def words(self) -> str:
        """The step as a phrase for people."""
        divisor = 1 / self.factor if self.factor else 0.0
        exact = round(divisor) > 1 and abs(divisor - round(divisor)) < 1e-6 * divisor
        amount = f"divide by {round(divisor)}" if exact else f"multiply by {self.factor:.9g}"
        return f"convert to float32 and {amount}"


class Normalize(Strict):
    """(x - mean) / std, per channel on the last axis."""

    op: Literal["normalize"]
    mean: PerChannel
    std: PerChannel

    def words(self) -> str:
        """The step as a phrase for people."""
        return f"subtract the mean {_numbers(self.mean)} and divide by the standard deviation {_numbers(self.std)}"


class Layout(Strict):
    """A permutation of the axes behind the batch axis."""

    op: Literal["layout"]
    source: Annotated[str, Field(alias="from", min_length=1)]
    to: Annotated[str, Field(min_length=1)]

    def words(self) -> str:
        """The step as a phrase for people."""
        return f"reorder the axes from {self.source} to {self.to}"


class Channel(Strict):
    """[N, H, W] -> [N, H, W, 1]."""

    op: Literal["channel"]

    def words(self) -> str:
        """The step as a phrase for people."""
        return "add a channel axis behind height and width"


class Resize(Strict):
    """Bilinear with antialiasing, half-pixel centres."""

    op: Literal["resize"]
    height: Size
    width: Size

    def words(self) -> str:
        """The step as a phrase for people."""
        return f"resize to {self.height}x{self.width} (height x width; bilinear, antialiased)"


class ResizeShorter(Strict):
    """Resize so that the shorter side has ``size`` pixels."""

    op: Literal["resize_shorter"]
    size: Size

    def words(self) -> str:
        """The step as a phrase for people."""
        return f"resize the shorter side to {self.size} pixels (bilinear, antialiased)"


class CenterCrop(Strict):
    """Cut the middle out."""

    op: Literal["center_crop"]
    height: Size
    width: Size

    def words(self) -> str:
        """The step as a phrase for people."""
        return f"cut out the centre, {self.height}x{self.width} (height x width)"


class Cast(Strict):
    """x.astype(dtype)."""

    op: Literal["cast"]
    dtype: Literal["bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64"]

    def words(self) -> str:
        """The step as a phrase for people."""
        return f"convert to {self.dtype}"


Step = Annotated[
    Scale | Normalize | Layout | Channel | Resize | ResizeShorter | CenterCrop | Cast, Field(discriminator="op")
]


def _numbers(values: float | tuple[float, ...]) -> str:
    listed = (values,) if isinstance(values, float) else values
    return ", ".join(f"{value:.6g}" for value in listed)
