from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest

from qdeploy.core.records import Histogram, Interval
from qdeploy.reports import axes, labels, plots
from qdeploy.reports.labels import Box
from tests.reports import sample


def point(name: str, cost: float, score: float, *, baseline: bool = False) -> plots.Point:
    return plots.Point(name, Interval(cost, cost, cost), Interval(score, score - 0.5, score + 0.5), baseline, name)


def draw(points: list[plots.Point], **changes: object) -> ElementTree.Element:
    options = {"cost": "size", "score": "accuracy", "log": True, "higher_is_better": True, "unit": "bytes", **changes}
    return ElementTree.fromstring(plots.tradeoff(points, **options))


def marks(drawing: ElementTree.Element) -> dict[str, tuple[str, float, float]]:
    circles = [e for e in drawing.iter("circle") if (e.get("class") or "").startswith("mark")]
    return {
        c.findtext("title") or "": ((c.get("class") or ""), float(c.get("cx", 0)), float(c.get("cy", 0)))
        for c in circles
    }


def test_marks_lie_where_the_numbers_say() -> None:
    found = marks(draw([point("float", 1e6, 92, baseline=True), point("int8", 1e5, 91), point("bad", 2e5, 90)]))
    assert found["int8"][1] < found["bad"][1] < found["float"][1]
    assert found["float"][2] < found["int8"][2] < found["bad"][2]  # up is better, SVG's y grows downwards
    # On a logarithmic axis equal ratios are equal distances: 2 lies at log10(2) of a decade.
    decade = found["float"][1] - found["int8"][1]
    assert (found["bad"][1] - found["int8"][1]) / decade == pytest.approx(0.30103, abs=1e-3)
    assert [found[n][0] for n in ("float", "int8", "bad")] == ["mark baseline", "mark best", "mark other"]


def test_the_pareto_line_goes_through_the_undominated_variants_only() -> None:
    drawing = draw([point("float", 1e6, 92, baseline=True), point("int8", 1e5, 91), point("bad", 2e5, 90)])
    found = marks(drawing)
    path = next(e.get("d") or "" for e in drawing.iter("path") if e.get("class") == "pareto")
    numbers = [float(n) for n in re.findall(r"[\d.]+", path)]
    assert numbers == pytest.approx([*found["int8"][1:], *found["float"][1:]], abs=0.01)
    assert drawing.get("aria-label") == "accuracy against size, 3 variants. On the Pareto line: int8, float."


def test_every_name_is_written_inside_the_frame_and_none_over_another() -> None:
    points = [point(f"variant-number-{i}", 25_000, 91 + i / 50) for i in range(6)]
    drawing = draw(points)
    texts = [t for t in drawing.iter("text") if (t.get("class") or "").startswith("name")]
    assert [t.text for t in texts] == [p.name for p in points]
    boxes = labels.place([(200, 100 + i) for i in range(6)], [(110, 15)] * 6, plots.FRAME)
    assert all(a.overlap(b) == 0 for a, b in itertools.combinations(boxes, 2))
    assert all(plots.FRAME.left <= b.left and b.right <= plots.FRAME.right for b in boxes)


def test_a_label_wider_than_the_frame_starts_inside_it() -> None:
    (box,) = labels.place([(50, 50)], [(500, 15)], Box(0, 0, 100, 100))
    assert box.left == 0


@pytest.mark.parametrize("values", [[1.0], [0.2, 0.21], [3.0, 900.0], [0.0, 0.0]])
def test_a_linear_axis_holds_its_values_between_its_first_and_last_tick(values: list[float]) -> None:
    axis = axes.linear(values, 0, 100)
    assert axis.ticks[0] <= min(values) <= max(values) <= axis.ticks[-1]
    assert len(axis.ticks) >= 2
    assert axes.linear(values, 0, 100, zero=True).ticks[0] == 0


@pytest.mark.parametrize("values", [[1000.0], [1000.0, 1100.0], [90.0, 3e8]])
def test_a_logarithmic_axis_has_ticks_inside(values: list[float]) -> None:
    axis = axes.logarithmic(values, 0, 100)
    assert axis.low < min(values) <= max(values) < axis.high
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)


def test_a_histogram_marks_the_range_and_shades_what_lies_outside() -> None:
    drawing = ElementTree.fromstring(plots.histogram(Histogram((1, 8, 8, 1), -2.0, 2.0, -1.0, 1.0), "weights"))
    width = plots.BINS * plots.BIN_WIDTH
    edges = [float(e.get("x1", 0)) for e in drawing.iter("line")]
    assert edges == [width / 4, width * 3 / 4]
    shaded = [(float(e.get("x", 0)), float(e.get("width", 0))) for e in drawing.iter("rect")]
    assert shaded == [(0, width / 4), (width * 3 / 4, width / 4)]
    assert drawing.get("aria-label") == "weights"


def test_a_histogram_of_many_bins_or_of_nothing_is_drawn() -> None:
    many = plots.histogram(Histogram(tuple(range(2048)), 0.0, 1.0, 0.0, 1.0), "many")
    assert many.count("h4") <= plots.BINS
    ElementTree.fromstring(plots.histogram(Histogram((0, 0), 0.0, 0.0, 0.0, 0.0), "empty"))


def test_coverage_is_as_wide_as_the_macs() -> None:
    layers = sample.layers(6, 8, floats=("conv1",))
    drawing = ElementTree.fromstring(plots.coverage(layers))
    total = sum(layer.macs for layer in layers)
    for kind, integer in (("integer", True), ("float", False)):
        drawn = sum(float(e.get("width", "0").rstrip("%")) for e in drawing.iter("rect") if e.get("class") == kind)
        assert drawn == pytest.approx(
            100 * sum(layer.macs for layer in layers if layer.integer == integer) / total, abs=0.1
        )


def test_bars_are_as_long_as_the_times_and_one_that_was_not_measured_has_none() -> None:
    rows = [
        plots.Bar("fp32", Interval(2.0, 1.9, 2.1), "2.00 ms", "baseline"),
        plots.Bar("int8", Interval(1.0, 0.9, 1.2), "1.00 ms", "best"),
        plots.Bar("n" * 200, None, "not measured", "other"),
    ]
    drawing = ElementTree.fromstring(plots.bars(rows, "times"))
    fp32, int8 = (float(e.get("width", 0)) for e in drawing.iter("rect"))
    assert fp32 / int8 == pytest.approx(2, rel=1e-3)
    groups = [group for group in drawing.iter("g") if group.get("class")]
    low, high, *_ = (float(e.get(x, 0)) for e in groups[1].iter("line") for x in ("x1", "x2"))
    assert (high - low) / int8 == pytest.approx(0.3, rel=1e-2)
    assert not list(groups[2].iter("rect"))
    assert max(len(text.text or "") for text in drawing.iter("text")) <= plots.NAME_LETTERS
    assert groups[2].findtext("title") == "n" * 200 + ": not measured"
    assert drawing.get("aria-label") == "times"
