from __future__ import annotations

import dataclasses
import itertools
import re
import xml.etree.ElementTree as ElementTree

from qdeploy.reports import bits
from qdeploy.reports.figures import accuracy_against_bits, figures
from tests.reports import sample


def test_bits_come_from_settings_then_from_layers() -> None:
    asked = sample.variant("w8", "ptq", 0.9, 1, base=(0.9, 1), quantization=sample.settings("ptq", "gptq", 4))
    assert bits.weight_bits(asked) == 4
    assert bits.weight_bits(dataclasses.replace(asked, quantization={}, layers=sample.layers(5, 2))) == 2
    assert bits.weight_bits(sample.variant("x", "bf16", 0.9, 1)) == 16
    assert bits.weight_bits(sample.variant("x", "float32", 0.9, 1)) == 32
    rules = {**asked.quantization, "rules": [{"match": "a", "weights": {"bits": 2}}]}
    assert bits.weight_bits(dataclasses.replace(asked, quantization=rules)) is None


def test_variants_of_one_width_are_told_apart_by_what_differs() -> None:
    labels = bits.labels(sample.head_to_head())
    assert labels == {
        "ptq": "ptq gptq", "qat-e1": "qat lsq, train.epochs 1", "qat-e2": "qat lsq, train.epochs 2",
        "qat-e4": "qat lsq, train.epochs 4",
    }  # fmt: skip


def test_one_method_is_one_line_whatever_algorithm_a_width_takes() -> None:
    """1 bit takes another fake quantizer than the other widths: no width comes twice, so all of QAT is one line."""
    results = sample.quantizers("digits", ("lsq",))
    one = dataclasses.replace(results.variants[1], name="one", quantization=sample.settings("qat", "ste", 1))
    (line,) = bits.series(dataclasses.replace(results, variants=(*results.variants, one)))
    assert line.label == "qat lsq/ste"
    assert [bits.weight_bits(variant) for variant in line.variants] == [8, 4, 1]
    assert bits.labels(dataclasses.replace(results, variants=(*results.variants, one)))["one"] == "qat ste"
    again = dataclasses.replace(one, quantization=sample.settings("qat", "ste", 4))
    split = bits.series(dataclasses.replace(results, variants=(*results.variants, again)))
    assert [found.label for found in split] == ["qat lsq", "qat ste"]


def test_a_line_a_method_and_float32_as_a_level() -> None:
    figure = accuracy_against_bits(sample.quantizers("digits", ("lsq", "pact")))
    assert figure is not None
    drawing = ElementTree.fromstring(figure.drawing)
    assert len([path for path in drawing.iter("path") if path.get("class") == "run"]) == 2
    spots = [e for e in drawing.iter("circle") if e.find("title") is not None]
    assert [e.findtext("title") for e in spots[:2]] == ["qat-lsq-8: 8 bits, 89.00%", "qat-lsq-4: 4 bits, 89.00%"]
    assert float(spots[0].get("cx", 0)) > float(spots[1].get("cx", 0))
    (level,) = [e for e in drawing.iter("g") if e.get("class") == "level" and e.find("rect") is not None]
    assert level.findtext("title") == "fp32 (32 bits)"


def test_where_no_width_differs_there_is_no_picture() -> None:
    assert accuracy_against_bits(sample.head_to_head()) is None
    assert [figure.key for figure in figures(sample.head_to_head())] == ["size", "latency"]


def test_ticks_are_written_as_they_are() -> None:
    (drawing,) = [f.drawing for f in figures(sample.quantizers("digits", ("lsq",))) if f.key == "bits"]
    ticks = [float(t) for t in re.findall(r'class="tick end"[^>]*>([\d.]+)<', str(drawing))]
    steps = {round(b - a, 6) for a, b in itertools.pairwise(ticks)}
    assert len(steps) == 1
