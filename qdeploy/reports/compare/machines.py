"""Which records are of one machine, and what to call it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from qdeploy.core.records import Environment
from qdeploy.reports import words
from qdeploy.reports.compare.facts import Machine, Part

LABEL = 24  # letters of a machine's label that come from a record; the notes have the whole of it


def machines_of(parts: Sequence[Part]) -> tuple[tuple[Machine, ...], dict[int, Machine]]:
    """The machines in order of appearance, and the one that each part is about, by the part's index."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, part in enumerate(parts):
        if (e := part.environment) is not None:
            software = (e.system, e.onnxruntime, e.emulator)
            hardware = (e.cpu, e.architecture, e.isa, e.cores_present, e.cores_allowed)
            groups.setdefault((part.target, *hardware, *software), []).append(index)
    firsts = [(parts[i[0]].target, parts[i[0]].environment) for i in groups.values()]
    places = [(target, environment) for target, environment in firsts if environment is not None]
    found = [
        Machine(label, target, environment, tuple(dict.fromkeys(parts[i].source for i in indices)))
        for label, (target, environment), indices in zip(_labels(places), places, groups.values(), strict=True)
    ]
    of = {i: machine for machine, indices in zip(found, groups.values(), strict=True) for i in indices}
    return tuple(found), of


def _labels(places: Sequence[tuple[str, Environment]]) -> list[str]:
    """A short name for each place, unlike the others': its target, or the CPU where that says no more than "local"."""
    labels = [_short(_cpu(e.cpu) if target == "local" and e.cpu else _host(target)) for target, e in places]
    facts: tuple[Callable[[Environment], str], ...] = (
        lambda e: words.plural(e.cores_allowed, "core"),
        lambda e: f"onnxruntime {e.onnxruntime}",
        lambda e: f"emulated by {e.emulator}" if e.emulator else "not emulated",
        lambda e: e.system,
    )
    for fact in facts:
        said = [_short(fact(e)) for _, e in places]
        alike = [{said[j] for j, other in enumerate(labels) if other == label} for label in labels]
        labels = [f"{a}, {b}" if len(group) > 1 else a for a, b, group in zip(labels, said, alike, strict=True)]
    for i, label in enumerate(labels):
        number = 2
        while labels[i] in labels[:i]:
            labels[i], number = f"{label} ({number})", number + 1
    return labels


def _cpu(name: str) -> str:
    """A CPU's name without trade marks and what goes without saying: "Intel Xeon Silver 4314"."""
    plain = re.sub(r"\((R|TM|C)\)|@.*|\b(CPU|Processor|\d+-Core)\b", " ", name, flags=re.IGNORECASE)
    return " ".join(plain.split()) or name


def _host(target: str) -> str:
    """A target, without the user's name where it is long."""
    return target if len(target) <= LABEL else re.sub(r"(?<=//)[^@/]*@", "", target)


def _short(text: str) -> str:
    return text if len(text) <= LABEL else text[: LABEL - 3].rstrip() + "..."


def runtime_name(name: str, environment: Environment) -> str:
    """A runtime's name without onnxruntime's version, which is one of the machine's facts."""
    return name.replace(f"onnxruntime {environment.onnxruntime}", "onnxruntime")
