import math

import numpy as np
import pytest
import scipy.stats
from tests.federation.toy import DIMENSION, make_agreement

from fedveil.errors import FederationError, InvalidValue
from fedveil.federation import BudgetSpent, Coordinator, InProcess, Reply, Site, default_min_honest
from fedveil.privacy import epsilon

ZERO = np.zeros(DIMENSION)


def totals(federation, rounds):
    """Noise in the sums of many rounds: what was collected minus the exact sum."""
    agreement = federation.agreement
    coordinator = Coordinator(agreement, federation.transport)
    release = agreement.release("training")
    return np.array([coordinator.collect(release, r, ZERO).total for r in range(1, rounds + 1)])


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "server"])
def test_public_weights_bound_sensitivity(federate, trust):
    """Every site's sum has weight one whatever its size, and the noise is that of the terms."""
    rounds = 400
    agreement = make_agreement(trust, rounds=rounds, noise=100.0)
    noise = totals(federate(agreement, epsilon=100.0), rounds)
    mechanism = agreement.release("training").mechanism
    expected = {
        "site": 5 * mechanism.noise_std**2,
        "secure-aggregation": 5 / 3 * mechanism.noise_std**2,
        "server": mechanism.noise_std**2,
    }[trust]
    assert noise.var() / expected == pytest.approx(1, abs=5 * math.sqrt(2 / noise.size))


def test_noise_is_not_reproducible(federate):
    noise = totals(federate(make_agreement(rounds=2, noise=100.0), epsilon=100.0), 2)
    assert not np.isclose(noise[0], noise[1]).any()


def test_noise_holds_under_dropout(federate):
    """With one of five sites gone, the survivors' shares, less any curious one's, still carry the whole noise."""
    rounds = 400
    agreement = make_agreement("secure-aggregation", rounds=rounds, noise=100.0)
    federation = federate(agreement, epsilon=100.0)
    federation.silent.add("site-3")
    coordinator = Coordinator(agreement, federation.transport)
    release = agreement.release("training")
    collected = [coordinator.collect(release, r, ZERO) for r in range(1, rounds + 1)]
    assert all("site-3" not in one.survivors for one in collected)
    assert collected[0].dropped[0].site == "site-3"
    noise = np.array([one.total for one in collected])
    measured = noise.var() / release.mechanism.noise_std**2
    assert measured == pytest.approx(4 / 3, rel=5 * math.sqrt(2 / noise.size))
    assert measured * (4 - 1) / 4 == pytest.approx(1, rel=5 * math.sqrt(2 / noise.size))


def test_masked_replies_hide_the_contribution(federate):
    """What one site sends has nothing to do with its rows for anyone who lacks the masks: it is uniform."""
    agreement = make_agreement("secure-aggregation", rounds=300, noise=100.0)
    federation = federate(agreement, epsilon=100.0)
    seen = []

    class Listening(InProcess):
        def exchange(self, requests):
            answers = super().exchange(requests)
            seen.extend(a.vector for a in answers.values() if isinstance(a, Reply) and a.site == "site-1")
            return answers

    coordinator = Coordinator(agreement, Listening(list(federation.sites.values())))
    for round_number in range(1, 301):
        coordinator.collect(agreement.release("training"), round_number, ZERO)
    words = np.concatenate(seen).astype(np.float64) / 2**32
    assert words.size == 300 * DIMENSION
    assert scipy.stats.kstest(words, "uniform").pvalue > 1e-6


def test_an_abandoned_attempt_is_charged_and_not_opened(federate):
    agreement = make_agreement("secure-aggregation", min_sites=5)
    federation = federate(agreement)
    federation.silent.add("site-3")
    coordinator = Coordinator(agreement, federation.transport)
    with pytest.raises(FederationError, match=r"site-3 \(failed\)"):
        coordinator.collect(agreement.release("training"), 1, ZERO)
    assert coordinator.charged == {"training": 1}
    one = epsilon([agreement.release("training").mechanism.with_steps(1)], 1e-5)
    assert coordinator.epsilon_spent() == one
    assert federation.ledgers["site-1"].spent() == pytest.approx(one)


def test_a_site_lost_before_the_session_is_left_out_of_it(federate):
    agreement = make_agreement("secure-aggregation")
    federation = federate(agreement)
    del federation.sites["site-5"]

    class Partial(InProcess):
        def exchange(self, requests):
            return super().exchange({name: r for name, r in requests.items() if name in federation.sites})

    coordinator = Coordinator(agreement, Partial(list(federation.sites.values())))
    collected = coordinator.collect(agreement.release("training"), 1, ZERO)
    assert set(collected.survivors) == set(agreement.sites) - {"site-5"}
    exact = sum(federation.learners[name].contribution(ZERO, clip_norm=1.0) for name in collected.survivors)
    assert np.linalg.norm(collected.total - exact) < 40 * agreement.release("training").mechanism.noise_std


def test_without_privacy_the_sum_is_exact(federate):
    agreement = make_agreement("none", noise=0.0)
    federation = federate(agreement)
    total = Coordinator(agreement, federation.transport).collect(agreement.release("training"), 1, ZERO).total
    exact = sum(learner.contribution(ZERO, clip_norm=1.0) for learner in federation.learners.values())
    np.testing.assert_allclose(total, exact, rtol=1e-12)


def test_training_ends_when_budgets_are_spent(federate):
    agreement = make_agreement(rounds=3)
    budget = epsilon([agreement.release("training").mechanism.with_steps(3)], 1e-5)
    federation = federate(agreement, epsilon=budget)
    coordinator = Coordinator(agreement, federation.transport)
    release = agreement.release("training")
    for _ in range(3):
        coordinator.collect(release, 1, ZERO)
    with pytest.raises(BudgetSpent):
        coordinator.collect(release, 2, ZERO)


def test_too_few_sites_end_the_run_with_their_names(federate):
    agreement = make_agreement("site", min_sites=4)
    federation = federate(agreement)
    for name in ("site-1", "site-2"):
        federation.silent.add(name)
    with pytest.raises(FederationError, match=r"site-1 \(failed\), site-2 \(failed\)"):
        Coordinator(agreement, federation.transport).collect(agreement.release("training"), 1, ZERO)


def test_a_site_that_recovers_is_asked_again(federate):
    agreement = make_agreement("site", rounds=20)
    federation = federate(agreement)
    coordinator = Coordinator(agreement, federation.transport)
    release = agreement.release("training")
    federation.silent.add("site-2")
    assert "site-2" not in coordinator.collect(release, 1, ZERO).survivors
    federation.silent.discard("site-2")
    later = [coordinator.collect(release, number, ZERO).survivors for number in range(2, 8)]
    assert "site-2" in later[-1]


class Restarting(InProcess):
    """A transport to sites of which one is restarted, on its old ledger, before an exchange is answered."""

    def __init__(self, federation, site, at):
        super().__init__(list(federation.sites.values()))
        self.federation, self.site, self.at = federation, site, at

    def exchange(self, requests):
        self.at -= 1
        if self.at == 0:
            old = self.federation.sites[self.site]
            learner = self.federation.learners[old.name]
            new = Site(old.name, learner, old._policy, old._ledger, old._identity)
            new.admit(self.federation.agreement)
            self._sites[self.site] = new
        return super().exchange(requests)


@pytest.mark.parametrize("sites", [3, 5])
@pytest.mark.parametrize("at", range(1, 9))
def test_a_site_restarted_at_any_moment_joins_another_session(federate, sites, at):
    """With three hospitals none can be spared. Set-up is exchanges 1 to 3, round 1 is 4 and 5, round 2 is 6 and 7."""
    agreement = make_agreement("secure-aggregation", sites=sites, rounds=9)
    federation = federate(agreement)
    coordinator = Coordinator(agreement, Restarting(federation, "site-2", at))
    release = agreement.release("training")
    survivors = [coordinator.collect(release, number, ZERO).survivors for number in range(1, 9)]
    assert all("site-2" in one for one in survivors[-2:])
    assert coordinator.charged["training"] <= 9, "at most one round is charged twice"
    charges = federation.ledgers["site-2"].state.charges
    took_part = {number for number, one in enumerate(survivors, 1) if "site-2" in one}
    assert took_part <= {charge.round for charge in charges}
    assert len(charges) <= 9


class Tampering(InProcess):
    """A transport whose second site answers something else."""

    def __init__(self, federation, change):
        super().__init__(list(federation.sites.values()))
        self.change = change

    def exchange(self, requests):
        answers = dict(super().exchange(requests))
        if "site-2" in answers:
            answers["site-2"] = self.change(answers["site-2"])
            if answers["site-2"] is None:
                del answers["site-2"]
        return answers


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda reply: None, "unreachable"),
        (lambda reply: _with(reply, vector=reply.vector[:-1]), "invalid"),
        (lambda reply: _with(reply, vector=reply.vector * np.nan), "invalid"),
        (lambda reply: _with(reply, vector=np.full(DIMENSION, 1e12)), "invalid"),
        (lambda reply: _with(reply, vector=np.zeros(DIMENSION, dtype=np.uint32)), "invalid"),
        (lambda reply: _with(reply, round=99), "invalid"),
        (lambda reply: _with(reply, site="site-1"), "invalid"),
    ],
)
def test_a_bad_reply_excludes_its_site_and_nobody_else(federate, change, reason):
    agreement = make_agreement("site")
    federation = federate(agreement)
    coordinator = Coordinator(agreement, Tampering(federation, change))
    collected = coordinator.collect(agreement.release("training"), 1, ZERO)
    assert [(d.site, d.reason) for d in collected.dropped] == [("site-2", reason)]
    assert set(collected.survivors) == set(agreement.sites) - {"site-2"}


def _with(reply, **changes):
    values = {name: getattr(reply, name) for name in type(reply).__slots__}
    return type(reply)(**(values | changes))


def test_terms_that_cannot_hold_are_refused():
    with pytest.raises(InvalidValue, match="secure aggregation needs 3"):
        make_agreement("secure-aggregation", sites=2, min_sites=2)
    with pytest.raises(InvalidValue, match="min_honest is 5"):
        make_agreement("secure-aggregation", min_honest=5)
    with pytest.raises(InvalidValue, match="min_sites is 6"):
        make_agreement(min_sites=6)
    with pytest.raises(InvalidValue, match="different names"):
        make_terms_named("a", "a")


def make_terms_named(*names):
    agreement = make_agreement()
    return type(agreement)(
        name="toy",
        settings={},
        sites=names,
        target=agreement.target,
        releases=agreement.releases,
        min_sites=1,
    )


@pytest.mark.parametrize("participants", range(3, 60))
def test_honest_shares_leave_room_for_a_curious_peer(participants):
    honest = default_min_honest(participants)
    survivors = 2 * participants // 3 + 1  # what a third of lost sites leaves
    assert 1 <= honest < survivors <= participants


def test_any_honest_shares_carry_the_whole_noise():
    agreement = make_agreement("secure-aggregation")
    mechanism = agreement.release("training").mechanism
    share = agreement.noise_std(agreement.main)
    assert agreement.honest * share**2 == pytest.approx(mechanism.noise_std**2)
    alone = agreement.alone(agreement.release("training"))
    assert alone.noise_multiplier == pytest.approx(mechanism.noise_multiplier / math.sqrt(3))
    assert agreement.epsilon_alone() > epsilon([mechanism], 1e-5)
