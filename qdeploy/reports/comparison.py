"""The comparison that a build is: one row a variant, one column a fact. Terminal, Markdown and HTML all show it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from qdeploy.core.records import Interval, Latency, Layer, Metric, Refusal, Results, Variant
from qdeploy.reports import words
from qdeploy.reports.words import Scores


@dataclass(frozen=True, slots=True)
class Cell:
    """What a table shows of one fact: the headline, the detail under or behind it, and how it is to be taken."""

    text: str
    detail: str = ""
    tone: str = ""  # "", "good", "bad", "muted"

    def line(self) -> str:
        """The cell on one line."""
        if not self.detail:
            return self.text
        return f"{self.text} {self.detail}" if self.detail.startswith("[") else f"{self.text} ({self.detail})"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, with one cell for each row."""

    key: str
    header: str
    cells: tuple[Cell, ...]
    numeric: bool = True


def scores(results: Results) -> Scores:
    """How the metric of a build is written."""
    return Scores.of(variant.metric for variant in results.variants)


def timed(latency: Latency | None) -> Latency | None:
    """The latency if its times may be read."""
    return latency if latency is not None and latency.withheld is None else None


def settings(latencies: Iterable[Latency | None]) -> list[str]:
    """The distinct settings that were measured, in order of appearance."""
    return list(dict.fromkeys(words.setting(latency) for latency in latencies if latency is not None))


def columns(results: Results) -> tuple[Column, ...]:
    """The columns of the comparison. Those about speed are left out where nothing was measured."""
    variants, style = results.variants, scores(results)
    columns = [
        Column("variant", "variant", tuple(Cell(v.name) for v in variants), numeric=False),
        Column("method", "method", tuple(Cell(v.method) for v in variants), numeric=False),
        Column("metric", style.label, tuple(score(v.metric, style) for v in variants)),
        Column("delta", f"against {results.baseline}", tuple(delta(v.delta, style) for v in variants)),
        Column("size", "file size", tuple(Cell(words.size(v.size_bytes)) for v in variants)),
        Column("compression", "compression", tuple(_compression(v, results.baseline) for v in variants)),
    ]
    if any(v.latency is not None for v in variants):
        columns.append(Column("p50", "p50 latency", tuple(p50(v.latency) for v in variants)))
        columns.append(Column("speedup", "speed-up", tuple(speedup(v.latency) for v in variants)))
    columns.append(Column("integer", "integer MACs", tuple(_integer(v) for v in variants)))
    columns.append(Column("parity", "differing codes", tuple(parity(v) for v in variants)))
    if any(v.unportable is not None for v in variants):
        columns.append(Column("portable", "same on every CPU", tuple(_portable(v) for v in variants)))
    if any(v.seconds is not None for v in variants):
        columns.append(Column("seconds", "made in", tuple(_made_in(v) for v in variants)))
    return tuple(replace(column, cells=(*column.cells, *_refused(column, results.refusals))) for column in columns)


def _refused(column: Column, refusals: Sequence[Refusal]) -> Iterator[Cell]:
    """The rows of what was refused: a name, and words in the place of the metric."""
    for refusal in refusals:
        text = {"variant": refusal.name, "method": refusal.method, "metric": refusal.kind}.get(column.key, "-")
        yield Cell(text, tone="" if column.key == "variant" else "muted")


def notes(results: Results) -> list[str]:
    """What a reader of the comparison must know beside the table."""
    metrics = [variant.metric for variant in results.variants]
    lines = []
    if metrics:
        split = f" of {results.dataset}" if results.dataset else ""
        lines.append(
            f"{scores(results).label}: the exported model run in onnxruntime on {metrics[0].samples:,} evaluation "
            f"samples{split}. [low, high] is a 95% interval; a difference whose interval includes 0 "
            f'(a speed-up: 1) is "{words.NO_DIFFERENCE}".'
        )
    if len(results.variants) > 1:
        lines.append(
            f"file size: model.onnx, without the rest of its bundle; compression: that of {results.baseline} over it."
        )
    latencies = [variant.latency for variant in results.variants]
    if any(timed(latency) for latency in latencies):
        lines.append("p50 latency: median time of a call; " + "; ".join(settings(latencies)) + ".")
    lines += [f"Times are withheld: {reason}." for reason in _reasons(latencies)]
    if any(variant.unportable is not None for variant in results.variants):
        lines.append(
            "same on every CPU: integer layers give the same codes on x86 with and without VNNI, on ARM64 and in "
            "WebAssembly, for every input; qdeploy inspect names the layers that do not."
        )
    if any(variant.seconds is not None for variant in results.variants):
        lines.append("made in: wall time of calibration, rounding or training on, and export, on the building machine.")
    lines += [f"{r.name}: {r.reason}" for r in results.refusals]
    if not any(latencies):
        lines.append("Latency was not measured; qdeploy bench measures it.")
    return lines


def score(metric: Metric | None, style: Scores) -> Cell:
    """The metric with its interval; a dash where it was not measured."""
    if metric is None:
        return Cell("-", tone="muted")
    return Cell(style.value(metric.value), style.interval(metric.low, metric.high))


def delta(difference: Interval | None, style: Scores) -> Cell:
    """The difference to the baseline's metric; None is the baseline itself."""
    if difference is None:
        return Cell("baseline", tone="muted")
    value = style.difference(difference.value)
    interval = style.difference_interval(difference.low, difference.high)
    if not difference.excludes(0):
        return Cell(words.NO_DIFFERENCE, f"{value.removesuffix(style.unit)} {interval}")
    return Cell(value, interval, "good" if style.gain(difference) > 0 else "bad")


def p50(latency: Latency | None) -> Cell:
    """The median time of a call."""
    if latency is None:
        return Cell(words.NOT_MEASURED, tone="muted")
    if latency.withheld is not None:
        return Cell(words.WITHHELD, tone="muted")
    time = latency.p50_ms
    return Cell(words.milliseconds(time.value), words.between(time.low, time.high, words.decimals(time.value)))


def speedup(latency: Latency | None) -> Cell:
    """How many times faster than the baseline a call is."""
    if timed(latency) is None:
        return Cell("-", tone="muted")
    return ratio_cell(latency.speedup if latency is not None else None)


def bits(layer: Layer) -> str:
    """Bits of a layer's weights and activations: "8/8", "-/8" without weights, "32/32" where it runs in float32."""
    if not layer.integer and layer.weight_bits is None and layer.activation_bits is None:
        return "32/32"
    return "/".join("-" if b is None else str(b) for b in (layer.weight_bits, layer.activation_bits))


def float_reasons(layers: Iterable[Layer]) -> list[tuple[str, list[str]]]:
    """The layers that run in float32, grouped by the reason for it, in network order."""
    groups: dict[str, list[str]] = {}
    for layer in layers:
        if not layer.integer:
            groups.setdefault(layer.reason or "no reason is recorded", []).append(layer.name)
    return list(groups.items())


def ratio_cell(interval: Interval | None) -> Cell:
    """A ratio of two times, in words where it is no difference; None is the baseline itself."""
    if interval is None:
        return Cell("baseline", tone="muted")
    value, bounds = words.ratio(interval.value), words.ratio_interval(interval)
    if not interval.excludes(1):
        return Cell(words.NO_DIFFERENCE, f"{value} {bounds}")
    return Cell(value, bounds, "good" if interval.value > 1 else "bad")


def parity(variant: Variant) -> Cell:
    """How many output codes differ from the integer reference; a dash where there are no codes to compare."""
    checked = any(layer.outputs_checked is not None for layer in variant.layers)
    if not checked and variant.integer_mac_share == 0 and variant.differing_codes == 0:
        return Cell("-", tone="muted")
    return Cell(f"{variant.differing_codes:,}", tone="bad" if variant.differing_codes else "")


def _compression(variant: Variant, baseline: str) -> Cell:
    if variant.name == baseline:
        return Cell("baseline", tone="muted")
    return Cell(words.ratio(variant.compression), tone="bad" if variant.compression < 1 else "")


def _portable(variant: Variant) -> Cell:
    if variant.unportable is None:
        return Cell("-", tone="muted")
    if variant.unportable:
        return Cell("no", words.plural(variant.unportable, "layer"), "bad")
    return Cell("proven", tone="good")


def _made_in(variant: Variant) -> Cell:
    return Cell("-" if variant.seconds is None else words.seconds(variant.seconds), tone="muted")


def _integer(variant: Variant) -> Cell:
    return Cell(words.share(variant.integer_mac_share), tone="" if variant.integer_mac_share > 0 else "muted")


def _reasons(latencies: Sequence[Latency | None]) -> list[str]:
    reasons = (latency.withheld for latency in latencies if latency is not None)
    return [reason.rstrip(".") for reason in dict.fromkeys(reasons) if reason is not None]
