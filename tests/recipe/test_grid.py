from __future__ import annotations

import pytest

BASE = """\
name: mine
model: {factory: "models/net.py:net"}
data: {name: digits}
train: {epochs: 1}
"""


def with_grid(grid: str) -> str:
    return BASE + "grid:\n" + "".join(f"  {line}\n" for line in grid.split("; "))


def test_every_combination_is_a_variant(read):
    recipe = read(with_grid("method: [ptq]; weights.bits: [8, 4]; activations.observer: [minmax, mse]"))
    assert list(recipe.variants) == ["fp32", "ptq-w8-minmax", "ptq-w8-mse", "ptq-w4-minmax", "ptq-w4-mse"]
    made = recipe.variants["ptq-w4-mse"]
    assert (made.method, made.weights.bits, made.weights.observer, made.activations.observer) == (
        "ptq",
        4,
        "minmax",
        "mse",
    )


def test_one_value_needs_no_list(read):
    assert list(read(with_grid("method: ptq; calibration.samples: [64, 128]")).variants) == [
        "fp32",
        "ptq-n64",
        "ptq-n128",
    ]


def test_a_grid_adds_to_the_variants(read):
    recipe = read(BASE + "variants: {mine: {method: ptq}}\ngrid: {method: ptq, weights.bits: [4]}\n")
    assert list(recipe.variants) == ["fp32", "mine", "ptq-w4"]


@pytest.mark.parametrize("nothing", ["grid:\n", "grid: {}\n"])
def test_an_empty_grid_is_none(read, nothing):
    assert list(read(BASE + nothing).variants) == ["fp32"]


def test_only_takes_names_from_the_grid(read):
    text = with_grid("method: ptq; weights.bits: [8, 4]")
    assert list(read(text, only=("ptq-w4",)).variants) == ["fp32", "ptq-w4"]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("weights.bits: [8, 4]", ["grid (line 5): it has no method", "method: ptq"]),
        ("method: ptq; weights.bits: [8, 9]", ["variants.ptq-w9.weights.bits (grid, line 7)", "1 to 8 bits, not 9"]),
        ("method: ptq; weights.bitz: [8]", ["variants.ptq-bitz8.weights.bitz (grid, line 7): unknown key", "'bits'"]),
        ("method: [ptq, float32]; weights.bits: [8]", ["variants.float32-w8 (grid, line 5): the float32 baseline"]),
        ("method: ptq; weights.bits: []", ["grid.weights.bits (line 7): the list is empty"]),
        ("method: ptq; weights: [{bits: 8}]", ["(line 7): {'bits': 8} is not a single value", "weights.KEY"]),
        ("method: ptq; weights.bits: [8]; weights: [x]", ["grid.weights (line 8): it contains weights.bits"]),
        ("method: ptq; weights.bits: [8, 8]", ["grid (line 5): it makes a variant ptq-w8, which exists"]),
        (f"method: ptq; weights.bits: {[8] * 20}; activations.bits: {[8] * 20}", ["(line 5): it makes 400 variants"]),
        ("method: ptq; activations.observer: [mse, msee]", ["ptq-msee.activations.observer (grid, line 7)", "'mse'"]),
    ],
)  # fmt: skip
def test_combinations_that_are_no_variants(refused, grid, said):
    error = refused(with_grid(grid))
    for part in said:
        assert part in error


def test_a_grid_that_is_no_mapping(refused):
    assert "grid (line 5): expected keys and values" in refused(BASE + "grid: [1]\n")


def test_a_variant_of_the_same_name(refused):
    error = refused(BASE + "variants: {ptq-w4: {method: ptq}}\ngrid: {method: ptq, weights.bits: 4}\n")
    assert "it makes a variant ptq-w4, which exists" in error
