"""Integer coverage, parity and latency of torchvision models with random weights, against float32.

    python benchmarks/torchvision_models.py [--models resnet18,resnet50] [--size 224] [--seconds 5] [--out DIR]

Random weights say nothing of accuracy and everything of kernels: which run, whether they are exact, how fast they
are. All bundles of a run are timed in one interleaved bench at batch 1 on one thread. Writes torchvision.json and
torchvision.md (generated from it) into --out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from qdeploy import __version__
from qdeploy.bench import schedule
from qdeploy.bundle.pack import pack
from qdeploy.core.files import write_atomic, write_json
from qdeploy.core.records import to_json
from qdeploy.export import artifact
from qdeploy.runtimes.onnxruntime import Runtime
from qdeploy.torchvision_remedy import import_torchvision
from qdeploy.verify.artifact import signature
from qdeploy.verify.coverage import coverage
from qdeploy.verify.parity import parity

MODELS = "resnet18,resnet50,mobilenet_v2,vgg11_bn"


def main() -> None:
    """Parse arguments, build, prove, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, arguments.size, arguments.seconds, Path(folder)))
        print(json.dumps({key: value for key, value in rows[-1].items() if key != "bench"}), flush=True)  # noqa: T201
    write_json(arguments.out / "torchvision.json", {"size": arguments.size, "models": rows})
    write_atomic(arguments.out / "torchvision.md", page(arguments.size, rows))


def measure(name: str, size: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Everything about one model at ``size`` x ``size``: coverage, parity on 2 samples, latency against float32."""
    model, inputs = random_model(name), torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    floats = artifact.float32(model, inputs[:2]).model
    integers = artifact.quantized(model, inputs[:2], [inputs]).model
    (input_name,) = Runtime(integers).inputs
    seen = parity(integers, [{input_name: inputs[:2].numpy()}], float_model=floats)
    found = coverage(integers)
    bundles = [bundle(folder, f"{name}-{kind}", method, onnx, inputs[:2].numpy())
               for kind, method, onnx in (("fp32", "float32", floats), ("int8", "ptq", integers))]  # fmt: skip
    bench = schedule.run(bundles, threads=[1], seconds=seconds)
    return {
        "model": name, "integer_mac_share": found.integer_mac_share, "kernels": found.kernels,
        "macs": sum(layer.macs for layer in found.layers), "outputs_checked": seen.outputs_checked,
        "differing_codes": seen.differing_codes, "size_bytes": {"fp32": len(floats), "int8": len(integers)},
        "bench": to_json(bench),
    }  # fmt: skip


def random_model(name: str) -> nn.Module:
    """The torchvision model with random weights and batch norm statistics that are not the identity."""
    torch.manual_seed(0)
    model: nn.Module = getattr(import_torchvision().models, name)(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
            module.bias.data.normal_(0, 0.1)
    return model.eval()


def bundle(folder: Path, name: str, method: str, model: bytes, samples: np.ndarray) -> Path:
    """A bundle without a metric: there is no data set behind random weights."""
    path, tensors, runtime = folder / f"{name}.qdeploy.zip", signature(model), Runtime(model)
    golden = {f"input.{runtime.inputs[0]}": samples}
    golden |= {f"output.{key}": value for key, value in runtime.run({runtime.inputs[0]: samples}).items()}
    raw = {"dtype": "float32", "shape": list(samples.shape[1:])}
    pack(
        path, name=name, recipe="torchvision", method=method, model=model, golden=golden,
        inputs=[{**tensor, "raw": raw, "preprocessing": []} for tensor in tensors["inputs"]],
        outputs=tensors["outputs"],
        task="classification", classes=[], quantization={}, comparison="exact" if method != "float32" else "close",
        tolerance=0.0 if method != "float32" else 1e-2,
        versions={"qdeploy": __version__, "onnxruntime": onnxruntime.__version__, "torch": torch.__version__},
    )  # fmt: skip
    return path


def page(size: int, rows: list[dict[str, Any]]) -> str:
    """The results page, from the measured rows alone."""
    environment = rows[0]["bench"]["environment"]
    lines = [
        "# torchvision models, int8 against float32", "",
        f"Random weights, {size} x {size}, batch 1, one thread, each model's two bundles interleaved in one run on "
        f"{environment['cpu']} ({environment['system']}), onnxruntime {environment['onnxruntime']}.", "",
        "| model | MACs | integer MACs | codes checked | differing "
        "| float32 p50 | int8 p50 | speed-up (95% interval) | size |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        fp32, int8 = (entry["latency"] for entry in row["bench"]["rows"])
        speedup, sizes = int8["speedup"], row["size_bytes"]
        lines.append(
            f"| {row['model']} | {row['macs'] / 1e9:.2f} G | {row['integer_mac_share']:.2%} "
            f"| {row['outputs_checked']:,} | {row['differing_codes']} "
            f"| {fp32['p50_ms']['value']:.2f} ms | {int8['p50_ms']['value']:.2f} ms "
            f"| {speedup['value']:.2f}x [{speedup['low']:.2f}, {speedup['high']:.2f}] "
            f"| {sizes['int8'] / sizes['fp32']:.2f}x |"
        )
    lines += ["", "Made by `python benchmarks/torchvision_models.py`.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
