"""Random changes of a training batch that leave its labels true, on preprocessed images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from qdeploy.core.errors import QDeployError, nearest
from qdeploy.train.choices import Augmentation

MARGIN = 8  # a crop moves an image by up to one part in so many of its side: 4 pixels of 32


def augment(images: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """Apply ``names`` ("crop", "flip") to ``images`` float32 [N, C, H, W], each image by its own draw.

    "flip" mirrors half of them left to right. "crop" shifts each by up to an eighth of its height and width, with
    zeros (the mean of normalized data) where there was nothing: He et al. 2016, section 4.2.
    QDeployError: an unknown name, or samples that are no images.
    """
    for name in names:
        if name not in get_args(Augmentation):
            raise QDeployError(f"There is no augmentation named {name!r}.", nearest(name, get_args(Augmentation)))
    if names and images.dim() != 4:
        raise QDeployError(
            f"Samples of shape {list(images.shape[1:])} cannot be cropped or flipped.", "Remove train.augment."
        )
    if "flip" in names:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    return _shift(images, generator) if "crop" in names else images


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    samples, _, height, width = images.shape
    reach = max(height // MARGIN, 1), max(width // MARGIN, 1)
    padded = torch.nn.functional.pad(images, (reach[1], reach[1], reach[0], reach[0]))
    top, left = (torch.randint(2 * r + 1, (samples, 1), generator=generator) for r in reach)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    # Two index tensors around a slice put the channels last: [N, H, W, C].
    moved = padded[torch.arange(samples)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()
