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
        *_also(results, style),
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


def _also(results: Results, style: Scores) -> Iterator[Column]:
    """The metric on further splits, and how far it lies from the evaluation split's."""
    for name in also_splits(results):
        found = [next((one for one in v.also if one.split == name), None) for v in results.variants]
        values = tuple(score(one.metric if one else None, style) for one in found)
        yield Column(f"on {name}", f"on {name}", values)
        gaps = tuple(difference(one.gap, style) if one else Cell("-", tone="muted") for one in found)
        yield Column(f"gap {name}", f"{name} - evaluation", gaps)


def _refused(column: Column, refusals: Sequence[Refusal]) -> Iterator[Cell]:
    """The rows of what was refused: a name, and words in the place of the metric."""
    for refusal in refusals:
        said = {"variant": refusal.name, "method": refusal.method, "metric": refusal.kind}
        text = said.get(column.key, "-")
        yield Cell(text, tone="" if column.key == "variant" else "muted")


METHODS = {
    "float32": "float32 is the model as it was trained",
    "ptq": "ptq quantizes it after training",
    "qat": "qat trains on with quantizers in place, and what is judged is the integer model that this is converted to",
    "fp16": "fp16 stores weights as float16 and computes in float32",
    "bf16": "bf16 stores weights as bfloat16 and computes in float32",
}
TERSE = ("metric", "size", "p50", "portable", "seconds")  # the columns that a terminal explains


def explanations(results: Results) -> dict[str, tuple[str, str]]:
    """What each column that is there says, by its key: (header, text without a full stop)."""
    variants, style = results.variants, scores(results)
    split = f" of {results.dataset}" if results.dataset else ""
    samples = f"{variants[0].metric.samples:,} " if variants else ""
    interval = words.interval(min((variant.metric.samples for variant in variants), default=0))
    methods = [METHODS[m] for m in dict.fromkeys(v.method for v in variants) if m in METHODS]
    texts = {
        "method": "how the variant was made: " + "; ".join(methods),
        "metric": f"the exported model run in onnxruntime on {samples}evaluation samples{split}. [low, high] is "
        f'{interval}; a difference whose interval includes 0 (a speed-up: 1) is "{words.NO_DIFFERENCE}"',
        "delta": f"the {style.noun} of the variant minus that of {results.baseline}, on the same samples; its interval "
        "is a paired bootstrap",
        "size": "model.onnx, without the rest of its bundle",
        "compression": f"the file size of {results.baseline} over the variant's",
        "p50": "median time of a call; " + "; ".join(settings(v.latency for v in variants)),
        "speedup": f"the p50 latency of {results.baseline} over the variant's, both measured in turns in one run",
        "integer": "the share of multiply-accumulates that onnxruntime runs in integer kernels, read from the "
        "graph that runs",
        "parity": "output codes of layers in onnxruntime that differ from integer reference arithmetic; 0 is bit-exact",
        "portable": "proven: the same answer, bit for bit, on x86 with and without VNNI, on ARM64 and in WebAssembly, "
        "for every input; no saturation: no integer product goes wrong anywhere, but float32 operators, or ranges "
        "found at run time, may differ in their last bits; no: qdeploy inspect names the layers",
        "seconds": "wall time of calibration, rounding or training on, and export, on the building machine",
    }
    for found in also_splits(results):
        texts[f"on {found}"] = f"the same on the {found} split, which the model was fitted to or chosen on"
        texts[f"gap {found}"] = (
            f"the {style.noun} on the {found} split minus that on the evaluation split, whose samples are others"
        )
    return {column.key: (column.header, texts[column.key]) for column in columns(results) if column.key in texts}


def notes(results: Results) -> list[str]:
    """What a reader of the comparison must know beside the table, on a few lines."""
    said = explanations(results) if results.variants else {}
    lines = []
    for key in TERSE:
        if key not in said or (key == "size" and len(results.variants) < 2):
            continue
        if key == "p50" and not any(timed(variant.latency) for variant in results.variants):
            continue
        also = f"; compression: that of {results.baseline} over it" if key == "size" else ""
        lines.append("{}: {}".format(*said[key]) + also + ".")
    return lines + remarks(results)


def remarks(results: Results) -> list[str]:
    """What is particular to this build: why times are withheld or missing, and why a variant is."""
    latencies = [variant.latency for variant in results.variants]
    lines = [f"Times are withheld: {reason}." for reason in _reasons(latencies)]
    lines += [f"{r.name}: {r.reason}" for r in results.refusals]
    if not any(latencies):
        lines.append("Latency was not measured; qdeploy bench measures it.")
    return lines


def also_splits(results: Results) -> list[str]:
    """The splits on which the metric was taken beside the evaluation split."""
    return list(dict.fromkeys(found.split for variant in results.variants for found in variant.also))


def score(metric: Metric | None, style: Scores) -> Cell:
    """The metric with its interval; a dash where it was not measured."""
    if metric is None:
        return Cell("-", tone="muted")
    return Cell(style.value(metric.value), style.interval(metric.low, metric.high))


def delta(found: Interval | None, style: Scores) -> Cell:
    """The difference to the baseline's metric; None is the baseline itself."""
    if found is None:
        return Cell("baseline", tone="muted")
    tone = "" if not found.excludes(0) else "good" if style.gain(found) > 0 else "bad"
    return replace(difference(found, style), tone=tone)


def difference(found: Interval, style: Scores) -> Cell:
    """A difference of two metrics, in words where it is none."""
    value, interval = style.difference(found.value), style.difference_interval(found.low, found.high)
    if not found.excludes(0):
        return Cell(words.NO_DIFFERENCE, f"{value.removesuffix(style.unit)} {interval}")
    return Cell(value, interval)


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
    return Cell("proven", tone="good") if variant.comparison == "exact" else Cell("no saturation")


def _made_in(variant: Variant) -> Cell:
    return Cell("-" if variant.seconds is None else words.seconds(variant.seconds), tone="muted")


def _integer(variant: Variant) -> Cell:
    return Cell(words.share(variant.integer_mac_share), tone="" if variant.integer_mac_share > 0 else "muted")


def _reasons(latencies: Sequence[Latency | None]) -> list[str]:
    reasons = (latency.withheld for latency in latencies if latency is not None)
    return [reason.rstrip(".") for reason in dict.fromkeys(reasons) if reason is not None]
