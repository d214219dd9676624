"""The model card says what the manifest says, in Markdown that survives odd names."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from qdeploy.bundle import manifest
from qdeploy.bundle.card import render


@pytest.fixture
def card(bundle: Path) -> str:
    with zipfile.ZipFile(bundle) as file:
        return file.read("README.md").decode()


def test_it_is_rendered_from_the_manifest(card: str, bundle: Path) -> None:
    assert render(manifest.read(bundle)) == card
    assert card.endswith("\n")
    assert "\n\n\n" not in card
    assert not [line for line in card.splitlines() if line != line.rstrip()]


FACTS = [
    "# digits / ptq-int8",
    "**top1 0.9750**, 95% interval 0.9583 to 0.9889 (higher is better)",
    "360 samples: digits, evaluation split",
    "100% of the multiply-accumulates (MACs) run in integer kernels",
    "| conv | Conv | QLinearConv | 1,296 |  |",
    "9,856 output codes of the layers in which every bit must agree, over 64 samples, were compared with integer "
    "reference arithmetic: 0 differ.",
    "None of them measures the accuracy again",
    "python run.py selftest",
    "python run.py bench",
    "python run.py predict FILE",
    "| input | `input` | float32 | batch x 1 x 8 x 8 |",
    "| output | `output` | float32 | batch x 10 |",
    "A raw sample of `input` is uint8 8 x 8.",
    "1. convert to float32 and divide by 16",
    "3. reorder the axes from HWC to CHW",
    "| weights.bits | 8 |",
    "| activations.observer | mse |",
    "bit for bit",
    "- onnxruntime 1.31.1",
]


@pytest.mark.parametrize("fact", FACTS)
def test_it_says(fact: str, card: str) -> None:
    assert fact in card


def test_it_says_the_range_of_raw_values_where_there_is_one(bundle: Path) -> None:
    (entry,) = manifest.read(bundle).inputs
    ranged = entry.model_copy(update={"raw": entry.raw.model_copy(update={"range": (0.0, 16.0)})})
    assert "A raw sample of `input` is uint8 8 x 8, values 0 to 16.\n`run.py` prepares" in changed(
        bundle, inputs=(ranged,)
    )


def changed(bundle: Path, **fields: Any) -> str:
    return render(manifest.read(bundle).model_copy(update=fields))


def test_coverage_is_never_rounded_up(bundle: Path) -> None:
    layers = manifest.read(bundle).coverage.layers  # type: ignore[union-attr]
    almost = manifest.Coverage(integer_mac_share=0.99999, layers=layers)
    assert "99.99% of the multiply-accumulates" in changed(bundle, coverage=almost)


def test_odd_names_do_not_break_the_tables(bundle: Path) -> None:
    layer = manifest.CoverageLayer(name="a|b", op="Conv", kernel="Conv", integer=False, reason="x\n| y", macs=1)
    coverage = manifest.Coverage(integer_mac_share=0.0, layers=(layer,))
    assert "| a\\|b | Conv | Conv | 1 | x \\| y |" in changed(bundle, coverage=coverage, classes=("<b>",))
    assert "output: \\<b\\>." in changed(bundle, classes=("<b>",))


def test_what_was_not_measured_is_not_claimed(bundle: Path) -> None:
    text = changed(bundle, metric=None, coverage=None, parity=None, quantization={})
    assert "Not measured" in text
    assert "this is the float32 model" in text
    assert "interval" not in text
    assert "integer" not in text
