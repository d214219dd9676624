from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qdeploy.core.records import Results
from qdeploy.reports import comparison
from qdeploy.reports.conclusions import conclusions
from qdeploy.reports.html import SHOWN_ROWS, WORST_ROWS, render, typeset, write
from tests.reports import sample

VOID = {"meta", "br", "hr", "img", "input", "link"}
EVIL = "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Collects a page's tags, attributes and text, and checks that every tag is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def withheld() -> Results:
    results = sample.minimal()
    variants = tuple(dataclasses.replace(v, latency=sample.withheld()) for v in results.variants)
    return dataclasses.replace(results, variants=variants)


def bare() -> Results:
    """Variants as they are where layers were not looked at."""
    variants = tuple(dataclasses.replace(v, layers=(), latency=None) for v in sample.full().variants)
    return dataclasses.replace(sample.full(), variants=variants, environment=None)


CASES = {
    "full": sample.full,
    "large": lambda: sample.full(54),
    "minimal": sample.minimal,
    "untimed": lambda: sample.minimal(timed=False),
    "withheld": withheld,
    "bare": bare,
    "alone": lambda: dataclasses.replace(sample.minimal(), variants=sample.minimal().variants[:1]),
    "empty": lambda: Results("empty", "float32", ()),
}


@pytest.mark.parametrize("case", CASES)
def test_tags_are_balanced_and_anchors_lead_somewhere(case: str) -> None:
    page = Page(render(CASES[case]()))
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    for tag, key, value in page.attributes:
        if tag == "a" and key == "href":
            assert value.removeprefix("#") in ids
        if key == "aria-labelledby":
            assert value in ids


def test_the_page_needs_nothing_but_itself() -> None:
    text = render(sample.full())
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in ("src", "srcset", "xlink:href", "data", "action")]
    assert "url(" not in text
    assert "@import" not in text
    assert not re.search(r"(https?:)?//[a-z]", text)
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_every_variant_and_every_number_is_on_the_page() -> None:
    results = sample.full()
    text = Page(render(results)).text
    for column in comparison.columns(results):
        assert column.header in text
        for cell in column.cells:
            name = column.key in ("variant", "method")
            assert (cell.text if name else typeset(cell.text)) in text
            assert typeset(cell.detail) in text
    assert "kept in float32 by the recipe (keep_float)" in text
    assert results.environment is not None
    assert results.environment.cpu in text
    for layer in results.variants[1].layers:
        assert layer.name in text


def test_the_verdict_is_a_sentence_with_proper_signs() -> None:
    assert (
        "qat-int4 is 6.91× smaller and 2.14× faster [2.07, 2.20] than float32, "
        "at no measurable loss of accuracy (−0.21 points, 95% interval −0.52 to +0.08)."
        in Page(render(sample.full())).text
    )


def test_names_are_not_typeset() -> None:
    assert typeset("-0.10 [-0.60, 2.0x]") == "−0.10 [−0.60, 2.0×]"
    assert typeset("int8-4 v2xl") == "int8-4 v2xl"


def test_what_a_name_contains_is_text() -> None:
    results = sample.full()
    variant = dataclasses.replace(results.variants[1], name=EVIL, method=EVIL, bundle=EVIL)
    layers = tuple(
        dataclasses.replace(layer, name=EVIL, op=EVIL, kernel=EVIL, integer=False, reason=EVIL)
        for layer in variant.layers
    )
    variants = (results.variants[0], dataclasses.replace(variant, layers=layers))
    results = dataclasses.replace(results, name=EVIL, dataset=EVIL, created_by=EVIL, variants=variants)
    text = render(results)
    page = Page(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert page.words.count(EVIL) > 5


def test_conclusions_columns_and_bits_have_their_places() -> None:
    text = render(sample.quantizers("digits", ("lsq", "pact"), refused=("apot",)))
    page = Page(text).text
    for sentence in conclusions(sample.quantizers("digits", ("lsq", "pact")))[1:]:
        assert typeset(sentence.text) in page
    for header, said in comparison.explanations(sample.quantizers("digits", ("lsq", "pact"))).values():
        assert f"<dt>{header}</dt>" in text
        assert typeset(said) in page
    assert 'id="by-bits"' in text
    assert 'id="by-bits"' not in render(sample.minimal())


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    write(sample.full(), tmp_path / "a.html")
    write(sample.full(), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_latency_is_drawn_only_where_it_may_be_read() -> None:
    def captions(results: Results) -> list[str]:
        return re.findall(r"<figcaption>(.*?)</figcaption>", render(results))

    assert captions(sample.minimal()) == ["Accuracy against size", "Accuracy against latency"]
    assert captions(sample.minimal(timed=False)) == ["Accuracy against size"]
    assert captions(withheld()) == ["Accuracy against size"]
    assert "Times are withheld: the CPU is emulated (qemu)." in render(withheld())
    assert " ms" not in Page(render(withheld())).text


def test_times_of_different_settings_share_no_axis() -> None:
    results = sample.minimal()
    other = dataclasses.replace(results.variants[1], latency=sample.latency(0.1, 2.0, threads=2))
    text = render(dataclasses.replace(results, variants=(results.variants[0], other)))
    assert "Accuracy against latency" not in text
    assert "1 thread, batch 1; onnxruntime (CPU), 2 threads, batch 1" in text


def test_a_deep_model_shows_its_worst_layers_first() -> None:
    results = sample.full(54)
    assert len(results.variants[1].layers) > SHOWN_ROWS
    text = render(results)
    section = text[text.index('id="variant-1"') : text.index('id="variant-2"')]
    first = section[section.index("<tbody>") : section.index("</tbody>")]
    shown = re.findall(r'<th scope="row">(.*?)</th>', first)
    worst = sorted(results.variants[1].layers, key=lambda layer: layer.sqnr_local_db or 0)[:WORST_ROWS]
    assert shown == [layer.name for layer in worst]
    assert "All 54 layers in network order" in section


def test_pictures_and_tables_are_accessible() -> None:
    text = render(sample.full())
    for svg in re.findall(r"<svg[^>]*>", text):
        assert 'aria-hidden="true"' in svg or ('role="img"' in svg and 'aria-label="' in svg)
    for head in re.findall(r"<thead>.*?</thead>", text, re.DOTALL):
        assert "<td" not in head
        assert head.count("<th ") == head.count('scope="col"')


def test_reports_import_no_torch() -> None:
    code = "import sys, qdeploy.reports.html, qdeploy.reports.terminal; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_counted_and_what_an_error_is_of_is_said():
    text = Page(render(sample.full(54))).text
    assert re.search(
        r"differing codes \d[\d,]* where every bit must agree \([\d.]+ ?[kMG]? checked in all layers\)", text
    )
    assert "layers with the largest error of their own" in text
    assert "smaller model.onnx" in text
    assert "file size model.onnx, without the rest of its bundle" in text


def test_a_narrow_page_says_that_tables_go_on_sideways():
    """In the style sheet, where it can depend on the width: in narrow pages only, and never on paper."""
    css = render(sample.full()).partition("<style>")[2].partition("</style>")[0]
    narrow, _, paper = css.partition("@media (max-width: 640px)")[2].partition("@media print")
    assert '.scroll::before { content: "scroll sideways' in narrow
    assert ".scroll::before { content: none; }" in paper
