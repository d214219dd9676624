from __future__ import annotations

import pytest

from tests.recipe.test_load import GOOD


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.epochs=5", "train.epochs", 5),
        ("train.lr=1e-4", "train.lr", 1e-4),
        ("train.schedule=constant", "train.schedule", "constant"),
        ("train={epochs: 7}", "train.epochs", 7),
        ("name=other", "name", "other"),
        ("description=a=b", "description", "a=b"),
        ("model.width=16", "model.width", 16),
        ("data.seed=3", "data.seed", 3),
        ("variants.int8.weights.bits=3", "variants.int8.weights.bits", 3),
        ("variants.int4.rounding=gptq", "variants.int4.rounding.name", "gptq"),
        ("bench.threads=[2, 4]", "bench.threads", (2, 4)),
        ("input.shape=[1, 8, 8]", "input.shape", (1, 8, 8)),
    ],
)
def test_a_value_is_set(read, override, path, value):
    found = read(GOOD, override)
    for part in path.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value


def test_later_ones_win(read):
    assert read(GOOD, "train.epochs=5", "train.epochs=6").train.epochs == 6
    assert read(GOOD, "train.epochs=5", "train={epochs: 8}").train.epochs == 8


def test_one_of_several_aliases_is_changed(read):
    text = GOOD.replace("weights: {observer: mse}", "weights: &w {observer: mse}").replace(
        "weights: {bits: 4}", "weights: *w"
    )
    recipe = read(text, "variants.int4.weights.bits=2")
    assert (recipe.variants["int8"].weights.bits, recipe.variants["int4"].weights.bits) == (8, 2)


def test_a_variant_name_may_hold_dots(read):
    recipe = read(GOOD.replace("int4:", "v1.5:"), "variants.v1.5.weights.bits=2")
    assert recipe.variants["v1.5"].weights.bits == 2


def test_a_pattern_means_every_variant_of_such_a_name(read):
    recipe = read(GOOD, "variants.int*.weights.bits=2", "variants.*4.calibration.samples=7")
    assert [recipe.variants[name].weights.bits for name in ("base", "int8", "int4")] == [8, 2, 2]
    assert recipe.variants["int8"].weights.observer == "mse"  # what was there besides stays
    assert [recipe.variants[name].calibration.samples for name in ("int8", "int4")] == [100, 7]


def test_a_section_that_is_null_or_absent_can_be_filled(read):
    assert read(GOOD, "train=null", "train.epochs=2").train.epochs == 2
    assert read(GOOD.split("bench")[0], "bench.seconds=9").bench.seconds == 9


def test_a_grid_can_be_changed(read):
    text = GOOD + "grid: {method: ptq, weights.bits: [8, 4]}\n"
    assert list(read(text, "grid.weights.bits=[6]").variants) == ["base", "int8", "int4", "ptq-w6"]
    assert "ptq-w8-mse" in read(text, "grid.activations.observer=[mse]").variants


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epoch=5", ["train.epoch (--set train.epoch=5): unknown key", "'epochs'"]),
        ("trian.epochs=5", ["trian (--set trian.epochs=5): unknown key", "'train'"]),
        ("train.epochs=five", ["train.epochs (--set train.epochs=five): 'five' should be a valid integer"]),
        (
            "variants.int8.weights.bits=99",
            ["variants.int8.weights.bits (--set", "integer codes have 1 to 8 bits, not 99"],
        ),
        ("variants.int9.weights.bits=4", ["there is no variant 'int9'", "'int8'"]),
        ("variants.itn*.weights.bits=4", ["there is no variant like 'itn*'", "'int"]),
        ("variants.*.weights.bits=4", ["variants.base", "takes no 'weights'"]),
        ("variants.int9={}", ["there is no variant 'int9'", "'int8'"]),
        ("name.first=5", ["name is 'mine' and has no keys", "Set name itself"]),
        ("train.epochs", ["--set train.epochs is not KEY=VALUE", "--set train.epochs=5"]),
        ("=5", ["is not KEY=VALUE"]),
        ("train..epochs=5", ["is not KEY=VALUE"]),
        ("bench.threads=[1", ["--set bench.threads=[1", "not valid YAML"]),
        ("bench={a: 1, a: 2}", ["written twice"]),
    ],
)
def test_what_has_no_place_says_so(refused, override, said):
    error = refused(GOOD, override)
    for part in said:
        assert part in error
