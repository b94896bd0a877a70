"""The theorems, and the traps that audits have fallen into: each test fails for an audit that falls into one."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr, ndtri

from fedveil.audit.claims import EpsilonClaim, MechanismClaim
from fedveil.audit.evidence import OneRun, TwoWorlds, choose_guesses, choose_threshold, guess, judge
from fedveil.audit.one_run import coins
from fedveil.audit.statistics import excluded_by_curve, one_run_p_value, rate_above, rate_below
from fedveil.privacy import Guarantee, Mechanism, calibrate, delta_at, most_true_positives

DELTA = 1e-5
NULL = MechanismClaim((Mechanism(1e6, 1.0, 1),), DELTA)
"""A claim that allows next to nothing: any bound above it on scores without a signal is a false alarm."""


def one_sum(epsilon: float) -> tuple[MechanismClaim, EpsilonClaim, float]:
    mechanism = calibrate(Guarantee(epsilon, DELTA, "patient", "server"), steps=1)
    return MechanismClaim((mechanism,), DELTA), EpsilonClaim(epsilon, DELTA), 1 / mechanism.noise_multiplier


@pytest.mark.parametrize(("found", "trials"), [(0, 30), (3, 30), (29, 30), (30, 30)])
def test_rates_are_bounded_exactly(found, trials):
    interval = stats.binomtest(found, trials).proportion_ci(0.9, "exact")
    assert float(rate_above(found, trials, 0.05)) == pytest.approx(interval.high, abs=1e-9)
    assert float(rate_below(found, trials, 0.05)) == pytest.approx(interval.low, abs=1e-9)


def test_both_error_rates_share_the_significance():
    """Not the whole of it each: then both bounds hold at once less often than stated."""
    false, true = TwoWorlds(5, 100, 60, 100).bounds(0.05)
    assert false == pytest.approx(float(rate_above(5, 100, 0.025)))
    assert true == pytest.approx(1 - float(rate_above(40, 100, 0.025)))


def test_a_threshold_is_not_judged_on_the_scores_that_chose_it():
    """Without a signal the best threshold of the same scores often 'proves' something; on other scores it does not."""
    generator = np.random.default_rng(0)
    cheating = honest = 0
    for _ in range(100):
        without, within = generator.normal(size=(2, 200))
        same = choose_threshold(without, within, NULL, 0.1)
        wrong = TwoWorlds(int((without >= same).sum()), 200, int((within >= same).sum()), 200)
        cheating += wrong.leak(NULL, 0.1) > 1
        honest += judge(without, within, NULL, 0.1).leak(NULL, 0.1) > 1
    assert honest <= 10 < cheating


def test_a_test_below_chance_proves_nothing():
    """An absolute value of mu, or of a log ratio, would turn wide error bounds into a large epsilon."""
    for evidence in (TwoWorlds(50, 100, 50, 100), TwoWorlds(2, 3, 1, 3), TwoWorlds(90, 100, 10, 100)):
        assert evidence.leak(one_sum(1)[0], 0.05) == 0
        assert evidence.leak(one_sum(1)[1], 0.05) == 0


def test_coins_are_independent_and_not_half_of_the_canaries():
    heads = [int(coins(100).sum()) for _ in range(50)]
    assert len(set(heads)) > 5
    assert abs(sum(heads) - 2500) < 5 * math.sqrt(5000 / 4)


def test_canaries_of_one_run_are_not_independent_trials():
    """A mechanism that reveals everything, with probability delta = 0.02, is (0, 0.02)-private: intervals over its
    canaries would exclude that in 2 of 100 runs at any significance, and the theorem does not."""
    claim = EpsilonClaim(1e-3, 0.02)
    everything = OneRun(200, 200, 200, 100)
    naive = float(rate_below(200, 200, 1e-6))
    assert naive > 0.9
    assert not claim.excluded_by_guesses(200, 200, 200, 0.01, 1.0)
    assert everything.leak(EpsilonClaim(1.0, 1e-9), 0.01) > 1


def test_guesses_are_fixed_before_the_coins_are_compared():
    scores, included = np.arange(10.0), np.array([0, 1] * 5, dtype=bool)
    assert guess(scores, included, 4) == OneRun(10, 4, 2, 1)


def test_as_many_guesses_are_made_as_prove_most_in_nine_of_ten_runs():
    """Few guesses prove more on average and less reliably: of 1000 canaries, 100 guesses are not the best choice."""
    claim, _, mu = one_sum(4)
    generator = np.random.default_rng(0)
    included = generator.random(1000) < 0.5
    chosen = choose_guesses(generator.normal(size=1000) + mu * included, included, claim, 0.05)
    assert chosen in (200, 350)


def test_one_run_p_value_is_the_formula_of_the_paper():
    """Appendix D, by its own loop."""

    def paper(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
        q = 1 / (1 + math.exp(-epsilon))
        beta, alpha, total = stats.binom.sf(v - 1, r, q), 0.0, 0.0
        for i in range(1, v + 1):
            total += stats.binom.pmf(v - i, r, q)
            alpha = max(alpha, total / i)
        return min(1.0, beta + alpha * delta * 2 * m)

    for case in ((100, 50, 40, 0.5, 1e-3), (1000, 1000, 700, 0.7, 1e-5), (20, 10, 10, 1.0, 0.0)):
        assert one_run_p_value(*case) == pytest.approx(paper(*case), rel=1e-9)


@pytest.mark.parametrize("epsilon", [1, 4])
def test_no_theorem_excludes_a_sound_mechanism_more_often_than_stated(epsilon):
    """The Gaussian mechanism itself, on 100 audits of each kind at 90 %: some 10 may be wrong."""
    claim, plain, mu = one_sum(epsilon)
    generator = np.random.default_rng(epsilon)
    wrong = np.zeros(4, dtype=int)
    for _ in range(100):
        without, within = generator.normal(size=500), generator.normal(mu, size=500)
        found = judge(without, within, claim, 0.1)
        included = generator.random(200) < 0.5
        run = guess(generator.normal(size=200) + mu * included, included, 60)
        wrong += [
            found.leak(claim, 0.1) > 1,
            judge(without, within, plain, 0.1).leak(plain, 0.1) > 1,
            claim.excluded_by_guesses(200, 60, run.correct, 0.1, 1.0),
            plain.excluded_by_guesses(200, 60, run.correct, 0.1, 1.0),
        ]
    assert (wrong <= 20).all(), wrong


@pytest.mark.parametrize("epsilon", [1, 4, 8])
def test_bounds_come_near_the_truth(epsilon):
    claim, plain, mu = one_sum(epsilon)
    generator = np.random.default_rng(1)
    without, within = generator.normal(size=80_000), generator.normal(mu, size=80_000)
    ratio = claim.epsilon(judge(without, within, claim, 0.05).leak(claim, 0.05)) / epsilon
    assert 0.7 < ratio <= 1
    assert 0.1 * epsilon < plain.epsilon(judge(without, within, plain, 0.05).leak(plain, 0.05)) <= epsilon


def test_too_little_noise_is_found():
    claim, plain, mu = one_sum(4)
    generator = np.random.default_rng(2)
    without, within = generator.normal(size=2000), generator.normal(2 * mu, size=2000)
    assert judge(without, within, claim, 0.01).leak(claim, 0.01) > 1
    included = generator.random(300) < 0.5
    run = guess(generator.normal(size=300) + 4 * mu * included, included, 300)
    assert run.leak(claim, 0.01) > 1
    assert run.leak(plain, 0.01) < run.leak(claim, 0.01)


def test_a_claim_says_how_many_trials_contradict_it():
    claim, plain, _ = one_sum(4)
    for one in (claim, plain):
        worlds, canaries = TwoWorlds.needed(one, 0.01), OneRun.needed(one, 0.01)
        assert TwoWorlds(0, worlds, worlds, worlds).leak(one, 0.01) > 0.99
        assert TwoWorlds(0, worlds - 1, worlds - 1, worlds - 1).leak(one, 0.01) < 1.01
        assert OneRun(canaries, canaries, canaries, 0).leak(one, 0.01) > 0.99
        assert OneRun(canaries - 1, canaries - 1, canaries - 1, 0).leak(one, 0.01) < 1.01


SAMPLED = (Mechanism(1.5, 1.0, 20, sampling_rate=0.2),)
SLACK = (Mechanism(2.0, 1.0, 3, epsilon_slack=0.1, delta_slack=1e-3),)


@pytest.mark.parametrize("mechanisms", [SAMPLED, SLACK, (Mechanism(2.0, 1.0, 3), Mechanism(5.0, 2.0, 1))])
def test_the_trade_off_function_agrees_with_delta_of_epsilon(mechanisms):
    """delta(epsilon) is the largest difference TPR - exp(epsilon) FPR (Dong, Roth and Su 2022, proposition 2.12)."""
    rates = np.concatenate([np.geomspace(1e-12, 1e-3, 4000), np.linspace(0, 1, 20_001)])
    most = most_true_positives(mechanisms, rates)
    for epsilon in (0.5, 1.0, 2.5):  # above the slack, below which delta is 1
        reached = float(np.max(most - math.exp(epsilon) * rates))
        stated = delta_at(mechanisms, epsilon)
        assert reached >= stated * 0.98 - 1e-6
        if mechanisms is not SLACK:  # whose bound is an upper one, and far from tight at small rates
            assert reached <= stated * 1.02 + 1e-6


@pytest.mark.parametrize("mechanisms", [SAMPLED, SLACK, (Mechanism(2.0, 1.0, 3),)])
def test_guesses_use_the_inverse_of_the_same_function(mechanisms):
    from fedveil.audit.claims import _inverse

    inverse = _inverse(mechanisms, 1.0)
    for rate in (0.01, 0.2, 0.5, 0.9, 0.999):
        back = float(most_true_positives(mechanisms, np.array([inverse(rate)]))[0])
        if inverse(rate) > 0:  # a smaller rate is reached without any false positive, by the slack of delta
            assert back == pytest.approx(rate, rel=0.02, abs=2e-3)
        else:
            assert back >= rate
        assert inverse(rate) <= rate


def test_the_curve_is_stronger_than_epsilon_alone_and_not_absurd():
    mu = 1.0

    def inverse(y: float) -> float:
        return float(ndtr(ndtri(y) - mu))

    assert excluded_by_curve(inverse, 1000, 1000, 980, 0.05)
    # A mechanism may reveal much with small probability, which one run cannot tell from revealing it always.
    assert not excluded_by_curve(inverse, 1000, 1000, 780, 0.05)
    assert not excluded_by_curve(inverse, 1000, 1000, round(1000 * ndtr(mu / 2)), 0.05)
