"""What it costs to ask the system for the same memory in every training step: VGG-11 on CIFAR-100's shapes, one thread.

python benchmarks/training_memory.py
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS, WARM, STEPS, BATCH = 5, 2, 8, 128
WAYS = ("given back", "kept")


def measure(way: str) -> dict[str, float]:
    """Times and page faults of a training step, in this process: seconds, share in the system, faults, peak bytes."""
    import torch

    from qdeploy.core.allocator import keep_freed_memory
    from qdeploy.train.reference import load_model

    torch.set_num_threads(1)
    if way == "kept":
        keep_freed_memory()
    model = load_model("models/vgg_cifar.py:vgg11", base=Path(__file__).resolve().parents[1], classes=100).train()
    stepper = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, targets = torch.randn(BATCH, 3, 32, 32), torch.randint(100, (BATCH,))
    for step in range(WARM + STEPS):
        if step == WARM:
            before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        stepper.zero_grad()
        torch.nn.functional.cross_entropy(model(images), targets).backward()
        stepper.step()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    system, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
    faults = (after.ru_minflt - before.ru_minflt) / STEPS
    return {"seconds": seconds / STEPS, "system": system / (system + user), "faults": faults,
            "peak": after.ru_maxrss * 1024}  # fmt: skip


def main() -> None:
    """Both ways in turns, each time in a process of its own; medians, and the ratio of each round's times."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for turn in range(ROUNDS):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            done = subprocess.run([sys.executable, __file__, way], check=True, capture_output=True, text=True)
            runs[way].append(json.loads(done.stdout))
    for way, found in runs.items():
        middle = {key: statistics.median(run[key] for run in found) for key in found[0]}
        line = "{seconds:.2f} s a step, {system:.0%} of it in the system, {faults:,.0f} page faults a step"
        print(f"{way:11} {line.format(**middle)}, peak {middle['peak'] / 1e9:.2f} GB")  # noqa: T201
    ratios = sorted(a["seconds"] / b["seconds"] for a, b in zip(*runs.values(), strict=True))
    print(f"a step is {statistics.median(ratios):.2f}x as fast, {ratios[0]:.2f} to {ratios[-1]:.2f} in {ROUNDS} rounds")  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))  # noqa: T201
    else:
        main()
