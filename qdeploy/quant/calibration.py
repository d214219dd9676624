"""Run the float32 graph over calibration samples while every activation quantizer watches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from qdeploy.core import plugins
from qdeploy.quant.placement import Placement


@torch.no_grad()
def watch(
    graph_module: fx.GraphModule, placement: Placement, batches: Iterable[Tensor | tuple[Tensor, ...]], *,
    observer: str, **options: Any,
) -> None:  # fmt: skip
    """Let an ``observer`` with its own ``options`` see every quantized activation of ``batches`` of model inputs."""
    make = plugins.load("observer", observer)
    for quantizer in placement.activations.values():
        quantizer.watch(make(quantizer.scheme, **options))
    for batch in batches:
        graph_module(*(batch if isinstance(batch, tuple) else (batch,)))
