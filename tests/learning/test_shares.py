"""How many units a model has right: one number a unit, whatever its images, as a plain loop counts it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedveil.learning import CentredHead, CentredLearner, NetworkLearner, NetworkModel, network_learner
from fedveil.learning.shares import hits, image_shares


def by_hand(probabilities, labels, groups, priors, units):
    total = 0.0
    for unit in units:
        rows = np.flatnonzero(groups == unit)
        total += np.mean([np.argmax(probabilities[row] / priors) == labels[row] for row in rows])
    return total


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(2, 4))
def test_hits_are_what_a_loop_over_units_counts(seed, units, classes):
    generator = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(units), generator.integers(0, units, 12)])
    probabilities = generator.dirichlet(np.ones(classes), len(groups))
    labels, priors = generator.integers(0, classes, len(groups)), generator.dirichlet(np.ones(classes)) + 0.01
    taking_part = np.flatnonzero(generator.random(units) < 0.5)
    for chosen in (None, taking_part):
        expected = by_hand(probabilities, labels, groups, priors, range(units) if chosen is None else chosen)
        found = hits(probabilities, labels, groups, priors, chosen)
        assert found.shape == (1,)
        assert found[0] == pytest.approx(expected)


def test_shares_sum_to_one_within_a_unit_that_takes_part():
    groups = np.array([0, 0, 0, 1, 2, 2])
    np.testing.assert_allclose(np.bincount(groups, image_shares(groups)), [1, 1, 1])
    np.testing.assert_allclose(np.bincount(groups, image_shares(groups, np.array([0, 2]))), [1, 0, 1])


def linear(rows, unit):
    generator = np.random.default_rng(1)
    features = generator.normal(size=(40, 5)).astype(np.float32)
    labels, patients = generator.integers(0, 2, 40), np.arange(40) % 9
    model = CentredHead([5], 2)
    whole = np.concatenate([[0.4, 0.6], model.join(None, generator.normal(size=model.trained))])
    kept = np.unique(patients[rows], return_inverse=True)[1]
    return CentredLearner(model, features[rows], labels[rows], kept, unit=unit), whole


def deep(rows, unit, monkeypatch):
    small = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    monkeypatch.setattr(network_learner, "network", lambda *_, **__: small)
    model = NetworkModel("cnn", classes=2, channels=1, image_size=4, seed=0)
    generator = np.random.default_rng(2)
    images = generator.random((40, 1, 4, 4), dtype=np.float32)
    labels, patients = generator.integers(0, 2, 40), np.arange(40) % 9
    whole = np.concatenate([[0.4, 0.6], generator.normal(size=model.parameters)])

    class Source:
        def read(self, indices):
            return images[rows][indices]

    return NetworkLearner(model, Source(), labels[rows], patients[rows], unit=unit), whole


@pytest.mark.parametrize("unit", ["patient", "image", "site"])
@pytest.mark.parametrize("kind", ["linear", "deep"])
def test_one_unit_moves_the_count_by_one_at_most(kind, unit, monkeypatch):
    """Take away any patient with all of their images: the sum moves by no more than the norm of 1 that is priced."""
    everyone = np.arange(40)

    def make(rows):
        return linear(rows, unit) if kind == "linear" else deep(rows, unit, monkeypatch)

    learner, whole = make(everyone)
    total = learner.hits(whole)
    assert total.shape == (1,)
    assert 0 <= total[0] <= learner.units
    moved = []
    for patient in range(9):
        fewer, _ = make(everyone[everyone % 9 != patient])
        moved.append(abs(total[0] - fewer.hits(whole)[0]))
    assert max(moved) > 0
    assert max(moved) <= (5 if unit == "image" else 1)
    assert learner.hits(whole, np.empty(0, dtype=np.int64))[0] == 0
