"""``qdeploy doctor``: what this machine can do for integer models, and what to beware of."""

from __future__ import annotations

import importlib.metadata
import sys
import sysconfig
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from qdeploy.bench.traps import Trap
    from qdeploy.core.records import Environment

PACKAGES = ("onnxruntime", "onnx", "numpy", "torch", "torchvision")

# What to look for on each architecture: (name, the flags that show it, what it means for int8).
X86_SETS = (
    ("AVX2", ("avx2",), "256-bit integers"),
    ("AVX-512", ("avx512bw",), "512-bit integers"),
    ("VNNI", ("avx512_vnni", "avx_vnni"), "fast and exact int8 dot products"),
    ("AMX", ("amx_int8",), "int8 matrix tiles"),
)
ARM_SETS = (
    ("NEON", ("asimd", "neon"), "128-bit integers"),
    ("dot product", ("asimddp",), "fast int8 dot products"),
    ("i8mm", ("i8mm",), "int8 matrix products"),
    ("SVE", ("sve",), "scalable vectors"),
)


def command(as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False) -> None:
    """Show what this machine can do for integer models, and its known traps.

    Example: qdeploy doctor
    """
    import json

    from rich.console import Console

    from qdeploy.core.records import to_json

    facts = examine()
    if as_json:
        plain = {**facts, "environment": to_json(facts["environment"]), "traps": [to_json(t) for t in facts["traps"]]}
        typer.echo(json.dumps(plain, indent=2))
        return
    console = Console()
    for title, table in (
        ("Machine", _machine(facts)),
        (f"Instruction sets for int8 ({facts['environment'].architecture})", _sets(facts)),
        ("Software", _software(facts)),
        ("Known traps here", _traps(facts["traps"])),
    ):
        console.print(title, style="bold")
        console.print(table)
        console.print()


def examine() -> dict[str, Any]:
    """What doctor says: {"environment", "versions", "providers", "default_threads", "saturates", "traps"}."""
    import os

    import onnxruntime

    from qdeploy import runner
    from qdeploy.bench import probe
    from qdeploy.bench.traps import machine_traps, variable_traps
    from qdeploy.core.records import Environment, from_json

    environment = from_json(Environment, runner.environment(), "environment")
    default_threads, saturates = probe.default_threads(), runner.saturates()
    traps = [
        *machine_traps(environment),
        *measured_traps(environment, default_threads=default_threads, saturates=saturates),
        *variable_traps(environment, os.environ),
        *build_traps(onnxruntime.get_build_info(), onnxruntime_distributions()),
    ]
    return {
        "environment": environment,
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "providers": onnxruntime.get_available_providers(),
        "default_threads": default_threads,
        "saturates": saturates,
        "traps": traps,
    }


def measured_traps(environment: Environment, *, default_threads: int | None, saturates: bool) -> list[Trap]:
    """The traps that running onnxruntime has shown."""
    from qdeploy.bench.traps import Trap

    traps = []
    allowed = environment.cores_allowed
    if default_threads is not None and default_threads > allowed:
        traps.append(
            Trap(
                f"onnxruntime by itself starts {default_threads} threads, but {allowed} of {environment.cores_present} "
                f"cores are allowed ({environment.cores_reason}): int8 models can become many times slower.",
                f"qdeploy and run.py set {allowed}; in code of your own, set intra_op_num_threads={allowed}.",
            )
        )
    if saturates:
        traps.append(
            Trap(
                "Products of uint8 activations and int8 weights saturate here: a full-range int8 model gives other "
                "answers than elsewhere.",
                "Check bundles with `run.py selftest`; weights of 7 bits never saturate.",
            )
        )
    return traps


def build_traps(build_info: str, distributions: list[str]) -> list[Trap]:
    """The traps that lie in how Python and onnxruntime were built and installed."""
    from qdeploy.bench.traps import Trap

    traps = []
    if "build type=Release" not in build_info:
        traps.append(Trap(f"onnxruntime is no release build ({build_info}).", "Install the package from the registry."))
    if len(distributions) > 1:
        what = f"{' and '.join(distributions)} are installed together: they overwrite each other's files."
        traps.append(Trap(what, "Uninstall them all, then install one."))
    if sysconfig.get_config_var("Py_DEBUG"):
        traps.append(Trap("This Python is a debug build: small models are timed too slow.", "Use a release build."))
    if sys.maxsize < 2**32:
        traps.append(Trap("This Python is a 32-bit one: the fast int8 kernels are missing.", "Use a 64-bit system."))
    return traps


def onnxruntime_distributions() -> list[str]:
    """The installed packages that provide the module onnxruntime: one, if all is well."""
    return sorted(set(importlib.metadata.packages_distributions().get("onnxruntime", [])))


def _version(name: str) -> str | None:
    """A package's version, without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine(facts: dict[str, Any]) -> Table:
    from qdeploy.reports import words

    environment = facts["environment"]
    default = facts["default_threads"]
    cores = f"{environment.cores_allowed} allowed of {environment.cores_present} present ({environment.cores_reason})"
    return _grid(
        ("CPU", environment.cpu),
        ("cores", cores + (f"; onnxruntime's default: {default} threads" if default else "")),
        ("memory", words.size(environment.memory_bytes)),
        ("governor", environment.governor or "not reported (a virtual machine, or no frequency scaling)"),
        ("emulated", environment.emulator or "no"),
        ("system", environment.system),
    )


def _sets(facts: dict[str, Any]) -> Table:
    from qdeploy.bench.traps import X86

    environment = facts["environment"]
    rows = []
    for name, flags, meaning in X86_SETS if environment.architecture in X86 else ARM_SETS:
        present = next((flag for flag in flags if flag in environment.isa), "")
        state = "[green]yes[/]" if present else "[dim]no[/]" if environment.isa else "[dim]unknown[/]"
        rows.append((name, state, present, meaning))
    measured = ("[red]saturate[/]", "other answers than elsewhere") if facts["saturates"] else ("[green]exact[/]", "")
    rows.append(("u8 x s8 products", measured[0], "measured", measured[1]))
    return _grid(*rows)


def _software(facts: dict[str, Any]) -> Table:
    import platform

    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    if "torch" not in facts["versions"]:
        versions += " (no torch: bundles can be measured and run here, not built)"
    return _grid(
        ("Python", f"{platform.python_version()} ({sys.executable})"),
        ("packages", versions),
        ("providers", ", ".join(facts["providers"])),
    )


def _traps(traps: list[Trap]) -> Table:
    from rich.markup import escape

    if not traps:
        return _grid(("[green]none[/]",))
    return _grid(*(("[yellow]![/]", f"{escape(trap.what)} [dim]{escape(trap.remedy)}[/]") for trap in traps))


def _grid(*rows: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for row in rows:
        table.add_row("  " + row[0], *row[1:])
    return table
