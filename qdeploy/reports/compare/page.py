"""The page of a comparison: self-contained, no scripts, no network, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from qdeploy.core.files import write_atomic
from qdeploy.reports import html, plots, words
from qdeploy.reports.compare import table
from qdeploy.reports.compare.facts import Comparison
from qdeploy.reports.compare.settings import Setting, fastest, settings
from qdeploy.reports.compare.summary import summary
from qdeploy.reports.html import Tile
from qdeploy.reports.typeset import typeset


def write(compared: Comparison, path: Path) -> None:
    """Write the page to ``path``. The same comparison gives the same bytes."""
    write_atomic(path, render(compared))


def render(compared: Comparison) -> str:
    """The page as text."""
    shown, common = settings(compared.timings)
    return html.fill(
        "compare.html.j2",
        compared=compared,
        title=f"{_count(len(compared.bundles), 'bundle')} on {_count(len(compared.machines), 'machine')}",
        verdict=next(iter(summary(compared)), ""),
        tiles=_tiles(compared, shown),
        common=common,
        figures=[Figure(setting.header, _bars(compared, setting)) for setting in shown],
        baseline=any(timing.latency.speedup for timing in compared.timings),
        blocks=table.blocks(compared),
        notes=table.reading(compared),
        machines=[(machine, html.machine_facts(machine.environment)) for machine in compared.machines],
    )


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture and what is written over it."""

    caption: str
    drawing: Markup


def _count(number: int, noun: str) -> str:
    return words.plural(number, noun) if number else f"no {noun}"


def _tiles(compared: Comparison, shown: Sequence[Setting]) -> list[Tile]:
    """One a machine, at its first setting; none where there is nothing to choose between."""
    firsts = {next(iter(one.timings.values())).machine: one for one in reversed(shown)}
    return [_tile(compared, setting) for setting in shown if setting in firsts.values() and len(compared.bundles) > 1]


def _tile(compared: Comparison, setting: Setting) -> Tile:
    """The fastest bundle of a machine: its speed-up where one is known, else its time."""
    best = min(setting.timings.values(), key=lambda timing: timing.latency.p50_ms.value)
    name = next(bundle.label for bundle in compared.bundles if bundle.sha256 == best.bundle_sha256)
    others = len(fastest(setting)) - 1
    alike = f", no difference to {words.plural(others, 'other')}" if others else ""
    time = words.milliseconds(best.latency.p50_ms.value)
    speed = table.speedup(best)
    if best.latency.speedup is None:
        return Tile(time, f"p50 on {setting.header}", f"fastest: {name}{alike}")
    none = f": {speed.text}" if speed.text == words.NO_DIFFERENCE else ""
    ratio, where = words.ratio(best.latency.speedup.value), f"speed-up on {setting.header}{none}"
    return Tile(ratio, where, f"fastest: {name}, {time}{alike}", speed.tone)


def _bars(compared: Comparison, setting: Setting) -> Markup:
    """The times of a machine, a row a bundle, in the order of all tables."""
    best, rows = fastest(setting), []
    for bundle in compared.bundles:
        timing = setting.timings.get(bundle.sha256)
        if timing is None:
            rows.append(plots.Bar(bundle.label, None, words.NOT_MEASURED, "other"))
            continue
        base = timing.baseline_sha256 == bundle.sha256
        parts = [words.milliseconds(timing.latency.p50_ms.value)]
        if timing.latency.speedup is not None:
            parts.append(table.speedup(timing).text)
        kind = "baseline" if base else "best" if bundle.sha256 in best else "other"
        rows.append(plots.Bar(bundle.label, timing.latency.p50_ms, typeset("   ".join(parts)), kind))
    return plots.bars(rows, f"p50 latency on {setting.header}")
