import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fedveil.learning.crops import SMALLEST, crop, crop_version

RAMP = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (40, 1, 32, 1))
RAMP[:, 0, 0, 0] += np.arange(40) / 10_000
"""Nearly the same picture many times; no two have the same pixels."""


def test_crops_are_the_same_at_every_run_and_differ_between_images_and_views():
    first = crop(RAMP, 1, flip=True)
    assert_array_equal(crop(RAMP, 1, flip=True), first)
    assert_array_equal(crop(RAMP[7:9], 1, flip=True), first[7:9])
    assert len(np.unique(first.reshape(40, -1), axis=0)) == 40
    assert not np.array_equal(crop(RAMP, 2, flip=True), first)


def test_a_crop_shows_a_part_of_the_image_at_full_size():
    slopes = np.diff(crop(RAMP, 1, flip=False)[:, 0, 16, 4:28], axis=1).mean(axis=1) * 31
    assert slopes.min() > SMALLEST - 0.02
    assert slopes.max() < 1.01
    assert slopes.std() > 0.02


def test_half_of_the_crops_are_mirrored_if_asked_for():
    def rising(flip: bool) -> float:
        seen = crop(RAMP, 1, flip=flip)
        return float((seen[:, 0, 16, -1] > seen[:, 0, 16, 0]).mean())

    assert rising(False) == 1.0
    assert 0.25 < rising(True) < 0.75
    assert crop_version(1, True) != crop_version(1, False) != crop_version(2, False)


def test_no_images_have_no_crops():
    assert crop(RAMP[:0], 1, flip=True).shape == (0, 1, 32, 32)


@pytest.mark.parametrize("channels", [1, 3])
def test_values_stay_pixels(channels):
    images = np.random.default_rng(0).random((5, channels, 16, 16), dtype=np.float32)
    cut = crop(images, 3, flip=True)
    assert cut.shape == images.shape
    assert cut.dtype == np.float32
    assert cut.min() >= 0
    assert cut.max() <= 1
