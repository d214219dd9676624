"""Whether an artifact answers as the graph does that it was exported from.

Layer parity holds every kernel against what the artifact says of it. Where weights change their order on the way into
it, as an LSTM's gates do, what the artifact says could be wrong as a whole, and only the graph knows better.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, fx

from qdeploy.core.errors import QDeployError
from qdeploy.runtimes.onnxruntime import Runtime

SAMPLES = 4
# Of the outputs' size, in root mean square. Both compute the same integers, but a last bit may become another code, of
# which there are few where activations have few bits. Gates in a wrong order leave nothing in common.
TOLERANCE = 0.25


@torch.no_grad()
def require_same_answers(graph_module: fx.GraphModule, model: bytes, example: Tensor) -> None:
    """QDeployError unless ``model`` answers as the graph does, on inputs like ``example``: noise where it is real."""
    generator = torch.Generator().manual_seed(0)
    runtime = Runtime(model, threads=1)
    wanted, found = [], []
    for _ in range(SAMPLES if example.is_floating_point() else 1):
        x = torch.randn(example[:1].shape, generator=generator) if example.is_floating_point() else example[:1]
        answers = graph_module(x)
        first = answers if isinstance(answers, Tensor) else answers[0]
        wanted.append(first.double().numpy())
        found.append(runtime.run({runtime.inputs[0]: x.numpy()})[runtime.outputs[0]])
    size, error = (float(np.sqrt(np.mean(np.square(v)))) for v in (wanted, np.subtract(wanted, found)))
    if error > TOLERANCE * size + 1e-6:
        raise QDeployError(
            f"The exported model answers otherwise than the graph it was made from: by {error:.3g}, of {size:.3g}.",
            "This is a bug; please report the model.",
        )
