"""The names that training knows, without torch, so that a recipe can be checked quickly."""

from __future__ import annotations

from typing import Literal

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Augmentation = Literal["crop", "flip"]
Keep = Literal["best", "last"]
Precision = Literal["float32", "bf16"]
