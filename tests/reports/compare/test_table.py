"""A comparison in a terminal and in Markdown: every fact is shown whole, and what is not known is a dash."""

from __future__ import annotations

import dataclasses
import re

import pytest

from qdeploy.core.records import Answers, Bench, Interval, Results
from qdeploy.reports.compare.facts import Comparison, Verified
from qdeploy.reports.compare.merge import compare
from qdeploy.reports.compare.settings import fastest, settings
from qdeploy.reports.compare.summary import agreement, summary
from qdeploy.reports.compare.table import answer, blocks, compare_markdown, compare_table
from qdeploy.reports.comparison import Cell
from tests.reports import sample
from tests.reports.test_terminal import printed


def merged(*found: Results | Bench | Answers) -> Comparison:
    return compare([(f"{i}.json", record) for i, record in enumerate(found)])


def cells(compared: Comparison, title: str, header: str) -> dict[str, Cell]:
    (block,) = (block for block in blocks(compared) if block.title.startswith(title))
    (column,) = (column for column in block.columns if column.header == header)
    return {bundle.label: cell for bundle, cell in zip(compared.bundles, column.cells, strict=True)}


def board(name: str = "fp32") -> Verified:
    compared = compare(sample.fleet())
    (found,) = (a for a in compared.answers if (a.machine, a.bundle_sha256) == ("ssh://pi@board", sample.sha(name)))
    return found


def test_there_is_a_table_a_fact() -> None:
    assert [block.title for block in blocks(compare(sample.fleet()))] == [
        "Answers beside Example Silver 4314",
        "p50 latency: onnxruntime (CPU), batch 1",
        "Speed-up over fp32 on the same machine: onnxruntime (CPU), batch 1",
        "Top-1 accuracy",
    ]


def test_what_settings_have_in_common_is_in_the_title_and_the_rest_over_the_columns() -> None:
    block = blocks(compare(sample.fleet()))[1]
    assert [column.header for column in block.columns] == [
        "bundle",
        "Example Silver 4314, 1 thread",
        "Example Silver 4314, 2 threads",
        "ssh://pi@board, 1 thread",
        "ssh://pi@board, 2 threads",
    ]
    alone = blocks(merged(sample.machine_bench()))[0]
    assert alone.title == "p50 latency: onnxruntime (CPU), 1 thread, batch 1"
    assert [column.header for column in alone.columns] == ["bundle", "Example Silver 4314"]


def test_cells_are_what_was_measured() -> None:
    compared = compare(sample.fleet())
    assert cells(compared, "p50", "ssh://pi@board, 1 thread")["ptq-int8"] == Cell("10.1 ms", "[9.9, 10.2]")
    speed = cells(compared, "Speed-up", "Example Silver 4314, 1 thread")
    assert speed["fp32"].text == "baseline"
    assert speed["ptq-int8"] == Cell("2.16x", "[2.09, 2.22]", "good")
    assert cells(compared, "Answers", "ssh://pi@board")["fp32"] == Cell("99.97% alike", "golden ok, 3 decisions differ")
    assert cells(compared, "Answers", "qemu:Haswell")["fp32"] == Cell("bit-identical", "golden ok")
    assert cells(compared, "Answers", "Example Silver 4314 (reference)")["fp32"] == Cell("golden ok")
    assert cells(compared, "Top-1", "ssh://pi@board")["fp32"].text == "91.70%"
    assert cells(compared, "Top-1", "when built")["fp32"].text == "91.73%"
    assert cells(compared, "Top-1", "file size")["fp32"].text == "1.12 MB"


def test_what_was_not_measured_is_a_dash_and_a_column_of_dashes_is_none() -> None:
    bench = sample.machine_bench("ssh://pi@board", sample.arm())
    compared = merged(sample.machine_bench(), dataclasses.replace(bench, rows=bench.rows[:2], baseline=None))
    assert [cell.text == "-" for cell in cells(compared, "p50", "ssh://pi@board").values()] == [
        False,
        False,
        True,
        True,
    ]
    # fp32 is not known to be a baseline there, and ptq-int8's speed-up has one that nobody named.
    assert cells(compared, "Speed-up", "ssh://pi@board")["fp32"].text == "-"
    untouched = blocks(merged(sample.machine_answers()))
    assert [block.title.split(" ")[0] for block in untouched] == ["Answers", "Top-1"]
    assert "when built" not in [column.header for column in untouched[1].columns]


def test_an_emulated_cpu_has_answers_and_no_times() -> None:
    old = sample.environment(emulator="qemu")
    compared = merged(sample.machine_bench("qemu:Haswell", old), sample.machine_answers("qemu:Haswell", old))
    text = printed(compare_table(compared), 200)
    assert " ms" not in text
    assert "Times on qemu:Haswell are withheld: the CPU is emulated (qemu)." in text
    assert "golden ok" in text


def test_a_speed_up_that_may_be_none_is_called_no_difference() -> None:
    bench = sample.machine_bench()
    latency = dataclasses.replace(bench.rows[1].latency, speedup=Interval(1.01, 0.98, 1.04))
    rows = (bench.rows[0], dataclasses.replace(bench.rows[1], latency=latency))
    found = cells(merged(dataclasses.replace(bench, rows=rows)), "Speed-up", "Example Silver 4314")
    assert found["ptq-int8"] == Cell("no difference", "1.01x [0.98, 1.04]")


def test_wrong_answers_are_said_first_and_in_red() -> None:
    one = board()
    golden = dataclasses.replace(one.golden, passed=False, differing=37)
    assert answer(dataclasses.replace(one, golden=golden)) == Cell("37 of 80 golden differ", "99.97% alike", "bad")
    answers = sample.machine_answers("ssh://pi@board", sample.arm())
    rows = (dataclasses.replace(answers.rows[0], golden=golden), *answers.rows[1:])
    compared = merged(sample.machine_answers(), dataclasses.replace(answers, rows=rows))
    text = "fp32 gives other answers on ssh://pi@board than where it was built: 37 of 80 golden values differ"
    assert printed(compare_table(compared), 200).startswith(text)
    assert compare_markdown(compared).startswith(f"**{text}")
    assert summary(compared)[0].startswith("Golden vectors do not hold in 1 of 8 checks of 4 bundles on 2 machines.")


def test_decisions_that_are_all_alike_are_called_the_same() -> None:
    found = dataclasses.replace(board(), agreement=1.0, differing=0)
    assert answer(found) == Cell("same decisions", "golden ok")
    assert summary(dataclasses.replace(compare(sample.fleet()), answers=(found,)))[0] == (
        "Golden vectors hold for 1 bundle on 1 machine. Beside Example Silver 4314, 0 of 1 run of the evaluation split "
        "are bit-identical; the others decide every sample alike."
    )


def test_outputs_without_decisions_are_only_called_not_identical() -> None:
    assert answer(dataclasses.replace(board(), agreement=None, differing=None)).text == "not bit-identical"


@pytest.mark.parametrize(("share", "text"), [(1.0, "100%"), (0.99999, "99.99%"), (0.9997, "99.97%"), (0.0, "0.00%")])
def test_only_the_whole_is_all_of_it(share: float, text: str) -> None:
    assert agreement(share) == text


def test_answers_of_several_runtimes_have_columns_of_their_own() -> None:
    other = sample.machine_answers(runtime="openvino 2026.1 (CPU)")
    headers = [column.header for column in blocks(merged(sample.machine_answers(), other))[0].columns]
    assert headers == [
        "bundle",
        "Example Silver 4314, onnxruntime (CPU) (reference)",
        "Example Silver 4314, openvino 2026.1 (CPU)",
    ]


def test_metrics_of_two_names_have_tables_of_their_own() -> None:
    answers = sample.machine_answers()
    loss = dataclasses.replace(sample.metric(0.3), name="cross_entropy", higher_is_better=False)
    rows = tuple(dataclasses.replace(row, metric=loss, bundle_sha256=sample.sha("x")) for row in answers.rows[:1])
    compared = merged(answers, dataclasses.replace(answers, rows=rows))
    assert [block.title for block in blocks(compared)][1:] == ["Top-1 accuracy", "Cross entropy"]
    assert next(iter(cells(compared, "Cross entropy", "Example Silver 4314").values())).text == "-"


def test_the_summary_says_what_agrees_and_what_is_fastest() -> None:
    assert summary(compare(sample.fleet())) == [
        "Golden vectors hold for 4 bundles on 3 machines. Beside Example Silver 4314, 7 of 8 runs of the evaluation "
        "split are bit-identical; the others decide 99.97% or more of the samples alike.",
        "Fastest: ptq-int8, gptq-int4 and qat-int4 (no difference) wherever times were taken.",
    ]
    assert summary(compare([("a.json", sample.minimal(timed=False))])) == []


def test_a_bundle_that_is_fastest_alone_is_named_alone() -> None:
    slow = sample.machine_bench("ssh://pi@board", sample.arm())
    rows = tuple(
        dataclasses.replace(row, latency=dataclasses.replace(row.latency, p50_ms=Interval(t, t - 0.1, t + 0.1)))
        for row, t in zip(slow.rows, (4.0, 3.0, 2.0, 2.15), strict=True)
    )
    compared = merged(dataclasses.replace(slow, rows=rows))
    (setting,), _ = settings(compared.timings)
    assert set(fastest(setting)) == {sample.sha("gptq-int4"), sample.sha("qat-int4")}
    alone = merged(dataclasses.replace(slow, rows=rows[:3]))
    assert summary(alone) == ["Fastest: gptq-int4 on ssh://pi@board."]


def test_a_ratio_of_one_run_decides_before_intervals_that_overlap() -> None:
    bench = sample.machine_bench()
    wide, other = Interval(2.0, 1.0, 3.0), Interval(2.1, 1.1, 3.1)
    rows = tuple(
        dataclasses.replace(row, latency=dataclasses.replace(row.latency, p50_ms=p50, speedup=speedup))
        for row, p50, speedup in zip(bench.rows, (other, wide), (None, Interval(1.05, 1.04, 1.06)), strict=False)
    )
    assert summary(merged(dataclasses.replace(bench, rows=rows))) == ["Fastest: ptq-int8 on Example Silver 4314."]
    unsure = dataclasses.replace(rows[1].latency, speedup=Interval(1.05, 0.9, 1.2))
    rows = (rows[0], dataclasses.replace(rows[1], latency=unsure))
    assert summary(merged(dataclasses.replace(bench, rows=rows))) == [
        "Fastest: fp32 and ptq-int8 (no difference) on Example Silver 4314."
    ]


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_every_number_is_printed_whole_at_any_width(width: int) -> None:
    compared = compare(sample.fleet())
    text = printed(compare_table(compared), width)
    assert max(len(line) for line in text.splitlines()) <= width
    for block in blocks(compared):
        for column in block.columns:
            for cell in column.cells:
                for word in (cell.text, cell.detail):
                    assert word in text or not column.numeric, (column.header, word)


def test_an_ascii_pipe_can_take_the_tables() -> None:
    assert "99.97% alike" in printed(compare_table(compare(sample.fleet())), encoding="ascii")


def test_names_can_drive_neither_the_terminal_nor_markdown() -> None:
    evil = "[bold]\x1b[2J|x|<script>&lt;"
    bench = sample.machine_bench(f"ssh://{evil}", sample.arm(cpu=evil), warnings=(evil,))
    rows = tuple(dataclasses.replace(row, name=evil) for row in bench.rows[:1])
    compared = merged(dataclasses.replace(bench, rows=rows))
    text = printed(compare_table(compared), 200)
    assert "\x1b" not in text
    assert "[bold]" in text
    pages = compare_markdown(compared)
    assert "\x1b" not in pages
    assert not re.search(r"(?<!\\)(<script|\|x|&lt)", pages)


def test_markdown_has_a_table_a_fact_and_every_machine() -> None:
    compared = compare(sample.fleet())
    text = compare_markdown(compared)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == len(blocks(compared))
    for found in tables:
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in found.splitlines()]
        assert len(rows) == 2 + len(compared.bundles)
        assert len({len(row) for row in rows}) == 1
    assert "| fp32 | golden ok | 99.97% alike (golden ok, 3 decisions differ) | bit-identical (golden ok) |" in text
    for machine in compared.machines:
        assert f"\n{machine.label}: " in text
