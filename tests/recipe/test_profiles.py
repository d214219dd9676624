"""Profiles: a recipe's own changes by name, made as --set makes them."""

from __future__ import annotations

import pytest

from tests.recipe.test_load import GOOD

PROFILES = """\
profiles:
  fast:
    train.epochs: 1
    variants.int4.weights: {bits: 3}
    bench.seconds: 0.1
  full: {train.epochs: 300}
  same:
"""


def test_a_profile_changes_what_it_names_and_nothing_else(read):
    plain, fast = read(GOOD + PROFILES), read(GOOD + PROFILES, profile="fast")
    assert (plain.train.epochs, fast.train.epochs, fast.train.lr) == (3, 1, 1e-3)
    assert (fast.variants["int4"].weights.bits, fast.variants["int8"].weights.bits) == (3, 8)
    assert (fast.bench.seconds, fast.bench.threads) == (0.1, (1, 2))
    assert read(GOOD + PROFILES, profile="same").train == plain.train


def test_each_profile_has_a_folder_of_its_own(read):
    assert [read(GOOD + PROFILES, profile=name).folder for name in ("", "fast")] == ["mine", "mine-fast"]
    assert [read(GOOD + PROFILES, profile=name).profile for name in ("", "fast")] == ["", "fast"]


def test_set_wins_over_the_profile(read):
    assert read(GOOD + PROFILES, "train.epochs=2", profile="fast").train.epochs == 2


def test_a_profile_can_change_a_grid(read):
    text = GOOD + "grid: {method: ptq, weights.bits: [8, 4]}\nprofiles: {one: {grid.weights.bits: [8]}}\n"
    assert set(read(text, profile="one").variants) == {"base", "int8", "int4", "ptq-w8"}


def test_an_unknown_profile_suggests_the_nearest(refused):
    error = refused(GOOD + PROFILES, profile="fats")
    assert "mine.yaml has no profile 'fats'" in error
    assert "'fast'" in error
    assert "profiles: {fast:" in refused(GOOD, profile="fast")


LINE = len(GOOD.splitlines()) + 3  # of the first key of a profile below


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("train.epoch: 1", ["train.epoch (profile fast, line {line}): unknown key", "'epochs'"]),
        ("train.epochs: one", ["train.epochs (profile fast, line {line}): 'one' should be a valid integer"]),
        ("variants.int9.weights.bits: 4", ["profile fast, line {line}: there is no variant 'int9'", "'int8'"]),
        ("name.first: a", ["profile fast, line {line}: name is 'mine' and has no keys"]),
        ("train..epochs: 1", ["profile fast, line {line}: 'train..epochs' is no dotted key"]),
    ],
)
@pytest.mark.parametrize("chosen", ["fast", ""])
def test_what_is_wrong_in_a_profile_names_its_line(refused, wrong: str, said: list[str], chosen: str):
    """Whether it is chosen or not: the whole recipe is checked."""
    error = refused(f"{GOOD}profiles:\n  fast:\n    {wrong}\n", profile=chosen)
    for part in said:
        assert part.format(line=LINE) in error


@pytest.mark.parametrize("profiles", ["profiles: [fast]", "profiles: {fast: 3}", "profiles: {'../fast': {name: a}}"])
def test_profiles_of_another_form_are_refused(refused, profiles: str):
    assert "profiles" in refused(GOOD + profiles + "\n")
