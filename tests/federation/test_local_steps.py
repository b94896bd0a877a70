"""Federated averaging at a site: what its local steps are, what they cost, and what may leave."""

from dataclasses import replace

import numpy as np
import pytest
from tests.federation.toy import DIMENSION, make_agreement

from fedveil.errors import InvalidValue
from fedveil.federation import Coordinator, LocalSteps, Reply, Request
from fedveil.federation.queries import LocalStepsQuery
from fedveil.privacy import IntegerMechanism, Mechanism, epsilon

LOCAL = LocalSteps(steps=4, learning_rate=0.5, units=20.0, proximal=0.3, clip_norm=1.0, reach=5.0)


def averaging(trust="site", rounds=2, local=LOCAL, noise=100.0, unit="patient", **changes):
    agreement = make_agreement("server" if trust == "secure-aggregation" else trust, **changes)
    steps = rounds * (1 if unit == "site" else local.steps)
    mechanism = Mechanism(noise, 1.0, steps, changes.get("sampling_rate", 1.0), unit)
    integer = None
    if trust == "secure-aggregation":
        carrier = Mechanism(1e-5, local.reach, rounds)
        integer = IntegerMechanism.fit(carrier, dimension=DIMENSION, sites=5, shares=3, units=1)
    (release,) = agreement.releases
    release = replace(release, mechanism=mechanism, integer=integer, query=LocalStepsQuery(local))
    return replace(agreement, target=replace(agreement.target, trust=trust, unit=unit), releases=(release,))


def request(agreement, **changes):
    values = {
        "study": agreement.digest,
        "release": "local-steps",
        "round": 1,
        "attempt": 1,
        "participants": agreement.sites,
        "parameters": np.zeros(DIMENSION),
    }
    return Request(**(values | changes))


def by_hand(rows, start, local):
    norms = np.maximum(1, np.linalg.norm(rows, axis=1, keepdims=True))
    total, x = (rows / norms).sum(axis=0), start.copy()
    for _ in range(local.steps):
        x = x - local.learning_rate * (total / local.units + local.proximal * (x - start))
    return x - start


def test_without_privacy_a_site_answers_with_what_its_steps_come_to(federate):
    agreement = averaging("none", noise=0.0)
    federation = federate(agreement)
    start = np.arange(DIMENSION, dtype=float)
    answer = federation.sites["site-1"].handle(request(agreement, parameters=start))
    expected = by_hand(federation.learners["site-1"].rows, start, LOCAL)
    np.testing.assert_allclose(answer.vector, expected, rtol=1e-12)


@pytest.mark.parametrize("trust", ["site", "server", "secure-aggregation"])
def test_charge_matches_steps_executed(federate, trust):
    """Each local step is one step of the mechanism, executed and charged, whatever the trust."""
    agreement = averaging(trust)
    federation = federate(agreement)
    coordinator = Coordinator(agreement, federation.transport)
    release = agreement.release("local-steps")
    for number in (1, 2):
        coordinator.collect(release, number, np.zeros(DIMENSION))
    executed = len(federation.learners["site-1"].seen)
    charges = federation.ledgers["site-1"].state.charges
    assert executed == 8 == sum(charge.mechanism.steps for charge in charges)
    price = epsilon([release.mechanism], 1e-5)
    assert federation.ledgers["site-1"].spent() == pytest.approx(price, rel=1e-6)
    assert coordinator.epsilon_spent() == pytest.approx(price, rel=1e-6)
    assert agreement.alone(release) == release.mechanism


@pytest.mark.parametrize("trust", ["site", "server", "secure-aggregation"])
def test_every_local_step_has_the_whole_noise_at_every_site(federate, trust):
    """Noise in local steps cannot be shared: the variance of the sum is that of all sites' whole noise."""
    rounds = 150
    local = replace(LOCAL, proximal=0.0, reach=1e4)
    agreement = averaging(trust, rounds=rounds, local=local, noise=1000.0)
    federation = federate(agreement, epsilon=1000.0)
    coordinator = Coordinator(agreement, federation.transport)
    release = agreement.release("local-steps")
    totals = [coordinator.collect(release, r, np.zeros(DIMENSION)).total for r in range(1, rounds + 1)]
    step = release.mechanism.noise_std * local.learning_rate / local.units
    measured = np.var(totals) / (5 * local.steps * step**2)
    assert measured == pytest.approx(1, rel=5 * np.sqrt(2 / (rounds * DIMENSION)))


def test_sampling_executed_is_sampling_accounted(federate):
    """Each local step draws a fresh Poisson sample at the rate that the ledger is charged for."""
    agreement = averaging("site", rounds=50, sampling_rate=0.3)
    federation = federate(agreement, units=40, epsilon=1000.0)
    for attempt in range(1, 51):
        federation.sites["site-1"].handle(request(agreement, attempt=attempt, round=attempt))
    seen = federation.learners["site-1"].seen
    sizes = np.array([len(units) for units in seen])
    assert len(seen) == 200
    assert len({tuple(units) for units in seen}) > 190
    assert sizes.mean() == pytest.approx(12, abs=5 * np.sqrt(40 * 0.3 * 0.7 / 200))
    assert sizes.var() == pytest.approx(40 * 0.3 * 0.7, rel=0.6)
    assert {c.mechanism.sampling_rate for c in federation.ledgers["site-1"].state.charges} == {0.3}


def test_a_whole_sites_difference_is_clipped_and_priced_once_a_round(federate):
    local = replace(LOCAL, learning_rate=50.0, proximal=0.0)
    agreement = averaging("none", noise=0.0, unit="site", local=local)
    federation = federate(agreement)
    answer = federation.sites["site-1"].handle(request(agreement))
    raw = by_hand(federation.learners["site-1"].rows, np.zeros(DIMENSION), local)
    assert np.linalg.norm(raw) > 1
    np.testing.assert_allclose(answer.vector, raw / np.linalg.norm(raw), rtol=2e-12)
    assert agreement.release("local-steps").steps_per_round == 1
    federation.learners["site-1"].rows[:] = np.nan
    answer = federation.sites["site-1"].handle(request(agreement, attempt=2, round=2))
    assert isinstance(answer, Reply)
    assert not answer.vector.any(), "what is not finite counts as nothing"


def test_terms_that_differ_in_local_steps_differ_in_their_digest():
    assert averaging().digest != averaging(local=replace(LOCAL, units=21.0)).digest


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"learning_rate": -1.0}, {"units": np.nan}, {"proximal": -0.1}]
)
def test_impossible_local_steps_are_refused(change):
    with pytest.raises(InvalidValue, match=next(iter(change))):
        replace(LOCAL, **change)


def test_sites_are_not_sampled_in_averaging():
    with pytest.raises(InvalidValue, match="takes all its local steps"):
        averaging("server", unit="site", sampling_rate=0.5)
