"""A hospital's own model: private steps from the common one, charged to its ledger, and nobody else's business."""

from dataclasses import replace

import numpy as np
import pytest
from tests.federation.toy import DIMENSION, make_agreement

from fedveil.errors import BudgetExceeded
from fedveil.federation import Declined, LocalSteps, Release, Request
from fedveil.federation.queries import OwnModelQuery, OwnThresholdQuery
from fedveil.privacy import Mechanism, epsilon

OWN = LocalSteps(steps=6, learning_rate=0.5, units=20.0, proximal=0.3, reach=1e9)


def personal(trust, noise=100.0):
    agreement = make_agreement(trust)
    own = Release(
        query=OwnModelQuery(OWN),
        mechanism=Mechanism(noise, 1.0, OWN.steps),
        dimension=DIMENSION,
        parameters=DIMENSION,
    )
    return replace(agreement, releases=(*agreement.releases, own))


def make_own(site, agreement, start):
    """The parameters of the hospital's own model."""
    return start + site.make_own(agreement.digest, OwnModelQuery.name, start).total


def recalibrated(site, agreement):
    return site.make_own(agreement.digest, OwnThresholdQuery.name, np.zeros(DIMENSION)).total


def by_hand(rows, start):
    norms = np.maximum(1, np.linalg.norm(rows, axis=1, keepdims=True))
    total, x = (rows / norms).sum(axis=0), start.copy()
    for _ in range(OWN.steps):
        x = x - OWN.learning_rate * (total / OWN.units + OWN.proximal * (x - start))
    return x


def test_without_noise_it_is_what_the_steps_come_to(federate):
    agreement = personal("none", noise=0.0)
    federation, start = federate(agreement), np.arange(DIMENSION, dtype=float)
    own = make_own(federation.sites["site-1"], agreement, start)
    np.testing.assert_allclose(own, by_hand(federation.learners["site-1"].rows, start), rtol=1e-12)


@pytest.mark.parametrize("trust", ["site", "server", "secure-aggregation"])
def test_it_has_the_whole_noise_and_is_charged_once_whatever_the_trust(federate, trust):
    agreement = personal(trust)
    federation = federate(agreement)
    start = np.zeros(DIMENSION)
    own = make_own(federation.sites["site-2"], agreement, start)
    moved = own - by_hand(federation.learners["site-2"].rows, start)
    # The noise of step s is damped by the pull in the steps after it.
    damped = (1 - OWN.learning_rate * OWN.proximal) ** (2 * np.arange(OWN.steps))
    std = 100.0 * OWN.learning_rate / OWN.units * np.sqrt(damped.sum())
    assert 0.15 * std < np.sqrt(np.mean(moved**2)) < 2.6 * std  # six numbers only: wrong once in 20,000 runs
    (charge,) = federation.ledgers["site-2"].state.charges
    assert charge.mechanism == Mechanism(100.0, 1.0, OWN.steps)
    assert charge.label.startswith(OwnModelQuery.name)


def test_it_is_made_once(federate):
    agreement = personal("site", noise=8.0)
    spent = epsilon([one.mechanism for one in agreement.releases], 1e-5)
    federation = federate(agreement, epsilon=spent)
    site = federation.sites["site-1"]
    make_own(site, agreement, np.zeros(DIMENSION))
    with pytest.raises(BudgetExceeded):
        make_own(site, agreement, np.zeros(DIMENSION))


def recalibrating(trust, noise=50.0):
    agreement = make_agreement(trust)
    own = Release(
        query=OwnThresholdQuery(), mechanism=Mechanism(noise, 1.0, 1), dimension=2, parameters=DIMENSION
    )
    return replace(agreement, releases=(*agreement.releases, own))


@pytest.mark.parametrize("trust", ["site", "server", "secure-aggregation"])
def test_own_statistics_have_the_whole_noise_and_are_charged_once_whatever_the_trust(federate, trust):
    agreement = recalibrating(trust)
    federation, found = federate(agreement), []
    for name in agreement.sites:
        site = federation.sites[name]
        half = federation.learners[name].units / 2
        found += list(recalibrated(site, agreement) - half)
        with pytest.raises(BudgetExceeded, match="charged"):
            recalibrated(site, agreement)
        (charge,) = federation.ledgers[name].state.charges
        assert charge.mechanism == charge.alone == Mechanism(50.0, 1.0, 1)
    assert 0.25 * 50 < np.sqrt(np.mean(np.square(found))) < 2 * 50  # ten numbers: wrong once in 40,000 runs


def test_own_statistics_without_noise_are_exact(federate):
    agreement = recalibrating("none", noise=0.0)
    federation = federate(agreement)
    half = federation.learners["site-1"].units / 2
    found = recalibrated(federation.sites["site-1"], agreement)
    np.testing.assert_array_equal(found, [half, half])


@pytest.mark.parametrize(
    ("make", "release"), [(personal, OwnModelQuery.name), (recalibrating, OwnThresholdQuery.name)]
)
def test_a_coordinator_cannot_ask_for_what_hospitals_keep(federate, make, release):
    agreement = make("site")
    federation = federate(agreement)
    request = Request(
        study=agreement.digest,
        release=release,
        round=1,
        attempt=1,
        participants=agreement.sites,
        parameters=np.zeros(DIMENSION),
    )
    answer = federation.sites["site-1"].handle(request)
    assert isinstance(answer, Declined)
    assert answer.code == "refused"
    assert not federation.ledgers["site-1"].state.charges
