"""Varied appearance: pictures change at random, in place, and stay pictures."""

import pytest
import torch

from duet.detectors import appearance
from duet.detectors.appearance import vary


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(count=8):
    return torch.rand(count, 3, 24, 32, generator=generator(9))


def changed(images):
    return [not torch.equal(one, other) for one, other in zip(images, batch(len(images)))]


@pytest.mark.parametrize(("share", "count"), [(0.5, 4), (0.3, 2), (1.0, 8), (0.1, 0)])
def test_a_share_of_the_batch_is_varied(share, count):
    images = batch()
    vary(images, share, generator())
    assert sum(changed(images)) == count


def test_pictures_stay_pictures():
    images = batch(64)
    vary(images, 1.0, generator())
    assert images.shape == (64, 3, 24, 32) and torch.isfinite(images).all()
    assert images.min() >= 0 and images.max() <= 1
    assert 0.2 < images.mean() < 0.8


def test_the_generator_decides():
    one, same, other = batch(), batch(), batch()
    for images, seed in ((one, 1), (same, 1), (other, 2)):
        vary(images, 0.5, generator(seed))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("change", appearance._CHANGES)
def test_every_change_changes_and_is_random(change):
    image = batch(1)[0]
    first, second = change(image, generator(1)), change(image, generator(2))
    assert first.shape == image.shape
    assert not torch.equal(first, image) and not torch.equal(first, second)
    assert torch.equal(image, batch(1)[0])  # the picture itself is left as it is
