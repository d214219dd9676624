"""What training minimizes: one loss a task, and the same task with another model's answers in the targets' place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qdeploy.core.errors import QDeployError, nearest


@dataclass(frozen=True, slots=True)
class Loss:
    """``of`` (outputs, targets, label smoothing) and ``taught`` (outputs, a teacher's outputs): means over samples.

    ``check`` (outputs, targets) refuses outputs, of a few samples, that do not fit the targets.
    """

    of: Callable[[Tensor, Tensor, float], Tensor]
    taught: Callable[[Tensor, Tensor], Tensor]
    check: Callable[[Tensor, Tensor], None]


def loss_of(task: str) -> Loss:
    """The loss of a data set's ``task``. QDeployError: there is none."""
    if task not in LOSSES:
        raise QDeployError(f"Training knows no loss for the task {task!r}.", nearest(task, LOSSES))
    return LOSSES[task]


def _cross_entropy(outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(outputs, targets, label_smoothing=smoothing)


def _soft_cross_entropy(outputs: Tensor, wanted: Tensor) -> Tensor:
    """The teacher's soft answers at temperature 1 (Hinton et al., arXiv:1503.02531): its KL divergence."""
    wanted = F.log_softmax(wanted, dim=-1)
    return F.kl_div(F.log_softmax(outputs, dim=-1), wanted, reduction="batchmean", log_target=True)


def _require_scores(outputs: Tensor, targets: Tensor) -> None:
    classes = int(targets.max()) + 1
    if outputs.ndim != 2 or outputs.shape[1] < classes:
        raise QDeployError(
            f"The model returns scores of shape {list(outputs.shape)} for {len(outputs)} samples of {classes} classes.",
            f"A classifier returns [samples, classes]: give model.factory an argument for {classes} classes.",
        )


def _squared_error(outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Over what there is: a target that is NaN says that nothing is known there."""
    if smoothing:
        raise QDeployError("Label smoothing is for classes.", "Remove train.label_smoothing.")
    known = ~torch.isnan(targets)
    return F.mse_loss(outputs[known], targets[known])


def _require_values(outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape[1:] != targets.shape[1:]:
        raise QDeployError(
            f"The model returns {list(outputs.shape[1:])} where the data set's targets are {list(targets.shape[1:])}.",
            "A regression returns one value for every value of a target.",
        )


_CLASSES = Loss(_cross_entropy, _soft_cross_entropy, _require_scores)
LOSSES = {
    "classification": _CLASSES,
    "ranking": _CLASSES,  # one right item among many, scored all at once
    "regression": Loss(_squared_error, F.mse_loss, _require_values),
}
