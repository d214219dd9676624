"""Training: one loop on Lightning Fabric. It knows nothing of quantization and sees no evaluation data."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import lightning_fabric
import numpy as np
import torch
from torch import Tensor, nn

from qdeploy.core import plugins
from qdeploy.core.errors import QDeployError, nearest
from qdeploy.runner import preprocess
from qdeploy.train import choices
from qdeploy.train.augment import augment as change
from qdeploy.train.losses import Loss, loss_of
from qdeploy.train.reference import USER_ERRORS

VALIDATION_BATCH = 256
PRECISIONS: dict[str, Any] = {"float32": "32-true", "bf16": "bf16-mixed"}  # as Fabric calls them


class Data(Protocol):
    """What ``fit`` needs of a data set: see qdeploy/datasets/_base.py."""

    name: Any
    task: Any
    metric: Any

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """The steps from raw samples to the model's input."""

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Raw samples and targets of a split."""


@dataclass(frozen=True, slots=True)
class Progress:
    """``batch`` of ``batches`` in ``epoch`` of ``epochs`` (all from 1) is done, with the training loss ``loss``.

    ``record`` is the epoch's line of the history once its last batch is done and validated, else None.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    record: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class FitResult:
    """``state_dict`` is that of ``epoch`` (from 1), the best on validation or the last, on the CPU.

    ``history`` has a line an epoch, with the keys epoch, lr (of its last batch), train_loss, validation_loss
    and validation_metric; ``metric`` names the last.
    """

    state_dict: dict[str, Tensor]
    epoch: int
    metric: str
    history: list[dict[str, float]]


def fit(
    model: nn.Module,
    dataset: Data,
    *,
    epochs: int,
    lr: float,
    optimizer: str = "adamw",
    weight_decay: float = 0.01,
    batch_size: int = 64,
    seed: int = 0,
    schedule: str = "cosine",
    label_smoothing: float = 0.0,
    device: str = "auto",
    augment: Sequence[str] = (),
    precision: choices.Precision = "float32",
    clip_norm: float | None = None,
    teacher: nn.Module | None = None,
    distillation: float = 0.0,
    keep: choices.Keep = "best",
    before_epoch: Callable[[int, int], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Train ``model`` in place on the ``train`` split and return its best checkpoint on ``validation``, or its last.

    Best is the best metric of the data set, then the lowest validation loss, then the earliest epoch. On the CPU the
    same model and arguments give the same weights, bit for bit, whatever the global random state. The model is left
    on the CPU, in eval mode, with the weights that are returned. An incomplete last batch of an epoch is
    dropped. ``keep`` = "last" returns the last epoch's weights instead of the best.

    ``augment`` changes training batches (see augment.py). ``precision`` "bf16" computes forward and backward passes in
    bfloat16 where that is safe (autocast), with images channels last: CPUs with AMX or AVX512-BF16 train several times
    as fast; weights and validation stay float32. ``clip_norm`` limits the norm of all gradients together. With a
    ``teacher``, a model of the same inputs and outputs, its answers count for the share ``distillation`` of the loss
    (see losses.py) and the targets for the rest. ``before_epoch(epoch, epochs)`` is called before every epoch.

    Raises QDeployError for a wrong name, a device that is not here, a task without a loss, or a loss that is not
    finite.
    """
    if epochs < 1 or batch_size < 1:
        raise QDeployError(f"Cannot train {epochs} epochs with batches of {batch_size}.", "Both are 1 or more.")
    report, prepare_epoch = progress or (lambda _: None), before_epoch or (lambda *_: None)
    loss = loss_of(dataset.task)
    metric = plugins.load("metric", dataset.metric)()
    train, validation = _tensors(dataset, "train"), _tensors(dataset, "validation")
    _require_fit(model, train, loss, label_smoothing)
    batches = max(len(train[0]) // batch_size, 1)
    rate = _schedule(schedule, lr, epochs * batches)
    order = torch.Generator().manual_seed(seed)
    fabric = _fabric(device, precision)
    if precision == "bf16":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    wrapped, stepper = fabric.setup(model, _optimizer(optimizer, model, lr, weight_decay))
    taught = _taught(fabric, loss, label_smoothing, teacher, distillation)
    history: list[dict[str, float]] = []
    best: tuple[tuple[float, float], int, dict[str, Tensor]] | None = None

    with _seeded(seed):
        for epoch in range(1, epochs + 1):
            losses = []
            prepare_epoch(epoch, epochs)
            for batch, rows in enumerate(_batches(len(train[0]), batch_size, order), start=1):
                _set_lr(stepper, rate((epoch - 1) * batches + batch - 1))
                inputs = change(train[0][rows], augment, order)
                losses.append(_step(fabric, wrapped, stepper, taught, (inputs, train[1][rows]), clip_norm))
                _require_finite(losses[-1], f"The training loss in epoch {epoch}, batch {batch}")
                if batch < batches:
                    report(Progress(epoch, epochs, batch, batches, losses[-1]))
            measured_loss, measured = _validate(fabric, model, loss, metric, validation)
            _require_finite(measured_loss, f"The validation loss of epoch {epoch}")
            line = {"epoch": epoch, "lr": stepper.param_groups[0]["lr"], "train_loss": sum(losses) / batches}
            history.append({**line, "validation_loss": measured_loss, "validation_metric": measured})
            rank = (measured if metric.higher_is_better else -measured, -measured_loss)
            if epoch == epochs if keep == "last" else best is None or rank > best[0]:
                best = rank, epoch, _snapshot(model)
            report(Progress(epoch, epochs, batches, batches, losses[-1], history[-1]))
    assert best is not None
    _, epoch, state_dict = best
    model.cpu().eval().load_state_dict(state_dict)
    return FitResult(state_dict, epoch, metric.name, history)


def _taught(
    fabric: Any, loss: Loss, label_smoothing: float, teacher: nn.Module | None, distillation: float
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The training loss of (inputs, outputs, targets)."""
    if teacher is None or distillation == 0:
        return lambda _, outputs, targets: loss.of(outputs, targets, label_smoothing)
    teacher = fabric.to_device(teacher.eval())

    def taught(inputs: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(inputs)
        follow = loss.taught(outputs, wanted)
        if distillation == 1:  # the other part counts for nothing
            return follow
        return distillation * follow + (1 - distillation) * loss.of(outputs, targets, label_smoothing)

    return taught


def _step(
    fabric: Any, model: nn.Module, optimizer: Any, loss_function: Callable[..., Tensor], batch: tuple[Tensor, Tensor],
    clip_norm: float | None,
) -> float:  # fmt: skip
    """One step of the optimizer on ``batch`` (inputs, targets); returns the loss before it."""
    model.train()
    inputs, targets = fabric.to_device(batch)
    loss = loss_function(inputs, model(inputs), targets)
    optimizer.zero_grad()
    fabric.backward(loss)
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def _validate(
    fabric: Any, model: nn.Module, loss: Loss, metric: Any, data: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """The mean loss and the metric over ``data`` (inputs, targets), in eval mode and float32."""
    model.eval()
    total, rows = 0.0, []
    for inputs, targets in zip(*(tensor.split(VALIDATION_BATCH) for tensor in data), strict=True):
        outputs = model(fabric.to_device(inputs)).cpu()
        total += loss.of(outputs, targets, 0.0).item() * len(targets)
        rows.append(metric.prepare(outputs.numpy(), targets.numpy()))
    return total / len(data[0]), metric.value(np.concatenate(rows))


def _tensors(dataset: Data, split: str) -> tuple[Tensor, Tensor]:
    raw, targets = dataset.split(split)
    return torch.from_numpy(preprocess(raw, dataset.preprocessing)), torch.from_numpy(targets)


def _batches(samples: int, batch_size: int, order: torch.Generator) -> Iterator[Tensor]:
    """Row indices of an epoch's batches, in a new random order. At least one batch, otherwise only full ones."""
    rows = torch.randperm(samples, generator=order)
    for batch in range(max(samples // batch_size, 1)):
        yield rows[batch * batch_size : (batch + 1) * batch_size]


def _optimizer(name: str, model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """The optimizer over all parameters. Biases, batch norm's parameters and other vectors are not decayed.

    A module with a true attribute ``decays`` has its own parameters decayed all the same: PACT's clipping level.
    """
    asked = {p for module in model.modules() if getattr(module, "decays", False) for p in module.parameters(False)}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1 or p in asked], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1 and p not in asked], "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    raise QDeployError(f"There is no optimizer named {name!r}.", nearest(name, get_args(choices.Optimizer)))


def _schedule(name: str, lr: float, steps: int) -> Callable[[int], float]:
    """The learning rate of a step, 0 to ``steps`` - 1."""
    if name == "constant":
        return lambda _: lr
    if name == "cosine":
        return lambda step: lr * 0.5 * (1 + math.cos(math.pi * step / steps))
    raise QDeployError(f"There is no schedule named {name!r}.", nearest(name, get_args(choices.Schedule)))


def _set_lr(optimizer: Any, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _require_fit(model: nn.Module, train: tuple[Tensor, Tensor], loss: Loss, label_smoothing: float) -> None:
    """Refuse a model that cannot be trained on these samples, before the first step."""
    inputs, targets = train[0][:2], train[1]
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise QDeployError(
            "The model has no parameters to train.", "Check that its layers are attributes of the module."
        )
    try:
        with torch.no_grad():
            outputs = model.eval()(inputs)
    except USER_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise QDeployError(
            f"The model fails on a batch of shape {list(inputs.shape)}: {reason}.",
            "Check the model's arguments against the data set's samples.",
        ) from error
    if not isinstance(outputs, Tensor):
        raise QDeployError(
            f"The model returns a {type(outputs).__name__}, not one tensor.",
            "Wrap it in a module that returns the tensor alone.",
        )
    loss.check(outputs, targets)
    loss.of(outputs, targets[:2], label_smoothing)


def device_kind(device: str) -> str:
    """The kind of device that ``device`` ("auto" among others) means on this machine: "cpu", "cuda" or "mps"."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _fabric(device: str, precision: str) -> Any:
    """Fabric on one ``device``, without its banners."""
    if precision not in PRECISIONS:
        raise QDeployError(f"There is no precision named {precision!r}.", nearest(precision, PRECISIONS))
    available = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device not in available:
        raise QDeployError(f"There is no device named {device!r}.", nearest(device, available))
    if not available[device]:
        usable = ", ".join(name for name, usable in available.items() if usable)
        raise QDeployError(
            f"PyTorch finds no {device} device on this machine.", f"Set train.device to one of {usable}."
        )
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Inside an interactive Slurm job Fabric asks whether srun was forgotten; one process is what we want.
            warnings.filterwarnings("ignore", message=r"The `srun` command is available")
            return lightning_fabric.Fabric(accelerator=device, devices=1, precision=PRECISIONS[precision])
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators, which dropout draws from, and put them back afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _require_finite(loss: float, what: str) -> None:
    if not math.isfinite(loss):
        raise QDeployError(f"{what} is {loss}.", "Lower train.lr, and check the data for values that are not finite.")


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict: what ``state_dict()`` returns keeps changing with the model."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
