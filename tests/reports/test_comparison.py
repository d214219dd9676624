from __future__ import annotations

import dataclasses

from qdeploy.core.records import Interval, Refusal, Results
from qdeploy.reports import comparison, html
from qdeploy.reports.comparison import Cell
from qdeploy.reports.terminal import results_markdown
from qdeploy.reports.words import Scores
from tests.reports import sample


def cells(results: Results, key: str) -> dict[str, Cell]:
    column = next(c for c in comparison.columns(results) if c.key == key)
    return {v.name: cell for v, cell in zip(results.variants, column.cells, strict=True)}


def test_a_difference_is_one_only_where_the_interval_excludes_zero() -> None:
    found = cells(sample.full(), "delta")
    assert found["float32"].text == "baseline"
    assert found["ptq-int8"] == Cell("no difference", "-0.07 [-0.38, +0.22]")
    assert found["gptq-int4"] == Cell("-0.82 points", "[-1.13, -0.53]", "bad")


def test_the_ends_of_an_interval_belong_to_it() -> None:
    style = Scores.of(v.metric for v in sample.full().variants)
    touching = sample.variant("a", "ptq", 0.9, 1, base=(0.9, 1), delta=Interval(-0.002, -0.004, 0.0))
    assert comparison.delta(touching.delta, style).text == "no difference"
    assert comparison.ratio_cell(Interval(1.02, 1.0, 1.04)).text == "no difference"
    assert comparison.ratio_cell(Interval(1.02, 1.001, 1.04)) == Cell("1.02x", "[1.00, 1.04]", "good")
    assert comparison.ratio_cell(Interval(0.8, 0.7, 0.9)).tone == "bad"


def test_speed_is_left_out_where_nothing_was_measured() -> None:
    keys = [column.key for column in comparison.columns(sample.minimal(timed=False))]
    assert "p50" not in keys
    assert "speedup" not in keys
    assert any("not measured" in note for note in comparison.notes(sample.minimal(timed=False)))


def test_withheld_times_are_named_and_never_shown() -> None:
    results = sample.minimal()
    variants = tuple(dataclasses.replace(v, latency=sample.withheld()) for v in results.variants)
    results = dataclasses.replace(results, variants=variants)
    assert {cell.text for cell in cells(results, "p50").values()} == {"withheld"}
    assert {cell.text for cell in cells(results, "speedup").values()} == {"-"}
    assert "Times are withheld: the CPU is emulated (qemu)." in comparison.notes(results)


def test_parity_is_a_dash_only_where_there_are_no_codes() -> None:
    found = cells(sample.full(), "parity")
    assert found["float32"].text == "-"
    assert found["ptq-int8"].text == "0"
    wrong = sample.variant("a", "ptq", 0.9, 1, base=(0.9, 1), differing_codes=1234)
    assert comparison.parity(wrong) == Cell("1,234", tone="bad")


def test_float_layers_are_grouped_by_reason_in_network_order() -> None:
    mixed = sample.full().variants[-1]
    assert comparison.float_reasons(mixed.layers) == [("kept in float32 by the recipe (keep_float)", ["conv1", "fc"])]


def test_what_cannot_be_represented_is_a_row_with_its_reason() -> None:
    refusal = Refusal("apot-w8a8", "qat", "APoT weights of 8 bits are not representable: too large for int8.")
    results = dataclasses.replace(sample.full(), refusals=(refusal,))
    rows = {column.key: column.cells[-1].text for column in comparison.columns(results)}
    assert (rows["variant"], rows["method"], rows["metric"]) == ("apot-w8a8", "qat", "not representable")
    assert {text for key, text in rows.items() if key not in ("variant", "method", "metric")} == {"-"}
    assert comparison.notes(results)[-1] == f"apot-w8a8: {refusal.reason}"
    assert "| apot-w8a8 | qat | not representable | - |" in results_markdown(results)
    assert "not representable" in html.render(results)


def test_how_long_it_took_is_shown_where_it_is_known() -> None:
    results = sample.full()
    assert "seconds" not in {column.key for column in comparison.columns(results)}
    first = dataclasses.replace(results.variants[0], seconds=126.2)
    timed = dataclasses.replace(results, variants=(first, *results.variants[1:]))
    assert [cell.text for cell in cells(timed, "seconds").values()][:2] == ["2 min 6 s", "-"]


def test_what_some_cpu_computes_otherwise_is_said_beside_what_is_proven() -> None:
    results = sample.minimal()
    assert "portable" not in [column.key for column in comparison.columns(results)]
    found = (0, 3, None)
    variants = [dataclasses.replace(results.variants[-1], unportable=layers) for layers in found]
    variants.append(dataclasses.replace(variants[0], comparison="close"))
    columns = comparison.columns(dataclasses.replace(results, variants=tuple(variants)))
    (cells,) = (column.cells for column in columns if column.key == "portable")
    assert [cell.line() for cell in cells] == ["proven", "no (3 layers)", "-", "no saturation"]
