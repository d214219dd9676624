"""``qdeploy doctor``: what this machine can do for integer models, and what to beware of."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from qdeploy.bench.system import Clock
    from qdeploy.bench.traps import Trap

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
        typer.echo(json.dumps(facts, indent=2, default=to_json))
        return
    console = Console()
    for title, table in (
        ("Machine", _machine(facts)),
        (f"Instruction sets for int8 ({facts['environment'].architecture})", _sets(facts)),
        ("Software", _software(facts)),
        ("Runtimes (--runtime)", _plugins("runtime", facts["runtimes"])),
        ("Targets (--target)", _plugins("target", facts["targets"])),
        ("Loggers (--log)", _plugins("logger", facts["loggers"])),
        ("Known traps here", _traps(facts["traps"])),
    ):
        console.print(title, style="bold")
        console.print(table)
        console.print()


def examine() -> dict[str, Any]:
    """What doctor says, by what it says it of. Takes half a second, and up to a few where threads fight for a core."""
    import os

    import onnxruntime

    from qdeploy import runner
    from qdeploy.bench import probe, system, traps
    from qdeploy.core.records import Environment, from_json

    load = system.load()  # before this process keeps cores busy itself
    environment = from_json(Environment, runner.environment(), "environment")
    quota, clocks = runner.cgroup_quota(), system.clocks()
    default, allowed, saturates = probe.default_threads(), environment.cores_allowed, runner.saturates()
    slowdown = None
    if default is not None and default > allowed and not environment.emulator:
        slowdown = probe.slowdown(default, allowed)
    return {
        "environment": environment,
        "quota": quota,
        "load": load,
        "clocks": clocks,
        "turbo": system.turbo(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "providers": providers(onnxruntime.get_available_providers()),
        "runtimes": missing("runtime"),
        "targets": missing("target"),
        "loggers": missing("logger"),
        "default_threads": default,
        "slowdown": slowdown,
        "saturates": saturates,
        "traps": [
            *traps.cpu_traps(environment),
            *traps.measured_traps(environment, default_threads=default, saturates=saturates, slowdown=slowdown),
            *traps.core_traps(environment, quota=quota, load=load),
            *traps.clock_traps(clocks),
            *traps.variable_traps(environment, os.environ),
            *traps.build_traps(onnxruntime.get_build_info(), onnxruntime_distributions()),
        ],
    }


def providers(names: list[str]) -> list[str]:
    """The names that ``--provider`` takes for onnxruntime's providers ``names``, the default one first."""
    from qdeploy import runner

    short = [name.removesuffix(runner.PROVIDER) for name in names]
    return sorted(short, key=lambda name: name != "CPU")


def missing(kind: str) -> dict[str, str]:
    """What every plugin of a kind lacks here, by name: what its ``require()`` raises, else nothing, ""."""
    from qdeploy.core import plugins
    from qdeploy.core.errors import QDeployError

    found = dict.fromkeys(plugins.names(kind), "")
    for name in found:
        try:
            getattr(plugins.load(kind, name), "require", lambda: None)()
        except QDeployError as error:
            found[name] = f"{error.message} {error.hint}".strip()
    return found


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

    environment, default, load = facts["environment"], facts["default_threads"], facts["load"]
    cores = f"{environment.cores_allowed} allowed of {environment.cores_present} present ({environment.cores_reason})"
    return _grid(
        ("CPU", environment.cpu),
        ("cores", cores + (f"; onnxruntime's default: {default} threads" if default else "")),
        ("cores in use", f"{load.busy:.1f} of {load.cores} by other programs" if load else "not reported"),
        ("memory", words.size(environment.memory_bytes)),
        ("clock", _clock(facts["clocks"], facts["turbo"])),
        ("emulated", environment.emulator or "no"),
        ("system", environment.system),
    )


def _clock(clocks: list[Clock], turbo: bool | None) -> str:
    """In words: "powersave (intel_pstate, balance_performance), up to 3.4 GHz; turbo off"."""
    from qdeploy.bench.traps import gigahertz

    if not clocks:
        return "not reported (a virtual machine, or no frequency scaling)"
    parts = []
    for clock in clocks:
        by = ", ".join(filter(None, (clock.driver, clock.preference)))
        limit = f", up to {gigahertz(clock.limit)}" if clock.limit else ""
        parts.append(f"{clock.governor} ({by}){limit}" + (f" on {clock.cpus} CPUs" if len(clocks) > 1 else ""))
    return "; ".join(parts + ([] if turbo is None else [f"turbo {'on' if turbo else 'off'}"]))


def _sets(facts: dict[str, Any]) -> Table:
    from qdeploy.bench.traps import X86

    environment = facts["environment"]
    rows = []
    for name, flags, meaning in X86_SETS if environment.architecture in X86 else ARM_SETS:
        present = next((flag for flag in flags if flag in environment.isa), "")
        state = "[green]yes[/]" if present else "[dim]no[/]" if environment.isa else "[dim]unknown[/]"
        rows.append((name, state, present, meaning))
    saturates = facts["saturates"]
    state = "[yellow]saturate[/]" if saturates else "[green]exact[/]"
    meaning = "portable bundles are exact, others get slower kernels" if saturates else ""
    rows.append(("u8 x s8 products", state, "measured", meaning))
    return _grid(*rows)


def _software(facts: dict[str, Any]) -> Table:
    import platform

    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    if "torch" not in facts["versions"]:
        versions += " (no torch: bundles can be measured and run here, not built)"
    return _grid(
        ("Python", f"{platform.python_version()} ({sys.executable})"),
        ("packages", versions),
        ("providers", ", ".join(facts["providers"]) + " (--provider)"),
    )


def _plugins(kind: str, missing: dict[str, str]) -> Table:
    from rich.markup import escape

    from qdeploy.core import plugins

    return _grid(
        *(
            (name, "[dim]no[/]" if lack else "[green]yes[/]", escape(lack or plugins.summary(kind, name)))
            for name, lack in missing.items()
        )
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
