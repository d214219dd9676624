"""What DynamicQuantizeLSTM costs against the float32 LSTM: the table of docs/dynamic.md, measured on this machine.

python benchmarks/lstm_kernels.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from torch import Tensor, nn

from qdeploy.export import artifact
from qdeploy.runtimes.onnxruntime import Runtime

STEPS, CALLS = 200, 30


class States(nn.Module):
    """An LSTM of as many inputs as states, both directions."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(size, size, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, size] to [N, T, 2 * size]."""
        return self.lstm(x)[0]


def milliseconds(first: bytes, second: bytes, x: np.ndarray) -> list[float]:
    """The median time of a call of each, on one thread, with the calls of both in turn."""
    runtimes, times = [Runtime(model, threads=1) for model in (first, second)], [[], []]
    for _ in range(CALLS):
        for runtime, taken in zip(runtimes, times, strict=True):
            start = time.perf_counter()
            runtime.run({"x": x})
            taken.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]


def main() -> None:
    """Print the table."""
    print("| Hidden size | LSTM, float32 | DynamicQuantizeLSTM |\n|---|---|---|")  # noqa: T201
    for size in (32, 64, 128, 256):
        torch.manual_seed(0)
        model, x = States(size).eval(), torch.randn(2, STEPS, size)
        # Weights so large that products could saturate elsewhere cost nothing here: the search for others takes longer.
        made = [artifact.float32(model, x).model, artifact.quantized(model, x, [x], portable=False).model]
        print("| {} | {:.2f} ms | {:.2f} ms |".format(size, *milliseconds(made[0], made[1], x[:1].numpy())))  # noqa: T201


if __name__ == "__main__":
    main()
