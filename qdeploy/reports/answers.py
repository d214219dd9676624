"""What bundles answered on one target, as a table."""

from __future__ import annotations

from qdeploy.core.records import Answer, Answers
from qdeploy.reports import comparison, words
from qdeploy.reports.comparison import Cell, Column
from qdeploy.reports.terminal import Block, Folding


def answers_table(answers: Answers) -> Folding:
    """One row a bundle: its metric there, the difference to float32's, its golden vectors."""
    rows = answers.rows
    columns = [
        Column("variant", "bundle", tuple(Cell(row.name) for row in rows), numeric=False),
        Column("method", "method", tuple(Cell(row.method) for row in rows), numeric=False),
    ]
    metrics = [row.metric for row in rows if row.metric is not None]
    if metrics:
        style = words.Scores.of(metrics)
        columns.append(Column("metric", style.label, tuple(comparison.score(row.metric, style) for row in rows)))
        if any(row.delta is not None for row in rows):
            deltas = tuple(comparison.delta(row.delta, style) for row in rows)
            columns.append(Column("delta", "against float32", deltas))
    columns.append(Column("golden", "golden values", tuple(golden(row) for row in rows)))
    where = f"{answers.target}: {words.environment_line(answers.environment)}; {answers.runtime}"
    notes = [where, *dict.fromkeys(f"{row.name}: {row.note}." for row in rows if row.note)]
    if metrics:
        notes.append(f"{metrics[0].samples:,} evaluation samples of {answers.dataset}.")
    return Folding((Block("", tuple(columns)),), tuple(notes), answers.warnings)


def golden(row: Answer) -> Cell:
    """How the golden outputs compared with the machine that built the bundle."""
    seen = row.golden
    if not seen.passed:
        return Cell(f"{seen.differing:,} of {seen.values:,} differ", tone="bad")
    return Cell("bit-identical" if seen.comparison == "exact" else "within tolerance", tone="good")
