"""What the data sets share: splits, seeds, cuts, and a fingerprint.

A data set has two halves that never meet. The *official training part* is cut into ``train`` and ``validation``,
and ``calibration`` is drawn from ``train``. The *evaluation part* is read by one method, which one line calls:
``split("evaluation")``. ``accessed`` records which splits were asked for, so that a test can show that evaluation
data stays unread until the exported artifact is judged.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, TypedDict

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError, nearest

Raw = NDArray[Any]
Targets = NDArray[Any]
Indices = NDArray[np.intp]

SPLITS = ("train", "validation", "calibration", "evaluation")


class CommonOptions(TypedDict, total=False):
    """What every data set takes; see ArrayDataset."""

    root: str | None
    download: bool
    seed: int
    validation: float
    calibration: int
    train_samples: int | None
    evaluation_samples: int | None


class ArrayDataset(ABC):
    """A data set that fits in memory. A plugin defines the class attributes and three methods.

    ``root`` is the folder of the files, ``download`` whether they may be fetched. ``validation`` is the share of the
    training part that is held out, stratified by class; ``calibration`` the number of training samples that
    calibrate a quantizer; ``seed`` decides which ones. ``train_samples`` and ``evaluation_samples`` cut the training
    and the evaluation part to so many samples, drawn at random. ``split`` returns (raw, targets): raw samples
    [N, *raw_shape] of ``raw_dtype`` and targets [N, *target_shape] of ``target_dtype``, which for classes are indices;
    ``preprocessing`` says how raw samples become a model's input.

    A model is deployed for samples of ``raw_shape``. Where it is trained on smaller ones (patches of images),
    ``training_shapes`` has the shapes of those samples and of their targets.
    """

    name: ClassVar[str]
    classes: Sequence[str] = ()  # where targets are their indices
    raw_shape: tuple[int, ...]
    raw_dtype: ClassVar[str] = "uint8"
    raw_range: ClassVar[tuple[float, float] | None] = None  # where raw values do not fill their type
    target_shape: tuple[int, ...] = ()
    target_dtype: ClassVar[str] = "int64"
    training_shapes: ClassVar[tuple[tuple[int, ...], tuple[int, ...]] | None] = None
    task: ClassVar[str] = "classification"
    metric: ClassVar[str] = "top1"

    def __init__(
        self,
        *,
        root: str | None = None,
        download: bool = True,
        seed: int = 0,
        validation: float = 0.1,
        calibration: int = 512,
        train_samples: int | None = None,
        evaluation_samples: int | None = None,
    ) -> None:
        if not 0.0 < validation < 1.0:
            raise QDeployError(
                f"data.validation is {validation}: it is the share of the training data that is held out.",
                "Give a number between 0 and 1, such as 0.1; the best checkpoint is chosen on those samples.",
            )
        for option, count in (("train_samples", train_samples), ("evaluation_samples", evaluation_samples)):
            if count is not None and count < 1:
                raise QDeployError(f"data.{option} is {count}.", "Give a number of samples, or null for all.")
        if calibration < 1:
            raise QDeployError(
                f"data.calibration is {calibration}.", "Give the number of calibration samples, e.g. 512."
            )
        if seed < 0:
            raise QDeployError(f"data.seed is {seed}.", "A seed is 0 or more.")
        self.root = root
        self.download = download
        self.seed = seed
        self.validation = validation
        self.calibration = calibration
        self.cuts = {"training": train_samples, "evaluation": evaluation_samples}
        self.accessed: list[str] = []
        self._parts: dict[str, tuple[Raw, Targets]] = {}
        self._indices: dict[str, Indices] = {}
        self._digest: str | None = None

    @property
    @abstractmethod
    def preprocessing(self) -> list[dict[str, Any]]:
        """The steps from a raw sample to the model's input, for ``qdeploy.runner.preprocess``."""

    @abstractmethod
    def _read_training(self) -> tuple[Raw, Targets]:
        """The official training part, whole. Touches no evaluation sample."""

    @abstractmethod
    def _read_evaluation(self) -> tuple[Raw, Targets]:
        """The evaluation part, whole."""

    @abstractmethod
    def _content(self) -> Iterable[bytes]:
        """What identifies the data: digests of files, or the bytes of arrays."""

    def _options(self) -> dict[str, Any]:
        """The options that change what ``split`` returns or how it is preprocessed."""
        options = {
            "seed": self.seed,
            "validation": self.validation,
            "calibration": self.calibration,
            "preprocessing": self.preprocessing,
        }
        cuts = {part: count for part, count in self.cuts.items() if count is not None}
        return {**options, "cuts": cuts} if cuts else options

    def split(self, name: str) -> tuple[Raw, Targets]:
        """Raw samples [N, *raw_shape] and their targets [N] of the split ``name``, one of SPLITS.

        Evaluation data is read by this call and no earlier. Raises QDeployError for another name, and where the data
        is missing, damaged, or too small for what was asked.
        """
        if name not in SPLITS:
            raise QDeployError(f"Data set {self.name} has no split {name!r}.", nearest(name, SPLITS))
        self.accessed.append(name)
        if name == "evaluation":
            return self._part(name)
        raw, targets = self._part("training")
        if not self._indices:
            self._indices = self._divide(targets)
        chosen = self._indices[name]
        return raw[chosen], targets[chosen]

    def fingerprint(self) -> str:
        """The sha256 (hex) of the data and the options: equal where every split and its preprocessing is.

        It hashes the evaluation files too, as bytes, without looking at a sample.
        """
        if self._digest is None:
            digest = hashlib.sha256(json.dumps([self.name, self._options()], sort_keys=True).encode())
            try:
                for content in self._content():
                    digest.update(hashlib.sha256(content).digest())
            except OSError as error:
                reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
                raise QDeployError(
                    f"Data set {self.name} cannot be read: {reason}.",
                    "Look whether the file is there and may be read, or set data.root.",
                ) from error
            self._digest = digest.hexdigest()
        return self._digest

    def _part(self, name: str) -> tuple[Raw, Targets]:
        if name not in self._parts:
            raw, targets = self._read_evaluation() if name == "evaluation" else self._read_training()
            self._check(name, raw, targets)
            self._parts[name] = self._cut(name, raw, targets)
        return self._parts[name]

    def _cut(self, name: str, raw: Raw, targets: Targets) -> tuple[Raw, Targets]:
        """As many samples of a part as were asked for, drawn at random, in their order."""
        wanted = self.cuts[name]
        if wanted is None or wanted == len(raw):
            return raw, targets
        if wanted > len(raw):
            option = "train_samples" if name == "training" else "evaluation_samples"
            raise QDeployError(
                f"data.{option} is {wanted}, but the {name} part of data set {self.name} has {len(raw)} samples.",
                f"Ask for {len(raw)} or fewer, or for null: all of them.",
            )
        # Which evaluation samples judge a model is no matter of a recipe's seed.
        generator = np.random.default_rng([self.seed if name == "training" else 0, 2])
        chosen = np.sort(generator.permutation(len(raw))[:wanted])
        return raw[chosen], targets[chosen]

    def _check(self, name: str, raw: Raw, targets: Targets) -> None:
        shapes = self.raw_shape, self.target_shape
        if name == "training" and self.training_shapes is not None:
            shapes = self.training_shapes
        found = f"{raw.dtype}{list(raw.shape)} samples, {targets.dtype}{list(targets.shape)} targets"
        if (
            (raw.shape[1:], targets.shape[1:]) != shapes
            or (str(raw.dtype), str(targets.dtype)) != (self.raw_dtype, self.target_dtype)
            or len(targets) != len(raw)
            or len(raw) == 0
        ):
            wanted = [f"{kind}[{', '.join(['N', *map(str, shape)])}]" for kind, shape
                      in zip((self.raw_dtype, self.target_dtype), shapes, strict=True)]  # fmt: skip
            raise QDeployError(
                f"The {name} part of data set {self.name} is not what it should be: {found}.",
                f"Expected {wanted[0]} samples and {wanted[1]} targets.",
            )
        if self.classes and (targets.min() < 0 or targets.max() >= len(self.classes)):
            raise QDeployError(
                f"The {name} part of data set {self.name} has targets {targets.min()}..{targets.max()}.",
                f"It has {len(self.classes)} classes: targets are 0..{len(self.classes) - 1}.",
            )

    def _divide(self, targets: Targets) -> dict[str, Indices]:
        """Which rows of the training part belong to ``train``, ``validation`` and ``calibration``."""
        train, validation = self._hold_out(targets, self.validation, self.seed)
        return self._with_calibration(train, validation)

    def _hold_out(self, targets: Targets, share: float, seed: int) -> tuple[Indices, Indices]:
        """Rows in two: (the rest, about ``share`` of them), by class where there are classes."""
        return stratified(targets if self.classes else np.zeros(len(targets), np.int64), share, seed)

    def _with_calibration(self, train: Indices, validation: Indices) -> dict[str, Indices]:
        """The splits of the training part, with calibration rows drawn from ``train``."""
        if len(train) == 0 or len(validation) == 0:
            raise QDeployError(
                f"Data set {self.name} leaves {len(train)} samples to train on and {len(validation)} to validate on.",
                "Give data.train_samples more samples, or data.validation another share.",
            )
        if self.calibration > len(train):
            raise QDeployError(
                f"data.calibration is {self.calibration}, but data set {self.name} has {len(train)} training samples.",
                f"Ask for {len(train)} or fewer.",
            )
        # A prefix of one permutation: fewer calibration samples are a subset of more.
        order = np.random.default_rng([self.seed, 1]).permutation(train)
        return {"train": train, "validation": validation, "calibration": order[: self.calibration]}


def stratified(targets: Targets, share: float, seed: int) -> tuple[Indices, Indices]:
    """Cut rows in two by class: (the rest, about ``share`` of every class), sorted, disjoint, together everything.

    A class of two or more samples leaves at least one on each side.
    """
    generator = np.random.default_rng([seed, 0])
    held_out = np.zeros(len(targets), dtype=bool)
    for label in np.unique(targets):
        rows = generator.permutation(np.flatnonzero(targets == label))
        count = min(max(round(len(rows) * share), 1), len(rows) - 1)
        held_out[rows[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
