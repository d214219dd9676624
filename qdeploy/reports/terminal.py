"""Tables for a terminal, a pipe or a Markdown file. Every number is printed whole, at any width."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from qdeploy.core.records import Bench, BenchRow, Layer, Metric, Results
from qdeploy.reports import comparison, contrasts, words
from qdeploy.reports.comparison import Cell, Column
from qdeploy.reports.conclusions import conclusions

STYLES = {"": "", "good": "green", "bad": "bold red", "muted": "dim"}
NAME_WIDTH = 30  # names wrap beyond it; numbers never wrap
GAP = 2  # between two columns


def results_table(results: Results) -> Folding:
    """The comparison of a build's variants and what is to be concluded from it.

    Where a table is wider than the terminal, it goes on in a second one.
    """
    main = [sentence.text for sentence in conclusions(results) if sentence.main]
    said = [f"- {text}" for text in (*main, *contrasts.study_sentences(results))]
    head = contrasts.columns(results)
    blocks = [Block(results.name, comparison.columns(results)), *([Block("head to head", head)] if head else [])]
    return Folding(tuple(blocks), (*comparison.notes(results), *said))


def results_markdown(results: Results) -> str:
    """The same comparison as a Markdown table with its notes."""
    return "\n".join([*_markdown_table(comparison.columns(results)), *map(escape, comparison.notes(results))]) + "\n"


def markdown_table(columns: Sequence[Column]) -> str:
    """A table alone, in Markdown."""
    return "\n".join(_markdown_table(columns)).rstrip() + "\n"


def markdown_list(lines: Sequence[str]) -> str:
    """Sentences, one an item, in Markdown."""
    return "".join(f"- {escape(line)}\n" for line in lines)


def explained(results: Results) -> list[str]:
    """What every column of the comparison says, and what is particular to this build."""
    said = [f"{header}: {text}." for header, text in comparison.explanations(results).values()]
    return said + comparison.remarks(results)


def markdown(tables: Folding) -> str:
    """Tables with their titles in Markdown, what is wrong before and the notes and warnings behind them."""
    paragraphs = [f"**{escape(alert)}**" for alert in tables.alerts]
    for block in tables.blocks:
        paragraphs += [f"**{escape(block.title)}**"] if block.title else []
        paragraphs.append("\n".join(_markdown_table(block.columns)).rstrip())
    paragraphs += [f"Warning: {escape(warning)}" for warning in tables.warnings]
    return "\n\n".join([*paragraphs, *map(escape, tables.notes)]) + "\n"


def bench_table(bench: Bench) -> Folding:
    """What a bench measured: one table a setting, then the machine, and the warnings with their remedies."""
    groups: dict[tuple[str, int, int], list[BenchRow]] = {}
    for row in bench.rows:
        groups.setdefault((row.latency.runtime, row.latency.threads, row.latency.batch), []).append(row)
    blocks = tuple(Block(words.setting(rows[0].latency), _bench_columns(rows)) for rows in groups.values())
    where = f"{bench.target}: {words.environment_line(bench.environment)}"
    recorded = any(row.metric is not None or row.integer_mac_share is not None for row in bench.rows)
    withheld = dict.fromkeys(row.latency.withheld for row in bench.rows if row.latency.withheld is not None)
    notes = [where, *(f"Times are withheld: {reason.rstrip('.')}." for reason in withheld)]
    if recorded:
        notes.append(
            "Accuracy and integer MACs are those that the bundles record: onnxruntime's, where they were built."
        )
    if bench.baseline is not None and any(row.latency.withheld is None for row in bench.rows):
        notes.append(
            f"Speed-up: the p50 of {bench.baseline} over this p50, with a 95% interval; one that includes 1 is "
            f'"{words.NO_DIFFERENCE}".'
        )
    return Folding(blocks, tuple(notes), bench.warnings)


def layers_table(layers: Sequence[Layer]) -> Folding:
    """One row a compute layer: the kernel that runs it, bits of weights/activations, MACs, error; then why float."""
    total = sum(layer.macs for layer in layers)
    columns = [
        Column("layer", "layer", tuple(Cell(layer.name) for layer in layers), numeric=False),
        Column("op", "op", tuple(Cell(layer.op) for layer in layers), numeric=False),
        Column("kernel", "kernel", tuple(_kernel(layer) for layer in layers), numeric=False),
        Column("bits", "bits w/a", tuple(Cell(comparison.bits(layer)) for layer in layers)),
        Column("macs", "MACs", tuple(Cell(words.count(layer.macs)) for layer in layers)),
        Column("share", "share", tuple(Cell(words.share(layer.macs / total if total else 0)) for layer in layers)),
    ]
    if any(layer.sqnr_db is not None for layer in layers):
        columns.append(Column("sqnr", "SQNR", tuple(Cell(words.decibels(layer.sqnr_db)) for layer in layers)))
    if any(layer.sqnr_local_db is not None for layer in layers):
        local = tuple(Cell(words.decibels(layer.sqnr_local_db)) for layer in layers)
        columns.append(Column("local", "SQNR local", local))
    if any(layer.differing_codes for layer in layers):
        columns.append(Column("parity", "differing codes", tuple(_differing(layer) for layer in layers)))
    floats = (f"float32: {', '.join(names)}: {reason}" for reason, names in comparison.float_reasons(layers))
    return Folding((Block("", tuple(columns)),), (*_layers_summary(layers, total), *floats))


@dataclass(frozen=True, slots=True)
class Block:
    """A titled table."""

    title: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Folding:
    """Tables that continue below, name column repeated, where their columns exceed the width; then notes, warnings.

    Alerts stand before everything else.
    """

    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    alerts: tuple[str, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for alert in self.alerts:
            yield Text(printable(alert), style="bold red")
        for block in self.blocks:
            if block.title:
                yield Text(printable(block.title), style="bold")
            for group in fold(block.columns, options.max_width):
                yield _table(group)
                yield Text()
        for note in self.notes:
            yield Text(printable(note), style="dim")
        for warning in self.warnings:
            yield Text.assemble(("warning: ", "bold yellow"), printable(warning))


def fold(columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """Split columns into groups that fit ``width``, each led by the first column. A group has at least one more."""
    name, rest = columns[0], list(columns[1:])
    group, used = [name], _width(name)
    for column in rest:
        needed = GAP + _width(column)
        if used + needed > width and len(group) > 1:
            yield group
            group, used = [name], _width(name)
        group.append(column)
        used += needed
    yield group


def printable(text: str) -> str:
    """Text whose control characters cannot drive a terminal: names in a bundle are whatever someone wrote there."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _width(column: Column) -> int:
    """The columns of the terminal that a table column takes: its longest word in the header, its longest cell line."""
    lines = [*column.header.split(), *(line for cell in column.cells for line in (cell.text, cell.detail))]
    widest = max(cell_len(printable(line)) for line in lines)
    return widest if column.numeric else min(widest, NAME_WIDTH)


def _table(columns: Sequence[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        justify = "right" if column.numeric else "left"
        width = _width(column)
        # The name column may shrink further in a narrow terminal; numbers keep their width.
        limits = {"max_width": width} if i == 0 else {"min_width": width, "max_width": width}
        table.add_column(Text(printable(column.header)), justify=justify, vertical="top", overflow="fold", **limits)  # type: ignore[arg-type]
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(_text(cell) for cell in cells))
    return table


def _text(cell: Cell) -> Text:
    text = Text(printable(cell.text), style=STYLES[cell.tone])
    return text if not cell.detail else Text.assemble(text, "\n", (printable(cell.detail), "dim"))


def _bench_columns(rows: Sequence[BenchRow]) -> tuple[Column, ...]:
    """Name, p50, speed-up, tails, throughput, load and memory; where all times are withheld, what is left without."""
    repeated = {row.name for row in rows if sum(other.name == row.name for other in rows) > 1}
    names = tuple(Cell(row.name, row.bundle if row.name in repeated else "") for row in rows)
    columns = [Column("variant", "bundle", names, numeric=False)]
    if any(row.latency.withheld is None for row in rows):
        columns += [
            Column("p50", "p50 latency", tuple(comparison.p50(row.latency) for row in rows)),
            Column("speedup", "speed-up", tuple(comparison.speedup(row.latency) for row in rows)),
            Column("p90", "p90", tuple(_time(row, row.latency.p90_ms) for row in rows)),
            Column("p99", "p99", tuple(_time(row, row.latency.p99_ms) for row in rows)),
            Column("throughput", "samples/s", tuple(_throughput(row) for row in rows)),
            Column("load", "load time", tuple(_time(row, row.latency.load_ms) for row in rows)),
            Column("memory", "peak memory", tuple(_memory(row) for row in rows)),
        ]
    else:
        columns.append(Column("p50", "p50 latency", tuple(comparison.p50(row.latency) for row in rows)))
    columns.append(Column("size", "file size", tuple(Cell(words.size(row.size_bytes)) for row in rows)))
    metrics = [row.metric for row in rows if row.metric is not None]
    if metrics:
        columns += [
            Column(f"metric {name}", *_score_column(rows, name)) for name in dict.fromkeys(m.name for m in metrics)
        ]
    shares = tuple(Cell("-" if (s := row.integer_mac_share) is None else words.share(s)) for row in rows)
    return (*columns, Column("integer", "integer MACs", shares))


def _score_column(rows: Sequence[BenchRow], name: str) -> tuple[str, tuple[Cell, ...]]:
    """Header and cells of one metric, which bundles carry from their build."""
    metrics: list[Metric | None] = [row.metric if row.metric and row.metric.name == name else None for row in rows]
    style = words.Scores.of(metric for metric in metrics if metric is not None)
    return style.label, tuple(Cell("-", tone="muted") if m is None else Cell(style.value(m.value)) for m in metrics)


def _time(row: BenchRow, value: float) -> Cell:
    return Cell(words.WITHHELD, tone="muted") if row.latency.withheld is not None else Cell(words.milliseconds(value))


def _throughput(row: BenchRow) -> Cell:
    if row.latency.withheld is not None:
        return Cell(words.WITHHELD, tone="muted")
    value = row.latency.throughput_per_s
    return Cell(words.fixed(value, words.decimals(value)))


def _memory(row: BenchRow) -> Cell:
    withheld = row.latency.withheld is not None
    return Cell(words.WITHHELD, tone="muted") if withheld else Cell(words.size(row.latency.peak_rss_bytes))


def _kernel(layer: Layer) -> Cell:
    return Cell(layer.kernel) if layer.integer else Cell(layer.kernel, "float32", "bad")


def _differing(layer: Layer) -> Cell:
    if layer.outputs_checked is None:
        return Cell("-", tone="muted")
    return Cell(f"{layer.differing_codes or 0:,}", tone="bad" if layer.differing_codes else "")


def _layers_summary(layers: Sequence[Layer], total: int) -> list[str]:
    """The two sentences that sum a model up: what runs in integer kernels, and whether it computes what it should."""
    integer = sum(layer.macs for layer in layers if layer.integer)
    lines = [f"{words.share(integer / total if total else 0)} of {words.count(total)} MACs run in integer kernels."]
    checked = sum(layer.outputs_checked or 0 for layer in layers)
    if checked:
        differing = sum(layer.differing_codes or 0 for layer in layers)
        lines.append(f"{differing:,} of {words.count(checked)} output codes differ from the integer reference.")
    if any(layer.sqnr_db is not None for layer in layers):
        lines.append(
            "SQNR: the deployed output against float32 on the same model input; local: this layer alone quantized."
        )
    return lines


def _markdown_table(columns: Sequence[Column]) -> list[str]:
    """The lines of a table, and an empty one."""
    rows = [
        [escape(column.header) for column in columns],
        ["---:" if column.numeric else "---" for column in columns],
        *([escape(column.cells[i].line()) for column in columns] for i in range(len(columns[0].cells))),
    ]
    return [*("| " + " | ".join(row) + " |" for row in rows), ""]


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_<>|~&]|\](?=\())", r"\\\1", printable(" ".join(text.split())))
