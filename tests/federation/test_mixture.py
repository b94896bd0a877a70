"""What a mixture of sampled and whole releases costs, also when they are repeated."""

import pytest
from tests.federation.toy import make_agreement

from fedveil.federation import (
    Release,
)
from fedveil.federation.queries import (
    GradientQuery,
    StatisticsQuery,
)
from fedveil.privacy import Guarantee, Mechanism, epsilon
from fedveil.privacy.accounting.subsampled import filter_epsilon


def mixture(delta=1e-5):
    """A study of one full sum and sampled rounds, at the smallest target that its plan meets."""
    training = Release(
        query=GradientQuery(), mechanism=Mechanism(1.5, 1.0, 20, 0.1), dimension=6, parameters=6
    )
    statistics = Release(query=StatisticsQuery(), mechanism=Mechanism(6.0, 1.0, 1), dimension=2, parameters=0)
    plan = [training.mechanism, statistics.mechanism]
    target = Guarantee(epsilon(plan, delta, adaptive=True), delta, "patient", "site")
    return make_agreement(releases=(statistics, training), target=target)


@pytest.mark.parametrize(
    ("name", "others"), [("statistics", {}), ("training", {}), ("training", {"statistics": 1})]
)
def test_releases_that_are_repeated_cost_a_mixture_no_second_delta(name, others):
    """One filter prices every course of events, the plan and what a coordinator makes of it: delta counts once."""
    agreement = mixture()
    steps = max(count for count in range(1, 400) if agreement.affords({name: count, **others}))
    made = [
        agreement.release(one).mechanism.with_steps(count) for one, count in {name: steps, **others}.items()
    ]
    parts = tuple((one.noise_multiplier, one.sampling_rate, one.steps) for one in made)
    assert filter_epsilon(parts, agreement.target.delta) <= agreement.target.epsilon
    assert steps >= agreement.release(name).mechanism.steps
    more = [agreement.release(name).mechanism.with_steps(steps + 1), *made[1:]]
    assert epsilon(more, agreement.target.delta, adaptive=True, mixed=True) > agreement.target.epsilon
    if not others:
        assert epsilon(more, agreement.target.delta, adaptive=True) < agreement.target.epsilon, (
            "priced alone it would pass"
        )
