"""report.html: one self-contained page that shows a build to people. No scripts, no network, light and dark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qdeploy.core import records
from qdeploy.core.files import write_atomic
from qdeploy.core.records import Histogram, Latency, Layer, Results, Variant
from qdeploy.reports import comparison, contrasts, figures, half_precision, plots, words
from qdeploy.reports.axes import Axis
from qdeploy.reports.comparison import Column, scores, timed
from qdeploy.reports.conclusions import conclusions
from qdeploy.reports.typeset import typeset
from qdeploy.reports.verdict import Verdict, verdict
from qdeploy.reports.words import Scores

SHOWN_ROWS = 24  # a variant with more layers shows its worst ones first, and all of them on request
WORST_ROWS = 12
SHOWN_HISTOGRAMS = 6


def write(results: Results, path: Path) -> None:
    """Write the report of ``results`` to ``path``. The same record gives the same bytes."""
    write_atomic(path, render(results))


def render(results: Results) -> str:
    """The page as text."""
    said, style = verdict(results), scores(results)
    return fill(
        "report.html.j2",
        comparison=comparison,
        dial=_dial,
        extent=_extent,
        results=results,
        style=style,
        verdict=said,
        tiles=_tiles(said, results),
        columns=comparison.columns(results),
        explanations=comparison.explanations(results).values(),
        remarks=comparison.remarks(results),
        conclusions=[said.text for said in conclusions(results)[1:]],
        contrasts=contrasts.columns(results),
        duels=[contrasts.sentence(contrast, results) for contrast in results.contrasts],
        contrast_note=contrasts.note(results),
        studies=[_study(study, results) for study in contrasts.studies(results)],
        study_note=contrasts.study_note(style),
        figures=figures.tradeoffs(results),
        by_bits=figures.accuracy_against_bits(results),
        halves=half_precision.columns(results, most=half_precision.WORST),
        every_half=half_precision.columns(results),
        half_sentences=half_precision.sentences(results),
        half_note=half_precision.NOTE,
        sections=[_section(i, v, results) for i, v in enumerate(results.variants) if v.name != results.baseline],
        machine=_machine(results),
        reach=max((abs(x) for v in results.variants if v.delta for x in (v.delta.low, v.delta.high)), default=0.0),
    )


def fill(template: str, **values: object) -> str:
    """A page from its template. Everything that a template writes is escaped."""
    environment = Environment(
        loader=PackageLoader("qdeploy.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["typeset"] = typeset
    environment.globals.update(words=words, plots=plots, **values)
    return environment.get_template(template).render()


@dataclass(frozen=True, slots=True)
class Tile:
    """One of the large numbers below the verdict."""

    value: str
    label: str
    detail: str
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """What the page tells of one variant."""

    anchor: str
    variant: Variant
    facts: list[tuple[str, str]]
    floats: list[tuple[str, list[str]]]
    axis: Axis | None  # of the SQNR rows; None where no SQNR is known
    rows: list[Layer]  # shown at once
    rest: list[Layer]  # all rows, where ``rows`` are only the worst
    histograms: list[Layer]
    rest_histograms: list[Layer]


def _study(study: contrasts.Study, results: Results) -> tuple[str, tuple[Column, ...]]:
    """What a study says, and its table."""
    return contrasts.study_sentence(study, scores(results)), contrasts.study_columns(study, results)


def _tiles(said: Verdict, results: Results) -> list[Tile]:
    """Size, speed, accuracy and coverage of the variant that the verdict is about, as far as they are known."""
    variant = said.variant
    if variant is None:
        return []
    base = next((v for v in results.variants if v.name == results.baseline), None)
    tiles = [_size_tile(variant, base)]
    if (latency := timed(variant.latency)) and latency.speedup:
        tiles.append(_speed_tile(latency, timed(base.latency) if base else None))
    if variant.delta is not None:
        tiles.append(_accuracy_tile(variant, scores(results)))
    codes = comparison.parity(variant)
    exact = f"{codes.text} codes differ from the reference" if codes.text != "-" else ""
    return [*tiles, Tile(words.share(variant.integer_mac_share), "of MACs in integer kernels", exact, codes.tone)]


def _size_tile(variant: Variant, base: Variant | None) -> Tile:
    sizes = f"{words.size(base.size_bytes)} to {words.size(variant.size_bytes)}" if base else ""
    if variant.compression >= 1:
        return Tile(words.ratio(variant.compression), "smaller model.onnx", sizes)
    return Tile(words.ratio(1 / variant.compression), "larger model.onnx", sizes, "bad")


def _speed_tile(latency: Latency, base: Latency | None) -> Tile:
    cell = comparison.ratio_cell(latency.speedup)
    label = f"speed-up: {cell.text}" if cell.text == words.NO_DIFFERENCE else "speed-up"
    times = f"{words.milliseconds(latency.p50_ms.value)}, median of a call"
    if base is not None:
        times = f"{words.milliseconds(base.p50_ms.value)} to {times}"
    return Tile(words.ratio(latency.speedup.value if latency.speedup else 1.0), label, times, cell.tone)


def _accuracy_tile(variant: Variant, style: Scores) -> Tile:
    cell, change = comparison.delta(variant.delta, style), variant.delta.value if variant.delta else 0.0
    value = words.fixed(change * style.factor, style.places, sign=True)
    reached = f"{style.value(variant.metric.value)} {style.label}"
    detail = f"no measurable difference; {reached}" if cell.text == words.NO_DIFFERENCE else reached
    return Tile(value, f"points of {style.noun}" if style.percent else style.noun, detail, cell.tone)


def _section(index: int, variant: Variant, results: Results) -> Section:
    known = [layer for layer in variant.layers if layer.sqnr_db is not None or layer.sqnr_local_db is not None]
    drawn = [layer for layer in variant.layers if layer.weights is not None or layer.activations is not None]
    many, more = len(known) > SHOWN_ROWS, len(drawn) > SHOWN_HISTOGRAMS
    return Section(
        anchor=f"variant-{index}",
        variant=variant,
        facts=_facts(variant, results),
        floats=comparison.float_reasons(variant.layers),
        axis=plots.sqnr_axis(known) if known else None,
        rows=sorted(known, key=_quality)[:WORST_ROWS] if many else known,
        rest=known if many else [],
        histograms=sorted(drawn, key=_quality)[:SHOWN_HISTOGRAMS] if more else drawn,
        rest_histograms=drawn if more else [],
    )


def _quality(layer: Layer) -> float:
    """By what layers are called worst: the error that a layer itself makes; unknown is last."""
    known = layer.sqnr_local_db if layer.sqnr_local_db is not None else layer.sqnr_db
    return float("inf") if known is None else known


def _facts(variant: Variant, results: Results) -> list[tuple[str, str]]:
    style = scores(results)
    facts = [
        (style.label, comparison.score(variant.metric, style).line()),
        (f"against {results.baseline}", comparison.delta(variant.delta, style).line()),
        ("file size", f"{variant.size_bytes:,} bytes, compression {words.ratio(variant.compression)}"),
    ]
    if variant.agreement is not None:
        facts.append((f"decides as {results.baseline}", f"on {words.share(variant.agreement)} of samples"))
    if variant.latency is not None:
        facts.append(("p50 latency", comparison.p50(variant.latency).line()))
    if (latency := timed(variant.latency)) is not None:
        tail = f"{words.milliseconds(latency.p90_ms)} / {words.milliseconds(latency.p99_ms)}"
        facts.append(("p90 / p99", tail))
        facts.append(("speed-up", comparison.speedup(latency).line()))
    checked = sum(layer.outputs_checked or 0 for layer in variant.layers)
    # A variant's count leaves out the layers that need not be exact, and the layers' own counts do not.
    parity = comparison.parity(variant).text
    detail = f" where every bit must agree ({words.count(checked)} checked in all layers)" if checked else ""
    facts.append(("differing codes", parity + detail))
    return [*facts, ("bundle", variant.bundle)]


def machine_facts(machine: records.Environment) -> list[tuple[str, str]]:
    """What an environment record says, with the names of its lines."""
    return [
        ("CPU", f"{machine.cpu} ({machine.architecture})"),
        ("Instructions", ", ".join(machine.isa) or ("not known" if machine.emulator else "none that matter")),
        ("Cores allowed", f"{machine.cores_allowed} of {machine.cores_present} ({machine.cores_reason})"),
        ("Memory", words.size(machine.memory_bytes)),
        ("Governor", machine.governor or "not reported by the system"),
        ("Emulated", f"by {machine.emulator}" if machine.emulator else "no"),
        ("System", machine.system),
        ("Python", machine.python),
        ("onnxruntime", machine.onnxruntime),
        ("numpy", machine.numpy),
    ]


def _machine(results: Results) -> list[tuple[str, str]]:
    if results.environment is None:
        return []
    rows = machine_facts(results.environment)
    return [*rows, ("Made by", results.created_by)] if results.created_by else rows


def _dial(variant: Variant, reach: float, loses: bool) -> Markup:
    """The small picture of a difference beside its number; nothing for the baseline."""
    return Markup("") if variant.delta is None else plots.difference(variant.delta, reach, loses=loses)


def _extent(histogram: Histogram) -> str:
    """The chosen range in words: "0 to 4.59", "±0.413"."""
    if histogram.range_low == -histogram.range_high:
        return f"\N{PLUS-MINUS SIGN}{words.fixed(histogram.range_high, words.decimals(histogram.range_high))}"
    ends = (histogram.range_low, histogram.range_high)
    return " to ".join(words.fixed(end, words.decimals(end)) for end in ends)
