"""A progress bar for ``fit``: one line that counts batches and shows the last epoch's validation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from qdeploy.train.fit import Progress as Step


@contextlib.contextmanager
def bar(console: Console, label: str = "training") -> Iterator[Callable[[Step], None]]:
    """Yield a callback for ``fit(progress=...)`` that draws on ``console``; the bar goes away at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console, transient=True) as drawn:
        task = drawn.add_task(label, total=None, state="")

        def update(step: Step) -> None:
            done = (step.epoch - 1) * step.batches + step.batch
            drawn.update(task, completed=done, total=step.epochs * step.batches)
            if step.record is not None:
                best = f"loss {step.record['validation_loss']:.4f}, metric {step.record['validation_metric']:.4f}"
                drawn.update(task, state=f"epoch {step.epoch}/{step.epochs}: validation {best}")

        yield update
