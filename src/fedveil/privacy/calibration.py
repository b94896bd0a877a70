"""The noise that a guarantee needs. The result always meets the target."""

import math
from collections.abc import Callable, Sequence

from fedveil.errors import InvalidValue
from fedveil.privacy.accounting.composition import Composition, epsilon, gaussian_room, price, tally, within
from fedveil.privacy.guarantee import Guarantee
from fedveil.privacy.mechanism import Mechanism

__all__ = ["calibrate"]

_PRECISION = 1e-4  # relative, of the noise multiplier if units are sampled
_MOST = 1e9  # the search stops at noise beyond this factor of the first guess


def calibrate(
    target: Guarantee,
    *,
    steps: int,
    sampling_rate: float = 1.0,
    clip_norm: float = 1.0,
    spent: Sequence[Mechanism] = (),
) -> Mechanism:
    """The mechanism with the least noise that, together with `spent`, still meets `target`.

    The noise multiplier is minimal up to a relative 1e-6 if every unit takes part in every step, and up to 1e-4
    under Poisson sampling. The price of the result, composed with `spent` as a ledger composes them, is at most
    `target.epsilon` at `target.delta`. With trust "none" the noise is 0.

    >>> mechanism = calibrate(Guarantee(1.0, 1e-5, "patient", "site"), steps=60)
    >>> round(mechanism.noise_multiplier, 2)
    28.9

    Raises InvalidValue if `spent` leaves nothing of the target.
    """

    def mechanism(noise_multiplier: float) -> Mechanism:
        return Mechanism(noise_multiplier, clip_norm, steps, sampling_rate, target.unit)

    if target.trust == "none":
        return mechanism(0.0)
    earlier = [one.for_unit(target.unit) for one in spent]

    room = gaussian_room(target.epsilon, target.delta, tally(earlier))
    if room is None:
        room = gaussian_room(target.epsilon, target.delta, {}) or 0.0
        full = False
    else:
        full = sampling_rate == 1
    if room <= 0 or epsilon(earlier, target.delta, adaptive=True) >= target.epsilon:
        raise _nothing_left(target, earlier)

    def total(noise_multiplier: float) -> Composition:
        return tally([*earlier, mechanism(noise_multiplier)])

    def cost(noise_multiplier: float) -> float:
        return price(total(noise_multiplier), target.delta, adaptive=True)

    def meets(noise_multiplier: float) -> bool:
        fits = within(total(noise_multiplier), target.epsilon, target.delta)
        return fits and cost(noise_multiplier) <= target.epsilon

    if full:
        return mechanism(_raise(meets, math.sqrt(steps) / room))
    # The central limit of many subsampled steps has mu = rate sqrt(steps (exp(1/z^2) - 1)) (Bu et al. 2020).
    guess = 1 / math.sqrt(math.log1p(room * room / (steps * sampling_rate * sampling_rate)))
    found = _smallest(cost, target.epsilon, guess)
    if found is None:
        raise _nothing_left(target, earlier)
    return mechanism(found)


def _raise(meets: Callable[[float], bool], noise: float) -> float:
    """`noise`, increased minimally to compensate for rounding in its closed form."""
    excess = 1e-15
    while not meets(noise * (1 + excess)):
        excess *= 4
    return noise * (1 + excess)


def _smallest(cost: Callable[[float], float], target: float, guess: float) -> float | None:
    """The upper end of a bracket, `_PRECISION` wide relative to it, around where `cost` falls to `target`."""
    factor, low, high = 1.1, guess, guess
    while cost(high) > target:
        low, high, factor = high, high * factor, factor * factor
        if high > _MOST * guess:
            return None
    factor = 1.1
    while low == high or cost(low) <= target:
        high, low, factor = low, low / factor, factor * factor
    while high / low - 1 > _PRECISION:
        middle, width = _between(cost, target, low, high), high / low
        # A bracket around the interpolated root; the midpoint if that does not halve the bracket.
        for trial in (middle * (1 + _PRECISION / 3), middle / (1 + _PRECISION / 3), None):
            if trial is None and math.log(high / low) < math.log(width) / 2:
                break
            noise = math.sqrt(low * high) if trial is None else trial
            if low < noise < high:
                low, high = (low, noise) if cost(noise) <= target else (noise, high)
    return high


def _between(cost: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where a power law through both ends of the bracket meets `target`; the midpoint if there is none."""
    above, below = cost(low), cost(high)
    share = 0.5
    if 0 < below < above < math.inf:
        share = math.log(above / target) / math.log(above / below)
    return low * math.exp(share * math.log(high / low))


def _nothing_left(target: Guarantee, earlier: Sequence[Mechanism]) -> InvalidValue:
    already = epsilon(earlier, target.delta, adaptive=True)
    return InvalidValue(
        f"earlier releases already cost epsilon {already:.4g} at delta {target.delta:.4g}",
        f"no further mechanism fits within the target's epsilon of {target.epsilon:.4g}",
        "increase the target, or run no further study on these patients",
    )
