"""The recipe as a strict, frozen model: what may be written, of which type, in which range.

Unknown keys are errors, types are not converted, and names of plugins are checked here too. What needs the model's or
the data set's own code is checked in load.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)

from qdeploy.core import plugins
from qdeploy.core.errors import nearest
from qdeploy.recipe.problems import refuse
from qdeploy.train.choices import Device, Optimizer, Schedule

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Strict(BaseModel):
    """No unknown keys, no conversions, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def dump(self) -> dict[str, Any]:
        """The settings as plain JSON data, defaults included: what a stage's key hashes."""
        return self.model_dump(mode="json")


def _safe_name(name: str) -> str:
    if not SAFE_NAME.fullmatch(name):
        raise refuse(f"{name!r} cannot be the name of a file", "Use up to 64 letters, digits, '-', '_' and '.'.")
    return name


def _plugin(label: str) -> Callable[[str, ValidationInfo], str]:
    """A validator for the name of a plugin of the kind ``label``, or the path of a file that defines one."""

    def check(name: str, info: ValidationInfo) -> str:
        if plugins.is_path(name):
            places = [Path(name), *([info.context["base"] / name] if info.context else [])]
            found = next((place for place in places if place.is_file()), None)
            if found is None:
                raise refuse(f"there is no file {name}", "Paths are relative to the working directory.")
            return str(found)
        known = plugins.names(label)
        if name not in known:
            raise refuse(f"there is no {label} named {name!r}", nearest(name, known))
        return name

    return check


def _a_list(value: Any) -> Any:
    """One value in place of a list of one."""
    if value == []:
        raise refuse("the list is empty", "Give at least one number.")
    return tuple(value) if isinstance(value, list) else (value,)


def _empty_if_none(value: Any) -> Any:
    """``fp32:`` with nothing behind it is ``fp32: {}``."""
    return {} if value is None else value


def _eight_bits(bits: int) -> int:
    if bits != 8:
        raise refuse(f"activations have 8 bits, not {bits}", "Fewer bits are for weights: weights: {bits: 4}.")
    return bits


Name = Annotated[str, AfterValidator(_safe_name)]
ObserverName = Annotated[str, AfterValidator(_plugin("observer"))]
PositiveInts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_a_list)]


class ModelRecipe(Strict):
    """``factory`` makes the model from all further keys; ``checkpoint`` holds trained weights for it."""

    model_config = ConfigDict(extra="allow")

    factory: str
    checkpoint: Annotated[Path | None, BeforeValidator(lambda v: Path(v) if isinstance(v, str) else v)] = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The factory's keyword arguments."""
        return dict(self.model_extra or {})

    def dump(self) -> dict[str, Any]:
        """Factory and arguments. Where the checkpoint lies does not matter, what is in it does: hash the file."""
        return {"factory": self.factory, "arguments": self.arguments}


class DataRecipe(Strict):
    """``name`` is the data set; all further keys are its own options (root, download, seed, validation, ...)."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, AfterValidator(_plugin("dataset"))]

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments for the data set."""
        return dict(self.model_extra or {})


class TrainRecipe(Strict):
    """The keyword arguments of qdeploy.train.fit.fit."""

    epochs: Annotated[int, Field(ge=1)]
    optimizer: Optimizer = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    batch_size: Annotated[int, Field(ge=1)] = 64
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    schedule: Schedule = "cosine"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    device: Device = "auto"


class WeightsRecipe(Strict):
    """How weights are quantized: signed, symmetric, one scale an output channel."""

    bits: Annotated[int, Field(ge=2, le=8)] = 8
    observer: ObserverName = "minmax"


class ActivationsRecipe(Strict):
    """How activations are quantized: unsigned, one scale and zero point a tensor. Further keys are the observer's."""

    model_config = ConfigDict(extra="allow")

    bits: Annotated[int, AfterValidator(_eight_bits)] = 8
    observer: ObserverName = "minmax"

    @property
    def options(self) -> dict[str, Any]:
        """The observer's keyword arguments."""
        return dict(self.model_extra or {})


class CalibrationRecipe(Strict):
    """How many samples calibrate, of those that ``data.calibration`` draws (None: all), and how many at a time."""

    samples: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] = 64


class VariantRecipe(Strict):
    """One way to deploy the model. ``method: float32`` (the default) is the baseline and has no further keys."""

    method: Literal["float32", "ptq"] = "float32"
    weights: WeightsRecipe = WeightsRecipe()
    activations: ActivationsRecipe = ActivationsRecipe()
    rounding: Annotated[str, AfterValidator(_plugin("rounding"))] = "nearest"
    calibration: CalibrationRecipe = CalibrationRecipe()

    @model_validator(mode="after")
    def _float32_is_plain(self) -> VariantRecipe:
        extra = sorted(self.model_fields_set - {"method"})
        if self.method == "float32" and extra:
            why = "" if "method" in self.model_fields_set else " (there is no method)"
            raise refuse(f"the float32 baseline takes no {extra[0]!r}{why}", "Set method: ptq to quantize.")
        return self

    def dump(self) -> dict[str, Any]:
        """The settings that decide the artifact."""
        return {"method": self.method} if self.method == "float32" else super().dump()

    def describe(self) -> dict[str, Any]:
        """The ``quantization`` of a bundle's manifest: {} for float32."""
        if self.method == "float32":
            return {}
        return {**self.model_dump(mode="json"), "calibration": {"samples": self.calibration.samples}}


class InputRecipe(Strict):
    """What the model is to be fed: checked against what the data set's preprocessing makes, before any work."""

    shape: PositiveInts


class BenchRecipe(Strict):
    """How ``qdeploy build`` times its bundles: ``seconds`` for each, every number of threads with every batch size.

    ``threads`` None means the cores that this process is allowed.
    """

    seconds: Annotated[float, Field(gt=0)] = 2.0
    threads: PositiveInts | None = None
    batch: PositiveInts = (1,)


class Recipe(Strict):
    """One float32 model, several variants of it. Made by ``qdeploy.recipe.load.load``."""

    name: Name
    description: str = ""
    model: ModelRecipe
    data: DataRecipe
    train: TrainRecipe | None = None
    input: InputRecipe | None = None
    variants: dict[Name, Annotated[VariantRecipe, BeforeValidator(_empty_if_none)]] = Field(default_factory=dict)
    bench: BenchRecipe = BenchRecipe()
    _base: Path = PrivateAttr(default=Path())

    @property
    def base(self) -> Path:
        """The folder that paths are relative to when they are not relative to the working directory."""
        return self._base

    @property
    def baseline(self) -> str:
        """The name of the float32 variant, which all others are compared with."""
        return next(name for name, variant in self.variants.items() if variant.method == "float32")

    @model_validator(mode="after")
    def _one_way_to_get_weights(self) -> Recipe:
        if self.train is None and self.model.checkpoint is None:
            raise refuse("there is neither train nor model.checkpoint", "Add one: the model needs trained weights.")
        if self.train is not None and self.model.checkpoint is not None:
            raise refuse(
                "there are both train and model.checkpoint, but a checkpoint is taken as it is",
                "Remove one, in the file or with --set train=null or --set model.checkpoint=null.",
            )
        return self

    @model_validator(mode="after")
    def _one_baseline(self) -> Recipe:
        floats = [name for name, variant in self.variants.items() if variant.method == "float32"]
        if len(floats) > 1:
            raise refuse(
                f"the variants {' and '.join(floats)} are float32, which is the baseline of all others", "Keep one."
            )
        return self
