from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.console import Console, RenderableType

from qdeploy.core.records import Layer
from qdeploy.reports import comparison
from qdeploy.reports.terminal import bench_table, layers_table, results_markdown, results_table
from tests.reports import sample


def printed(renderable: RenderableType, width: int = 80, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    Console(file=stream, width=width).print(renderable)
    stream.seek(0)
    return stream.read()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_every_number_is_printed_whole_at_any_width(width: int) -> None:
    results = sample.full()
    text = printed(results_table(results), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    for column in comparison.columns(results):
        for cell in column.cells:
            assert cell.text in text, column.header
            assert cell.detail in text, column.header


def test_a_wide_terminal_gets_one_table_and_a_narrow_one_repeats_the_names() -> None:
    def headers(width: int) -> int:
        return sum(line.startswith("variant") for line in printed(results_table(sample.full()), width).splitlines())

    assert headers(160) == 1
    assert headers(80) == 2


def test_an_ascii_pipe_can_take_the_tables() -> None:
    text = printed(results_table(sample.full()), encoding="ascii") + printed(
        bench_table(sample.bench()), encoding="ascii"
    )
    assert "91.66%" in text


def test_names_cannot_drive_the_terminal() -> None:
    variant = dataclasses.replace(sample.full().variants[1], name="\x1b[2Jx[bold]y")
    text = printed(results_table(dataclasses.replace(sample.full(), variants=(variant,))))
    assert "\x1b" not in text
    assert "[bold]y" in text


def test_a_bench_has_a_block_for_each_setting_and_names_the_machine() -> None:
    text = printed(bench_table(sample.bench()))
    assert "onnxruntime (CPU), 1 thread, batch 1\n" in text
    assert "onnxruntime (CPU), 1 thread, batch 16\n" in text
    flowing = " ".join(text.split())
    assert "2 of 64 cores (cgroup quota)" in flowing
    assert "warning: The frequency governor is powersave: times vary. Remedy: cpupower" in flowing
    for number in (
        "1.07 ms",
        "[1.05, 1.09]",
        "1.16 ms",
        "1.40 ms",
        "935",
        "18.4 ms",
        "92.1 MB",
        "2.16x",
        "[2.09, 2.22]",
    ):
        assert number in text


def test_a_speed_up_that_may_be_none_is_called_no_difference() -> None:
    row = sample.bench().rows[1]
    row = dataclasses.replace(row, latency=sample.latency(2.3, 1.01))
    text = printed(bench_table(sample.bench(rows=(row,))))
    assert re.search(r"2\.30 ms +no difference", text)
    assert "1.01x [0.98, 1.04]" in text


def test_withheld_times_are_not_printed() -> None:
    rows = tuple(dataclasses.replace(row, latency=sample.withheld()) for row in sample.bench().rows[:2])
    text = printed(bench_table(sample.bench(rows=rows)))
    assert "withheld" in text
    assert "Times are withheld: the CPU is emulated (qemu)." in text
    assert " ms" not in text


def test_bundles_of_one_name_are_told_apart_by_their_path() -> None:
    row = sample.bench().rows[1]
    text = printed(bench_table(sample.bench(rows=(row, dataclasses.replace(row, bundle="other/int8.zip")))))
    assert "other/int8.zip" in text


def layer(name: str, **changes: object) -> Layer:
    values = Layer(
        name,
        "Conv",
        "QLinearConv",
        True,
        "",
        750,
        weight_bits=8,
        activation_bits=8,
        outputs_checked=100,
        differing_codes=0,
    )
    return dataclasses.replace(values, **changes)


def test_layers_say_what_runs_and_why_some_stay_float() -> None:
    reason = "HardSwish has no integer kernel"
    floating = layer(
        "features.1", kernel="Conv", integer=False, reason=reason, macs=250, weight_bits=None, activation_bits=None
    )
    text = printed(layers_table([layer("features.0", sqnr_db=41.26), floating]))
    first = next(line for line in text.splitlines() if line.startswith("features.0"))
    assert re.split(r" {2,}", first.strip()) == ["features.0", "Conv", "QLinearConv", "8/8", "750", "75.0%", "41.3 dB"]
    assert "75.0% of 1,000 MACs run in integer kernels." in text
    assert "0 of 200 output codes differ" in text
    assert f"float32: features.1: {reason}" in text


def test_layers_with_differing_codes_are_shown_one_by_one() -> None:
    text = printed(layers_table([layer("a"), layer("b", differing_codes=17)]))
    assert "differing" in text
    assert re.search(r"^b .*\b17$", text, re.MULTILINE)


def test_long_layer_names_wrap_and_numbers_stay() -> None:
    name = "backbone.features.denseblock3.denselayer12.conv2.weighted"
    text = printed(layers_table([layer(name, sqnr_db=41.26, sqnr_local_db=50.12)]))
    assert name in "".join(line.split("  ")[0].strip() for line in text.splitlines() if line[:1].isalpha())
    assert "50.1 dB" in text


def test_markdown_is_a_table_with_a_row_for_each_variant() -> None:
    lines = results_markdown(sample.full()).splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(sample.full().variants)
    assert len({len(row) for row in rows}) == 1
    assert "no difference (-0.07 [-0.38, +0.22])" in lines[3]


def test_markdown_escapes_names() -> None:
    variant = dataclasses.replace(sample.full().variants[1], name="a|b\n<b>[x](http://y)")
    text = results_markdown(dataclasses.replace(sample.full(), variants=(variant,)))
    assert r"a\|b \<b\>[x\](http://y)" in text
