"""A unit that is left out changes the batches of its own run only, so that rounding does not grow with the cohort."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedveil.learning import NetworkLearner, NetworkModel, unit_batches
from fedveil.learning.padded_batches import SIZE, filled_up
from fedveil.learning.unit_batches import first_of_runs


class Images:
    def __init__(self, pixels):
        self.pixels = pixels
        self.read_rows = 0

    def read(self, indices):
        self.read_rows += len(indices)
        return self.pixels[indices]


def batches_of(names, sizes, first, limit):
    """Each batch as the set of its units' names."""
    found = unit_batches.unit_batches(sizes, first, limit)
    return [tuple(names[part]) for part in found]


@given(st.integers(0, 2**32 - 1), st.integers(2, 400), st.integers(1, 40), st.integers(5, 60))
def test_batches_beyond_the_run_stay_as_they_are(seed, units, limit, every):
    generator = np.random.default_rng(seed)
    names, sizes = np.arange(units), generator.integers(1, 6, units)
    first = generator.random(units) < 1 / every
    whole = batches_of(names, sizes, first, limit)
    assert [name for batch in whole for name in batch] == list(names)
    assert all(sizes[list(batch)].sum() <= limit or len(batch) == 1 for batch in whole)
    gone = int(generator.integers(units))
    kept = names != gone
    less = batches_of(names[kept], sizes[kept], first[kept], limit)
    run = np.cumsum(first)
    near = {run[gone], run[gone] - 1} if first[gone] else {run[gone]}
    for batch in set(whole) ^ set(less):
        assert {run[name] for name in batch} <= near, "a batch of another run changed"


def test_where_runs_begin_follows_from_each_unit_alone():
    generator = np.random.default_rng(0)
    pixels = generator.random((3000, 1, 2, 2)).astype(np.float32)
    labels, groups = generator.integers(0, 2, 3000), np.arange(3000) // 2
    whole = first_of_runs(Images(pixels).read, labels, groups, 7)
    assert 1500 / unit_batches.EVERY / 3 < whole.sum() < 1500 / unit_batches.EVERY * 3
    kept = groups != 40
    less = first_of_runs(
        Images(pixels[kept]).read, labels[kept], np.unique(groups[kept], return_inverse=True)[1], 64
    )
    np.testing.assert_array_equal(less, np.delete(whole, 40))
    shuffled = generator.permutation(1500)
    again = first_of_runs(Images(pixels).read, labels, shuffled[groups], 64)
    np.testing.assert_array_equal(again[shuffled], whole)


def test_a_network_changes_few_of_many_units(monkeypatch):
    """With batches filled one after the other, every batch behind the unit that is gone is summed anew."""
    monkeypatch.setattr(unit_batches, "EVERY", 16)
    monkeypatch.setattr("fedveil.learning.models.network.BATCH", SIZE)
    model = NetworkModel("cnn", classes=2, channels=1, image_size=8)
    generator, count = np.random.default_rng(3), 400
    pixels = generator.random((count, 1, 8, 8)).astype(np.float32)
    labels = generator.integers(0, 2, count)
    seen: list[set[bytes]] = []

    def watched(images, *rest):
        seen[-1].add(images.numpy().tobytes())
        return filled_up(images, *rest)

    monkeypatch.setattr("fedveil.learning.models.network.filled_up", watched)

    def batches(rows):
        seen.append(set())
        learner = NetworkLearner(model, Images(pixels[rows]), labels[rows], np.arange(len(rows)))
        learner.contribution(model.join(None, model.initial()), clip_norm=1.0)
        return seen[-1]

    rows = np.arange(count)
    whole = batches(rows)
    for gone in (0, 5, 200):
        less = batches(np.delete(rows, gone))
        assert len(whole - less) <= len(whole) / 3
        assert len(less - whole) <= len(whole) / 3


def test_images_are_read_once_more_for_it():
    model = NetworkModel("cnn", classes=2, channels=1, image_size=8)
    images = Images(np.random.default_rng(0).random((50, 1, 8, 8)).astype(np.float32))
    learner = NetworkLearner(model, images, np.arange(50) % 2, np.arange(50))
    for rounds in (1, 2, 3):
        learner.contribution(model.join(None, model.initial()), clip_norm=1.0)
        assert images.read_rows == 50 * (rounds + 1)


@pytest.mark.parametrize(("count", "shown"), [(0, 0), (1, SIZE), (SIZE, SIZE), (SIZE + 1, 2 * SIZE)])
def test_batches_come_in_few_shapes(count, shown):
    images, labels, members, weights = filled_up(
        torch.ones(count, 1, 2, 2),
        torch.zeros(count, dtype=torch.int64),
        torch.zeros(count, dtype=torch.int64),
    )
    assert len(images) == len(labels) == len(members) == len(weights) == shown
    assert weights.sum() == count
    assert len(members[count:].unique()) == shown - count
