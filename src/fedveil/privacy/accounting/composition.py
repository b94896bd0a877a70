"""The cost of a composition of mechanisms.

Full participation is priced exactly, as one Gaussian mechanism (`fedveil.privacy.accounting.gaussian`). If any
mechanism samples, the price is the smallest of three upper bounds: full participation, Renyi divergences and, where
valid, privacy loss distributions (`fedveil.privacy.accounting.subsampled`), which are nearly always the smallest.

Slack (see `Mechanism`): let E and D be the sums over steps of epsilon_slack and delta_slack, P and P' the
laws of the whole transcript on neighbouring data, and P_G and P'_G those with Gaussian noise. Then

    P(S) <= exp(E/2) P_G(S) + D <= exp(E/2) (exp(e) P'_G(S) + delta_G(e)) + D
         <= exp(e + E) P'(S) + exp(E/2) delta_G(e) + D,

so that what is (e, delta_G)-private with Gaussian noise is (e + E, exp(E/2) delta_G + D)-private. If slack is also
chosen adaptively, E and D are the largest values over all possible sequences of events; a ledger uses those of its
own sequence, which differs by less than the slack, about 1e-6.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from fedveil.privacy.accounting.gaussian import gaussian_delta, gaussian_epsilon, gaussian_mu
from fedveil.privacy.accounting.subsampled import filter_epsilon, loss_delta, loss_epsilon, renyi_epsilon
from fedveil.privacy.guarantee import check_delta

if TYPE_CHECKING:  # a Mechanism states its own price, so it imports this module
    from fedveil.privacy.mechanism import Mechanism

__all__ = [
    "Composition",
    "Step",
    "delta_at",
    "epsilon",
    "gaussian_room",
    "gdp_mu",
    "is_mixture",
    "price",
    "tally",
    "within",
]


class Step(NamedTuple):
    """Everything that a step's price depends on."""

    noise_multiplier: float
    sampling_rate: float
    epsilon_slack: float
    delta_slack: float


Composition = Mapping[Step, int]
"""The number of steps of each kind; their order does not affect the price."""


def tally(mechanisms: Iterable["Mechanism"]) -> Counter[Step]:
    """Count the steps of `mechanisms` by kind, so that equal compositions are priced equally, to the bit."""
    count: Counter[Step] = Counter()
    for one in mechanisms:
        count[Step(one.noise_multiplier, one.sampling_rate, one.epsilon_slack, one.delta_slack)] += one.steps
    return count


def epsilon(
    mechanisms: Iterable["Mechanism"], delta: float, *, adaptive: bool = False, mixed: bool = False
) -> float:
    """An upper bound, tight to numerical precision, on the epsilon at `delta` of all `mechanisms` together.

    0 for none. ``adaptive`` means that later mechanisms may be chosen in view of earlier releases, as in a ledger
    that outlives a study. It changes the bound only if mechanisms differ and some sample: then filters by Renyi
    divergences replace privacy loss distributions, for which no such theorem is known. For a ledger that admits such
    mixtures, `delta` holds for the sequences of events without one and again for those with one: in total it is
    (epsilon, 2 delta)-private. See `LedgerState.delta`. With ``mixed`` the filter prices every sequence, also one
    that is not yet a mixture: then all of them together have `delta`.

    >>> from fedveil.privacy import Mechanism
    >>> round(epsilon([Mechanism(28.9, 1.0, steps=60)], 1e-5), 3)
    1.0
    """
    return price(tally(mechanisms), check_delta(delta), adaptive=adaptive, mixed=mixed)


def price(composition: Composition, delta: float, *, adaptive: bool = False, mixed: bool = False) -> float:
    """`epsilon` of counted steps."""
    return _price(tuple(sorted(composition.items())), delta, adaptive or mixed, mixed)


def is_mixture(mechanisms: Iterable["Mechanism"]) -> bool:
    """Whether mechanisms differ and some sample: such compositions have no tight price if chosen adaptively."""
    kinds = {(one.noise_multiplier, one.sampling_rate) for one in mechanisms}
    return len(kinds) > 1 and any(rate < 1 for _, rate in kinds)


def within(composition: Composition, epsilon: float, delta: float) -> bool:
    """Whether a composition, chosen adaptively, is (epsilon, delta)-private; fast at full participation."""
    if math.isinf(epsilon):
        return True
    steps = tuple(sorted(composition.items()))
    if _samples(steps):
        return _price(steps, delta, True, False) <= epsilon
    return _delta(steps, epsilon) <= delta


def delta_at(mechanisms: Iterable["Mechanism"], epsilon: float) -> float:
    """An upper bound on the delta at `epsilon` >= 0 of all `mechanisms` together, fixed in advance."""
    return _delta(tuple(sorted(tally(mechanisms).items())), epsilon)


def gaussian_room(epsilon: float, delta: float, spent: Composition) -> float | None:
    """The largest mu that fits together with `spent` at (epsilon, delta), or 0; None if `spent` samples."""
    steps = tuple(sorted(spent.items()))
    if _samples(steps):
        return None
    slack_epsilon, slack_delta = _slack(steps)
    delta = math.exp(-slack_epsilon / 2) * (delta - slack_delta)
    if delta <= 0 or epsilon < slack_epsilon:
        return 0.0
    whole = gaussian_mu(epsilon - slack_epsilon, delta)
    return math.sqrt(max(0.0, whole * whole - _mu(steps) ** 2))


def gdp_mu(mechanisms: Iterable["Mechanism"]) -> float | None:
    """mu of the Gaussian mechanism that equals the composition, or None if one samples or has slack."""
    steps = tuple(sorted(tally(mechanisms).items()))
    if _samples(steps) or _slack(steps) != (0.0, 0.0):
        return None
    return _mu(steps)


_Steps = tuple[tuple[Step, int], ...]


@lru_cache(maxsize=4096)
def _price(steps: _Steps, delta: float, adaptive: bool, mixed: bool) -> float:
    slack_epsilon, slack_delta = _slack(steps)
    delta = math.exp(-slack_epsilon / 2) * (delta - slack_delta)
    if delta <= 0 or _noiseless(steps):
        return math.inf
    bound = gaussian_epsilon(_mu(steps), delta)
    if mixed and steps:
        bound = filter_epsilon(_sampled(steps), delta)
    elif _samples(steps) and bound > 0:
        # Being left out of a sample only protects, so the cost of full participation is also an upper bound.
        sampled = _sampled(steps)
        if len(sampled) > 1 and adaptive:
            bound = filter_epsilon(sampled, delta)
        else:
            bound = min(bound, renyi_epsilon(sampled, delta), loss_epsilon(sampled, delta))
    return slack_epsilon + bound


def _delta(steps: _Steps, epsilon: float) -> float:
    slack_epsilon, slack_delta = _slack(steps)
    if epsilon < slack_epsilon:
        return 1.0
    base = gaussian_delta(epsilon - slack_epsilon, _mu(steps))
    if _samples(steps) and not _noiseless(steps):
        base = min(base, loss_delta(_sampled(steps), epsilon - slack_epsilon))
    return min(1.0, math.exp(min(700.0, slack_epsilon / 2)) * base + slack_delta)


def _samples(steps: _Steps) -> bool:
    return any(step.sampling_rate < 1 for step, _ in steps)


def _noiseless(steps: _Steps) -> bool:
    return any(step.noise_multiplier == 0 for step, _ in steps)


def _slack(steps: _Steps) -> tuple[float, float]:
    return (
        math.fsum(count * step.epsilon_slack for step, count in steps),
        math.fsum(count * step.delta_slack for step, count in steps),
    )


def _mu(steps: _Steps) -> float:
    if _noiseless(steps):
        return math.inf
    inverses = ((1 / step.noise_multiplier, count) for step, count in steps)
    return math.sqrt(math.fsum(count * inverse * inverse for inverse, count in inverses))


def _sampled(steps: _Steps) -> tuple[tuple[float, float, int], ...]:
    counts: Counter[tuple[float, float]] = Counter()
    for step, count in steps:
        counts[step.noise_multiplier, step.sampling_rate] += count
    return tuple((noise, rate, count) for (noise, rate), count in sorted(counts.items()))
