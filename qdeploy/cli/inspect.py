"""``qdeploy inspect``: what is in an artifact and which kernels run it here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from qdeploy.verify.portability import Portability


def command(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A NAME.qdeploy.zip, an unpacked bundle, an .onnx file, or a build folder such as runs/digits.",
            show_default=False,
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of tables: an object, or a list for a build folder.")
    ] = False,
) -> None:
    """Show the layers of a model: bits, the kernel that runs each on this machine, and multiply-accumulates.

    The kernels are read from the graph that onnxruntime optimizes for this CPU,
    not from what the model promises. Below the table stands whether all CPUs
    give the same answers, and where not.

    Example: qdeploy inspect runs/digits/ptq-int8.qdeploy.zip
    """
    from qdeploy.cli.bench import find_bundles

    models = find_bundles(path)
    if as_json:
        found = [_facts(model) for model in models]
        typer.echo(json.dumps(found[0] if models == [path] else found, indent=2))
        return
    for model in models:
        _show(model)


def _facts(path: Path) -> dict[str, Any]:
    """What ``--json`` prints of one model."""
    from qdeploy.core.records import to_json
    from qdeploy.verify.coverage import coverage
    from qdeploy.verify.inspection import layers_of
    from qdeploy.verify.portability import portability

    model, about = _read(path)
    found = coverage(model)
    layers = [to_json(layer) for layer in layers_of(model, found)]
    facts = {"integer_mac_share": found.integer_mac_share, "kernels": found.kernels, "layers": layers}
    return {**about, **facts, "portability": to_json(portability(model))}


def _show(path: Path) -> None:
    from rich.console import Console

    from qdeploy.reports.terminal import layers_table
    from qdeploy.verify.coverage import coverage
    from qdeploy.verify.inspection import layers_of
    from qdeploy.verify.portability import portability

    model, about = _read(path)
    covered = coverage(model)
    layers = layers_of(model, covered)
    console = Console()
    for key, value in about.items():
        console.print(f"{key + ':':<12}{value}", highlight=False, markup=False)
    console.print(layers_table(layers))
    found = portability(model)
    # Operators that are integer in the file itself are no layers of the table, and can saturate all the same.
    if found.saturation or found.arithmetic or any(layer.integer for layer in layers):
        for line in portability_lines(found, exact=covered.computes_in_integers):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def portability_lines(found: Portability, *, exact: bool) -> list[str]:
    """Whether every CPU answers alike, and if not, where it is proven that some do not.

    ``exact``: nothing of the model computes in float32, or with ranges found at run time.
    """
    lines = [
        f"not portable: {layer.name}: {layer.pairs:,} pairs of weights in {layer.channels} output channels can "
        f"saturate on x86 with AVX2 and no VNNI (they sum to up to {layer.worst})"
        for layer in found.saturation
    ]
    lines += [
        f"not portable: {layer.name}: CPUs round this {layer.op} differently for {layer.pairs:,} pairs of codes"
        for layer in found.arithmetic
    ]
    if exact:
        return lines or ["portable: the same answer on every CPU, for every input (proven)"]
    return lines or [
        "portable but for last bits: no product of codes can saturate on any CPU (proven); float32 operators and "
        "ranges that are found at run time may differ in their last bits"
    ]


def _read(path: Path) -> tuple[bytes, dict[str, str]]:
    """The ONNX bytes, and what a bundle says about itself."""
    from qdeploy.verify.bundle import read_bundle

    if path.suffix == ".onnx":
        return path.read_bytes(), {"model": str(path), "size": f"{path.stat().st_size:,} bytes"}
    bundle = read_bundle(path)
    manifest, metric = bundle["manifest"], bundle["manifest"]["metric"]
    about = {"bundle": str(path), "recipe": manifest["recipe"], "variant": f"{manifest['name']} ({manifest['method']})"}
    if metric is not None:
        about["deployed"] = (f"{metric['name']} {metric['value']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}] "
                             f"on {metric['samples']:,} samples of {metric['dataset']}")  # fmt: skip
    return bundle["model"], {**about, "size": f"{len(bundle['model']):,} bytes"}
