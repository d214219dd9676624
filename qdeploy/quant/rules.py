"""How many bits each layer gets: one width for all, 8 for the first and the last, and rules for those that differ."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qdeploy.core import scheme as schemes
from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import Grid, QScheme


@dataclass(frozen=True, slots=True)
class LayerSchemes:
    """The codes of a layer's weights and of the activations that it reads; ``exempt``: kept wider by default."""

    weight: QScheme
    activation: QScheme
    exempt: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """Other bits for the layers whose name matches the glob ``match``; None leaves what held before."""

    match: str
    weight_bits: int | None = None
    activation_bits: int | None = None


def layer_schemes(
    names: Sequence[str], *, weight_bits: int = 8, weight_grid: Grid = "midtread", activation_bits: int = 8,
    first_last_bits: int | None = 8, rules: Iterable[Rule] = (),
) -> dict[str, LayerSchemes]:  # fmt: skip
    """The schemes of the weighted layers ``names``, given in the order of the graph.

    The first and the last layer get ``first_last_bits`` where that is more (None: no exemption): they are small and
    decide most of what few bits cost (Zhou et al., "DoReFa-Net", arXiv:1606.06160, section 2.7). Rules come after
    that; of several that match a layer, the last one decides. ``weight_grid``: see core/scheme.py; at 8 bits it is
    always midtread. QDeployError: a rule that matches no layer.
    """
    bits = dict.fromkeys(names, (weight_bits, activation_bits, False))
    if first_last_bits is not None:
        for name in (*names[:1], *names[-1:]):
            wider = max(weight_bits, first_last_bits), max(activation_bits, first_last_bits)
            bits[name] = (*wider, wider != (weight_bits, activation_bits))
    for rule in rules:
        for name in matching(rule.match, names):
            weights, activations, exempt = bits[name]
            exempt = exempt and rule.weight_bits is None
            bits[name] = rule.weight_bits or weights, rule.activation_bits or activations, exempt
    return {
        name: LayerSchemes(
            schemes.weight(weights, grid=weight_grid if weights < 8 else "midtread"),
            schemes.activation(activations),
            exempt,
        )
        for name, (weights, activations, exempt) in bits.items()
    }


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The layers of ``names`` that the glob ``pattern`` matches. QDeployError if there is none."""
    matched = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not matched:
        shown = f"The layers are {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}."
        raise QDeployError(f"The rule {pattern!r} matches no layer with weights.", shown)
    return matched
