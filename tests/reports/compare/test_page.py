"""The page of a comparison: whole, self-contained, and safe whatever a record says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from qdeploy.core.records import Interval
from qdeploy.reports.compare import table
from qdeploy.reports.compare.facts import Comparison
from qdeploy.reports.compare.merge import compare
from qdeploy.reports.compare.page import render, write
from qdeploy.reports.compare.settings import settings
from qdeploy.reports.compare.summary import summary
from qdeploy.reports.html import typeset
from tests.reports import sample
from tests.reports.test_html import EVIL, Page

CASES = {
    "fleet": sample.fleet,
    "answers": lambda: [("a.json", sample.machine_answers())],
    "bench": lambda: [("a.json", sample.machine_bench())],
    "one bundle": lambda: [("a.json", sample.machine_bench(rows=sample.machine_bench().rows[:1]))],
    "no machine": lambda: [("a.json", sample.minimal(timed=False))],
    "emulated": lambda: [("a.json", sample.machine_bench(machine=sample.environment(emulator="qemu")))],
}


def case(name: str) -> Comparison:
    return compare(CASES[name]())


@pytest.mark.parametrize("name", CASES)
def test_tags_are_balanced_and_labels_are_there(name: str) -> None:
    page = Page(render(case(name)))
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    assert all(value in ids for _, key, value in page.attributes if key == "aria-labelledby")


def test_the_page_needs_nothing_but_itself() -> None:
    text = render(case("fleet"))
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in ("src", "srcset", "xlink:href", "href", "data", "action")]
    assert "url(" not in text
    assert "@import" not in text
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_every_fact_of_the_tables_and_every_machine_is_on_the_page() -> None:
    compared = case("fleet")
    text = Page(render(compared)).text
    for block in table.blocks(compared):
        assert typeset(block.title) in text
        for column in block.columns:
            for cell in column.cells:
                assert typeset(cell.text) in text or column.key == "variant"
                assert typeset(cell.detail) in text
    for machine in compared.machines:
        assert machine.environment.cpu in text
        assert ", ".join(machine.sources) in text
    assert summary(compared)[0] in text


def test_every_machine_and_setting_has_a_picture_of_its_own() -> None:
    text = render(case("fleet"))
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert captions == [setting.header for setting in settings(case("fleet").timings)[0]]
    assert text.count("<rect") == len(captions) * len(sample.FLEET)


def test_tiles_are_one_a_machine() -> None:
    tiles = re.findall(r"<dt>(speed-up on .*?)</dt><dd>(.*?)</dd>", render(case("fleet")))
    assert tiles == [
        ("speed-up on Example Silver 4314, 1 thread", "2.16×"),
        ("speed-up on ssh://pi@board, 1 thread", "2.16×"),
    ]


def test_a_speed_up_that_may_be_none_is_called_so_in_pictures_and_tiles() -> None:
    bench = sample.machine_bench()
    latency = dataclasses.replace(bench.rows[1].latency, speedup=Interval(1.01, 0.98, 1.04))
    rows = (bench.rows[0], dataclasses.replace(bench.rows[1], latency=latency))
    text = render(compare([("a.json", dataclasses.replace(bench, rows=rows))]))
    assert ">1.07 ms   no difference</text>" in text
    assert "<dt>speed-up on Example Silver 4314: no difference</dt><dd>1.01×</dd>" in text


def test_there_are_no_times_of_an_emulated_cpu() -> None:
    text = Page(render(case("emulated"))).text
    assert " ms" not in text
    assert "are withheld: the CPU is emulated (qemu)." in text


def test_wrong_answers_come_before_everything_else() -> None:
    answers = sample.machine_answers()
    golden = dataclasses.replace(answers.rows[1].golden, passed=False, differing=37)
    wrong = dataclasses.replace(answers, rows=(dataclasses.replace(answers.rows[1], golden=golden),))
    text = render(compare([("a.json", wrong)]))
    assert 'role="alert"' in text
    assert text.index("ptq-int8 gives other answers") < text.index("Golden vectors do not hold")
    assert 'role="alert"' not in render(case("fleet"))


def test_what_a_record_contains_is_text() -> None:
    bench = sample.machine_bench(
        EVIL,
        sample.arm(**dict.fromkeys(("cpu", "architecture", "governor", "system", "python", "onnxruntime"), EVIL)),
        warnings=(EVIL,),
    )
    rows = tuple(
        dataclasses.replace(row, name=EVIL + row.name, latency=dataclasses.replace(row.latency, runtime=EVIL))
        for row in bench.rows
    )
    answers = sample.machine_answers(runtime=EVIL, dataset=EVIL)
    noted = tuple(dataclasses.replace(row, note=EVIL) for row in answers.rows)
    text = render(
        compare(
            [
                (EVIL, dataclasses.replace(bench, rows=rows, baseline=EVIL + "fp32")),
                ("b", dataclasses.replace(answers, rows=noted)),
            ]
        )
    )
    page = Page(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert text.count("<style>") == text.count("</style>") == 1


def test_the_same_comparison_gives_the_same_bytes(tmp_path: Path) -> None:
    write(case("fleet"), tmp_path / "a.html")
    write(case("fleet"), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_pictures_and_tables_are_accessible() -> None:
    text = render(case("fleet"))
    for svg in re.findall(r"<svg[^>]*>", text):
        assert 'role="img"' in svg
        assert 'aria-label="p50 latency on ' in svg
    for head in re.findall(r"<thead>.*?</thead>", text, re.DOTALL):
        assert "<td" not in head
        assert head.count("<th ") == head.count('scope="col"')
