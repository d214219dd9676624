"""A comparison in two sentences, computed from its facts and from nothing else."""

from __future__ import annotations

import math

from qdeploy.reports import words
from qdeploy.reports.compare.facts import Comparison, joined
from qdeploy.reports.compare.settings import fastest, settings


def summary(compared: Comparison) -> list[str]:
    """A sentence or two on what answers alike, then on what is fastest where, as far as anything is known."""
    said = [_answers_sentence(compared), _speed_sentence(compared)]
    return [sentence for sentence in said if sentence]


def agreement(share: float) -> str:
    """A share near the whole, in percent with two decimals; rounded down, so that only the whole is 100%."""
    return "100%" if share >= 1 else f"{math.floor(share * 10_000 + 1e-6) / 100:.2f}%"


def _answers_sentence(compared: Comparison) -> str:
    answers = compared.answers
    if not answers:
        return ""
    wrong = sum(not one.golden.passed for one in answers)
    bundles, machines = len({one.bundle_sha256 for one in answers}), len({one.machine for one in answers})
    where = f"{words.plural(bundles, 'bundle')} on {words.plural(machines, 'machine')}"
    said = f"Golden vectors hold for {where}." if not wrong else (
        f"Golden vectors do not hold in {wrong} of {len(answers)} checks of {where}.")  # fmt: skip
    beside = [one for one in answers if one.identical is not None or one.agreement is not None]
    if compared.reference is None or not beside:
        return said
    same = [one.identical is True for one in beside]
    shares = [one.agreement for one in beside if not one.identical and one.agreement is not None]
    said += f" Beside {compared.reference.machine}, {sum(same)} of {words.plural(len(same), 'run')} of the evaluation "
    said += f"split {'is' if sum(same) == 1 else 'are'} bit-identical"
    if not shares:
        return f"{said}."
    least = "every sample" if min(shares) == 1 else f"{agreement(min(shares))} or more of the samples"
    return f"{said}; the others decide {least} alike."


def _speed_sentence(compared: Comparison) -> str:
    """What is fastest where, with the places together in which it is the same."""
    groups: dict[str, list[str]] = {}
    for setting in settings(compared.timings)[0] if len(compared.bundles) > 1 else []:
        best = fastest(setting)
        names = joined(bundle.label for bundle in compared.bundles if bundle.sha256 in best)
        groups.setdefault(f"{names} (no difference)" if len(best) > 1 else names, []).append(setting.header)
    said = [f"{names} on {'; '.join(headers)}" for names, headers in groups.items()]
    if len(said) == 1 and len(next(iter(groups.values()))) > 1:
        said = [f"{names} wherever times were taken" for names in groups]
    return f"Fastest: {'. Fastest: '.join(said)}." if said else ""
