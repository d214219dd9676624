from __future__ import annotations

import pytest
import torch

from qdeploy.core.errors import QDeployError
from qdeploy.train.augment import augment


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


IMAGES = torch.arange(64 * 2 * 16 * 24, dtype=torch.float32).reshape(64, 2, 16, 24) + 1


def test_nothing_asked_is_nothing_done():
    assert augment(IMAGES, (), draw()) is IMAGES


def test_a_flip_mirrors_about_half_of_the_images_left_to_right():
    flipped = augment(IMAGES, ("flip",), draw())
    mirrored = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(flipped, IMAGES, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(flipped, IMAGES, strict=True)])
    assert torch.all(mirrored ^ kept)
    assert 16 < int(mirrored.sum()) < 48


def test_a_crop_shifts_each_image_by_up_to_an_eighth_of_its_sides_over_zeros():
    shifts = set()
    for found, image in zip(augment(IMAGES, ("crop",), draw()), IMAGES, strict=True):
        assert found.shape == image.shape
        row, column = (int(i) for i in (found[0] == image[0, 8, 12]).nonzero()[0])
        down, right = row - 8, column - 12
        shifts.add((down, right))
        expected = torch.nn.functional.pad(image, (3, 3, 2, 2))[:, 2 - down : 18 - down, 3 - right : 27 - right]
        assert torch.equal(found, expected)
    assert {abs(d) for d, _ in shifts} == {0, 1, 2}
    assert {abs(r) for _, r in shifts} == {0, 1, 2, 3}


def test_the_generator_decides():
    once, again, other = (augment(IMAGES, ("crop", "flip"), draw(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(QDeployError, match="no augmentation named 'flop'") as caught:
        augment(IMAGES, ("flop",), draw())
    assert "'flip'" in caught.value.hint


def test_rows_of_a_table_are_no_images():
    with pytest.raises(QDeployError, match=r"shape \[5\] cannot be cropped or flipped"):
        augment(torch.zeros(3, 5), ("flip",), draw())
