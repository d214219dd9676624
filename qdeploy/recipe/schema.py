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
from qdeploy.core.scheme import Grid
from qdeploy.recipe.problems import refuse
from qdeploy.train.choices import Augmentation, Device, Keep, Optimizer, Precision, Schedule

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


def _a_tuple(value: Any) -> Any:
    """A list of any length, or one value in its place."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _a_pair(value: Any) -> Any:
    """The names of two variants."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(name, str) for name in value):
        raise refuse(f"{value!r} is no pair of variants", "Write contrasts: [[FIRST, SECOND], ...].")
    return tuple(value)


def _empty_if_none(value: Any) -> Any:
    """``fp32:`` with nothing behind it is ``fp32: {}``."""
    return {} if value is None else value


def _integer_bits(lowest: int) -> Callable[[int], int]:
    """A validator for the bits of integer codes."""

    def check(bits: int) -> int:
        if bits in (16, 32):
            instead = "method: fp16 or bf16 stores weights at 16 bits" if bits == 16 else "method: float32"
            raise refuse(f"integer codes have {lowest} to 8 bits, not {bits}", f"Use {instead}.")
        if not lowest <= bits <= 8:
            raise refuse(f"integer codes have {lowest} to 8 bits, not {bits}", f"Use {lowest} to 8.")
        return bits

    return check


def _named(value: Any) -> Any:
    """``rounding: gptq`` is ``rounding: {name: gptq}``."""
    return {"name": value} if isinstance(value, str) else value


Name = Annotated[str, AfterValidator(_safe_name)]
ObserverName = Annotated[str, AfterValidator(_plugin("observer"))]
WeightBits = Annotated[int, AfterValidator(_integer_bits(1))]
ActivationBits = Annotated[int, AfterValidator(_integer_bits(2))]
Pair = Annotated[tuple[str, str], BeforeValidator(_a_pair)]
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

    epochs: Annotated[int, Field(ge=1, le=100_000)]
    optimizer: Optimizer = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    schedule: Schedule = "cosine"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: Annotated[tuple[Augmentation, ...], BeforeValidator(_a_tuple)] = ()
    precision: Precision = "float32"
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    device: Device = "auto"


class QatTrainRecipe(TrainRecipe):
    """How a quantized graph is trained on: gently, from the float32 weights.

    ``distillation`` is the share of the loss that follows the float32 model's answers instead of the targets. The
    last epoch is kept, which the schedule ends in: the float32 weights may have been fitted to the samples that are
    held out, so these say little.
    """

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 3
    optimizer: Optimizer = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    keep: Keep = "last"


class WeightsRecipe(Strict):
    """How weights are quantized: signed, symmetric, one scale an output channel; one bit is a scaled sign.

    ``observer`` chooses the scale: minmax, mse of the weights, or (for a rounding that sees the layers' inputs) of the
    layer's output. ``grid``: midtread has a level at 0; midrise has one level more and none at 0, a gain at few bits,
    and is for 2 to 7 of them: layers with 8 bits are midtread all the same.
    """

    bits: WeightBits = 8
    grid: Grid = "midtread"
    observer: Literal["minmax", "mse", "output"] = "minmax"


class ActivationsRecipe(Strict):
    """How activations are quantized: unsigned, one scale and zero point a tensor. Further keys are the observer's.

    ``range: dynamic``: linear layers find the range of what they read when they run, in 8 bits, and convolutions stay
    in float32. Nothing is calibrated then.
    """

    model_config = ConfigDict(extra="allow")

    bits: ActivationBits = 8
    observer: ObserverName = "minmax"
    range: Literal["static", "dynamic"] = "static"

    @property
    def options(self) -> dict[str, Any]:
        """The observer's keyword arguments."""
        return dict(self.model_extra or {})


class CalibrationRecipe(Strict):
    """How many samples calibrate, of those that ``data.calibration`` draws (None: all), and how many at a time."""

    samples: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] = 64


class RoundingRecipe(Strict):
    """``name`` is the solver; all further keys are its own options."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, AfterValidator(_plugin("rounding"))] = "nearest"

    @property
    def options(self) -> dict[str, Any]:
        """The solver's keyword arguments."""
        return dict(self.model_extra or {})


class RuleWeights(Strict):
    """The bits of the weights that a rule is about."""

    bits: WeightBits


class RuleActivations(Strict):
    """The bits of what the layers that a rule is about read."""

    bits: ActivationBits


class RuleRecipe(Strict):
    """Other settings for the layers whose name matches the glob ``match``.

    ``method: float32`` leaves them alone, whatever bits other rules give them. A value that several layers read has
    the most bits that one of them wants.
    """

    match: str
    method: Literal["float32"] | None = None
    weights: RuleWeights | None = None
    activations: RuleActivations | None = None

    @model_validator(mode="after")
    def _says_something(self) -> RuleRecipe:
        bits = self.weights or self.activations
        if bool(self.method) == bool(bits):
            raise refuse("a rule sets bits or method: float32", "For example {match: layer1.*, weights: {bits: 4}}.")
        return self


STORAGE = {"float32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # how a method that stays float stores weights

# The keys that only some methods take.
_QUANTIZED = {"weights", "activations", "calibration", "first_last_bits", "rules", "packing", "portable"}
_KEYS = {
    "ptq": _QUANTIZED | {"rounding", "equalize", "bias_correction", "learn_ranges"},
    "qat": _QUANTIZED | {"fake_quant", "train"},
}


class VariantRecipe(Strict):
    """One way to deploy the model. ``method: float32`` (the default) is the baseline and has no further keys.

    ``ptq`` quantizes after training: ``rounding`` chooses the weights' codes; ``equalize``, ``bias_correction`` and
    ``learn_ranges`` refine. ``qat`` trains on with the fake quantizer ``fake_quant``. ``fp16`` and ``bf16`` store
    weights at 16 bits and compute in float32. The first and the last layer have at least ``first_last_bits``, then
    ``rules`` apply. ``packing: none`` gives every weight a byte, for runtimes that cannot unpack them. ``portable``
    chooses weights and scales with which every CPU answers the same, x86 without VNNI too.
    """

    method: Literal["float32", "ptq", "qat", "fp16", "bf16"] = "float32"
    weights: WeightsRecipe = WeightsRecipe()
    activations: ActivationsRecipe = ActivationsRecipe()
    calibration: CalibrationRecipe = CalibrationRecipe()
    first_last_bits: Annotated[int, AfterValidator(_integer_bits(1))] | None = 8
    rules: Annotated[tuple[RuleRecipe, ...], BeforeValidator(_a_tuple)] = ()
    packing: Literal["packed", "none"] = "packed"
    portable: bool = True
    rounding: Annotated[RoundingRecipe, BeforeValidator(_named)] = RoundingRecipe()
    equalize: bool = False
    bias_correction: bool = False
    learn_ranges: bool = False
    fake_quant: Annotated[str, AfterValidator(_plugin("fake quant"))] = "lsq"
    train: QatTrainRecipe = QatTrainRecipe()

    @model_validator(mode="after")
    def _keys_fit_the_method(self) -> VariantRecipe:
        allowed = _KEYS.get(self.method, set()) | {"method"}
        for key in sorted(self.model_fields_set - allowed):
            why = "" if "method" in self.model_fields_set else " (there is no method)"
            what = "the float32 baseline" if self.method == "float32" else f"method {self.method}"
            takers = " or ".join(method for method, keys in _KEYS.items() if key in keys)
            raise refuse(f"{what} takes no {key!r}{why}", f"Set method: {takers}, which does, or remove it.")
        return self

    @model_validator(mode="after")
    def _weights_fit_the_method(self) -> VariantRecipe:
        given = sorted(self.weights.model_fields_set - {"bits"})
        if self.method == "qat" and given:
            raise refuse(f"a fake quantizer has its own levels and scales, not weights.{given[0]}", "Remove it.")
        if self.weights.grid == "midrise" and self.weights.bits == 8:
            raise refuse("a midrise grid of 8 bits leaves int8", "Use midtread, or at most 7 bits.")
        if self.weights.observer == "output" and self.rounding.name == "nearest":
            raise refuse("nearest rounding sees no outputs for weights.observer: output", "Set rounding: gptq, or mse.")
        return self

    @model_validator(mode="after")
    def _dynamic_ranges_fit(self) -> VariantRecipe:
        if self.activations.range == "static":
            return self
        if self.method == "qat":
            raise refuse("a fake quantizer trains ranges: activations.range: dynamic has none", "Use method: ptq.")
        given = sorted((self.activations.model_fields_set | set(self.activations.options)) - {"range"})
        if given:
            raise refuse(f"ranges found at run time take no activations.{given[0]}", "Remove it, or range: dynamic.")
        if self.learn_ranges:
            raise refuse("learn_ranges has no ranges to learn where they are found at run time", "Remove one.")
        return self

    @property
    def quantizes(self) -> bool:
        """Whether the artifact has integer codes."""
        return self.method in _KEYS

    @property
    def keep_float(self) -> tuple[str, ...]:
        """The patterns of the layers that stay in float32."""
        return tuple(rule.match for rule in self.rules if rule.method == "float32")

    def dump(self) -> dict[str, Any]:
        """The settings that decide the artifact."""
        keys = _KEYS.get(self.method, set()) | {"method"}
        return {key: value for key, value in super().dump().items() if key in keys}

    def describe(self) -> dict[str, Any]:
        """The ``quantization`` of a bundle's manifest: {} where nothing is."""
        if not self.quantizes:
            return {}
        return {**self.dump(), "calibration": {"samples": self.calibration.samples}}


class InputRecipe(Strict):
    """What the model is to be fed: checked against what the data set's preprocessing makes, before any work."""

    shape: PositiveInts


class BenchRecipe(Strict):
    """How ``qdeploy build`` times its bundles: ``seconds`` for each, every number of threads with every batch size.

    ``threads`` None means the cores that this process is allowed.
    """

    seconds: Annotated[float, Field(ge=0.01, le=86_400)] = 2.0
    threads: PositiveInts | None = None
    batch: PositiveInts = (1,)


class Recipe(Strict):
    """One float32 model, several variants of it. Made by ``qdeploy.recipe.load.load``.

    ``contrasts`` are pairs of variants that are compared with each other; ``also_evaluate`` names splits on which the
    metric is reported beside the evaluation split's, which alone judges.
    """

    name: Name
    description: str = ""
    # Sets of changes by name, with dotted keys; load has made those of the profile that was asked for.
    profiles: dict[Name, Annotated[dict[str, Any], BeforeValidator(_empty_if_none)]] = Field(default_factory=dict)
    model: ModelRecipe
    data: DataRecipe
    train: TrainRecipe | None = None
    input: InputRecipe | None = None
    variants: dict[Name, Annotated[VariantRecipe, BeforeValidator(_empty_if_none)]] = Field(default_factory=dict)
    bench: BenchRecipe = BenchRecipe()
    contrasts: Annotated[tuple[Pair, ...], BeforeValidator(_a_tuple)] = ()
    also_evaluate: Annotated[tuple[Literal["train", "validation"], ...], BeforeValidator(_a_tuple)] = ()
    _base: Path = PrivateAttr(default=Path())
    _profile: str = PrivateAttr(default="")

    @property
    def base(self) -> Path:
        """The folder that paths are relative to when they are not relative to the working directory."""
        return self._base

    @property
    def profile(self) -> str:
        """The name of the profile whose settings these are; empty where none was asked for."""
        return self._profile

    @property
    def folder(self) -> str:
        """The name of the folder that a build goes to, below runs/: profiles never share one."""
        return f"{self.name}-{self.profile}" if self.profile else self.name

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
    def _names_differ(self) -> Recipe:
        seen: dict[str, str] = {}
        for name in self.variants:
            other = seen.setdefault(name.casefold(), name)
            if other != name:
                raise refuse(f"the variants {other} and {name} are one file on many disks", "Rename one.")
        return self

    @model_validator(mode="after")
    def _one_baseline(self) -> Recipe:
        floats = [name for name, variant in self.variants.items() if variant.method == "float32"]
        if len(floats) > 1:
            raise refuse(
                f"the variants {' and '.join(floats)} are float32, which is the baseline of all others", "Keep one."
            )
        return self
