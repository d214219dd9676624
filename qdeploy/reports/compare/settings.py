"""The settings that machines were timed at, and what was fastest at each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qdeploy.core.records import Latency
from qdeploy.reports import words
from qdeploy.reports.compare.facts import Timing


@dataclass(frozen=True, slots=True)
class Setting:
    """The times of one machine at one setting: a column."""

    header: str  # the machine, and what of the setting is not common to all columns
    timings: dict[str, Timing]  # by the bundle's digest


def settings(timings: Iterable[Timing]) -> tuple[list[Setting], str]:
    """One column a machine and setting, in order of appearance, and what all settings have in common, in words."""
    groups: dict[tuple[str, tuple[str, ...]], dict[str, Timing]] = {}
    for timing in timings:
        groups.setdefault((timing.machine, _parts(timing.latency)), {})[timing.bundle_sha256] = timing
    columns = list(zip(*(parts for _, parts in groups), strict=True))
    alike = [len(set(column)) == 1 for column in columns]
    order = list(dict.fromkeys(machine for machine, _ in groups))
    made = []
    for (machine, parts), found in sorted(groups.items(), key=lambda group: order.index(group[0][0])):
        own = [part for part, same in zip(parts, alike, strict=True) if not same]
        made.append(Setting(", ".join([machine, *own]), found))
    return made, ", ".join(column[0] for column, same in zip(columns, alike, strict=True) if same)


def fastest(setting: Setting) -> list[str]:
    """The digests of the fastest bundles: that of the shortest time, and all that are no different from it."""
    best = min(setting.timings.values(), key=lambda timing: timing.latency.p50_ms.value)
    return [digest for digest, timing in setting.timings.items() if timing is best or _no_slower(timing, best)]


def _no_slower(timing: Timing, best: Timing) -> bool:
    """Whether no difference was measured: by the ratio of the two where one is the other's baseline in the same run."""
    if timing.source == best.source:
        for one, base in ((timing, best), (best, timing)):
            if one.baseline_sha256 == base.bundle_sha256 and one.latency.speedup is not None:
                return not one.latency.speedup.excludes(1)
    return timing.latency.p50_ms.low <= best.latency.p50_ms.high


def _parts(latency: Latency) -> tuple[str, ...]:
    return latency.runtime, words.plural(latency.threads, "thread"), f"batch {latency.batch}"
