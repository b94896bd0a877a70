"""Sums of whole numbers modulo 2^w with discrete Gaussian noise, and their cost: the integer mechanism.

Under secure aggregation each site rounds its sum to a grid, adds a share of the noise and sends whole numbers
modulo 2^w, w = 32 or 64, so that masks can hide them perfectly. After Kairouz, Liu and Steinke (2021), with a finer
account of the rounding.

**The mechanism.** Let D be the number of coordinates, h the smallest number of honest noise shares (`shares`), q the
grid (`step`), and x_i the sum of site i's contributions divided by q. Site i sends, coordinate by coordinate,

    y_i = floor(x_i + U_i) + N_i  modulo 2^w,

with U_i uniform on [0, 1) (stochastic rounding) and N_i discrete Gaussian with standard deviation sigma. Only
Y = sum_i y_i is ever visible. Shares beyond h, and those of sites that hold other patients, only add
independent noise; so let Y be the sum of h shares, x = sum_i x_i and s^2 = h sigma^2.

**Theorem.** Let S = clip_norm / q and z = s / S. Except on an event of probability e^-a, the law P of Y and
the law G of the rounded Gaussian mechanism round(x + N(0, s^2 I)) differ by a factor within exp(+-b),

    b = (D + R^2) / (8 sigma^2),    R = sqrt((1 + 1/(4 sigma^2)) (D + 2 sqrt(D a) + 2 a)) + 4/z,

and for neighbours the event is the same.

*Proof.* One coordinate first. Let t = y - x and g the density of N(0, s^2). Given the rounding errors V =
sum_i (floor(x_i + U_i) - x_i), Y has the discrete Gaussian law around x + V (a sum of h discrete Gaussians is
one up to a factor exp(+-1e-31), by the argument in `fedveil.privacy.discrete`). So

    P(y) / g(t) = E g(t - V) / g(t) = E exp(t V / s^2 - V^2 / (2 s^2)).

V has mean 0 and is a sum of h independent terms, each in an interval of length 1: E V^2 <= h/4. By Jensen's
inequality the ratio is at least exp(-h / (8 s^2)) = exp(-1 / (8 sigma^2)), by Hoeffding's lemma at most exp(h
t^2 / (8 s^4)) = exp((t/s)^2 / (8 sigma^2)). G(y) is the integral of g over [t - 1/2, t + 1/2], so the same
with a single uniform V: G(y) / g(t) lies between exp(-1 / (24 s^2)) and exp(t^2 / (8 s^4)). As s >= sigma,
|log P/G| <= (1 + (t/s)^2) / (8 sigma^2), and over all coordinates (D + |t|^2 / s^2) / (8 sigma^2). Discrete
Gaussians are sub-Gaussian with parameter sigma (Canonne, Kamath and Steinke 2020), the terms of V with 1/2;
so |t|^2 / s^2 <= (1 + 1/(4 sigma^2)) (D + 2 sqrt(D a) + 2 a) except with probability e^-a (Hsu, Kakade and
Zhang 2012, theorem 1). A neighbour's x lies at most S = s/z away, which makes |t|/s larger by at most 1/z;
4/z also covers sampled units, mechanisms that are priced for a finer unit, and the 1e-31. QED

**The price.** round(x + N(0, s^2 I)) is post-processing of the Gaussian mechanism with noise multiplier z,
whose price is exact; rounding costs no sensitivity. 2 b enters the Mechanism as `epsilon_slack`, and e^-a
with the sampler's own error as `delta_slack`; accounting composes them. sigma is near 2^19 if the headroom allows
it, so 2 b is about 2e-12 per coordinate.

**The width of a word.** The noise of all sites and the largest sum must fit a word: with n sites of m units the grid
may have at most about 2^w z / (2 n m sqrt(h)) steps per sigma. 32 bits serve a few sites. With many sites or units
sigma becomes small and b, which grows like 1/sigma^2, would be paid in noise: 7 times the Gaussian's at 100 sites. So
`fit` takes 64 bits where 32 would cost more than a thousandth (`_NOTICEABLE`). They leave room for sigma = 2^19 up to
10^8 units per site. Rounding then costs less than 1e-3 of epsilon for ten million coordinates, without the random
rotation by which Kairouz et al. save bits.

**Arithmetic.** x_i + U_i is computed in float64, where x_i, a float64, may reach m S <= 2^50. As rounding is
monotone and U_i has 32 bits, the computed floor is floor(x_i) or floor(x_i) + 1: stochastic rounding of another point
x_i', with |x_i' - x_i| <= 2^-52 (|x_i| + 1) + 2^-32 in each coordinate, the product with 1/q included. As |x_i|_2 <= m
S, neighbours' x_i' are at most S (1 + 2^-51 m) + 2^-30 sqrt(D) apart. `step` sets the noise by a larger distance, so
the theorem holds for the points that are rounded, for every width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedveil.errors import InvalidValue, Refused
from fedveil.parallel import BLOCK, in_blocks
from fedveil.privacy.calibration import calibrate
from fedveil.privacy.discrete import (
    LARGEST_RADIX,
    SMALLEST_RADIX,
    TABLE_ERROR,
    DiscreteGaussian,
    random_words,
)
from fedveil.privacy.guarantee import Guarantee
from fedveil.privacy.mechanism import Mechanism
from fedveil.privacy.noise import keyed_by

__all__ = ["IntegerMechanism", "Words", "calibrate_integer"]

Words = NDArray[np.uint32 | np.uint64]
_WORDS: dict[int, type[np.uint32] | type[np.uint64]] = {32: np.uint32, 64: np.uint64}
_SIGNED: dict[int, Any] = {32: np.int32, 64: np.int64}
_NOTICEABLE = 1e-3
"""32 bits are used if rounding costs at most this fraction of a mechanism's privacy loss."""
_LARGEST = 2.0**50  # grid steps that a site's own sum may reach: float64 still holds fractions of a step
_CHUNK = 1 << 14  # coordinates at a time, so that they fit the processor's cache
_NOISE_REACH = 12.0  # headroom in standard deviations of noise: probability 4e-33 per coordinate beyond
_TAIL = 45.0  # a in the theorem: probability 3e-20 per round
_LARGEST_EPSILON = 60.0  # the sampler's error is charged exp(epsilon) times, for guarantees up to this one
_TOLERANCE = 1e-6  # relative, on clip norms: a float32 learner may exceed its own by this; noise covers it
_COARSEST = 100  # grid steps larger than this many clip norms are refused
_FLOAT_ERROR = 2.0**-18  # grid steps per square root of a coordinate: see "Arithmetic", which needs 2^-30
_RELATIVE_ERROR = 2.0**-50  # the same relative to the largest sum; "Arithmetic" needs 2^-51


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerMechanism:
    """One site's share of a noisy integer sum, for all rounds of one release.

    Attributes:
        mechanism: of `shares` shares together: noise multiplier, clip norm, steps, and the slack of the theorem
            above. A ledger charges this mechanism.
        dimension: number of coordinates.
        sites: the largest number of sites that may be summed.
        shares: the smallest number of honest noise shares, h.
        units: the largest number of units that one site may sum; bounds a site's values.
        radix: fixes the noise in grid steps; see `fedveil.privacy.discrete`.
        bits: width of a word, 32 or 64.
    """

    mechanism: Mechanism
    dimension: int
    sites: int
    shares: int
    units: int
    radix: int
    bits: int = 32

    @classmethod
    def fit(
        cls,
        mechanism: Mechanism,
        *,
        dimension: int,
        sites: int,
        shares: int,
        units: int,
        bits: int | None = None,
        priced: bool = True,
    ) -> Self:
        """The finest grid on which `sites` sums of at most `units` contributions cannot wrap around.

        Each coordinate of a site's sum is at most units * clip_norm, and noise beyond 12 standard deviations
        of all sites' together has probability 4e-33. Words have the given number of bits, or if None 32, and 64 where
        32 would cost more than a thousandth. `priced` is False for noise that only carries an answer which is
        private already: then 32 bits serve wherever they suffice at all. Raises InvalidValue if no word is wide enough.
        """
        _check_sizes(mechanism, dimension=dimension, sites=sites, shares=shares, units=units)
        base = cls(mechanism=mechanism, dimension=dimension, sites=sites, shares=shares, units=units, radix=1)
        for width in _WORDS if bits is None else (bits,):
            radix = base._radix(width)
            if radix < SMALLEST_RADIX:
                continue
            found = replace(base, radix=radix, bits=width)
            if not 0 < found.step < _COARSEST * mechanism.clip_norm:
                raise InvalidValue(
                    f"the noise multiplier is {mechanism.noise_multiplier:.3g}",
                    f"a contribution must be at least 1/{_COARSEST} of a grid step, or only its rounding remains",
                    "use less noise: nothing can be learned with this much",
                )
            found = replace(found, mechanism=found._with_slack(mechanism))
            if not priced or bits is not None or width == max(_WORDS) or found._share <= _NOTICEABLE:
                return found
        raise InvalidValue(
            f"{sites} sites sum up to {units:,} units each, with noise multiplier "
            f"{mechanism.noise_multiplier:.3g}",
            f"their sum must fit {max(_WORDS)} bits with room for the noise",
            "reduce federation.max_units, the number of units that a site may sum in one round, or use more noise",
        )

    def _radix(self, bits: int) -> int:
        """The largest radix, up to `LARGEST_RADIX`, whose noise and largest sum fit words of so many bits."""
        signal = self.units * math.sqrt(self.shares) / self.mechanism.noise_multiplier
        room = 0.999 * (2 ** (bits - 1) - 2 * self.sites)
        std = min(
            room / (self.sites * signal + _NOISE_REACH * math.sqrt(self.sites)), 0.999 * _LARGEST / signal
        )
        return min(LARGEST_RADIX, math.floor(math.sqrt((math.sqrt(1 + std * std) - 1) / 2)))

    @property
    def _share(self) -> float:
        """About what part of the mechanism's privacy loss its slack is: in mu of the central limit."""
        made = self.mechanism
        return math.sqrt(made.steps) * made.epsilon_slack * made.noise_multiplier / made.sampling_rate

    @property
    def word(self) -> type[np.uint32] | type[np.uint64]:
        """The type of a word."""
        return _WORDS[self.bits]

    def to_list(self) -> list[int]:
        """What an agreement's digest holds of it besides the mechanism; 32 bits are implied."""
        return [self.units, self.radix] if self.bits == 32 else [self.units, self.radix, self.bits]

    @property
    def noise(self) -> DiscreteGaussian:
        """The noise of one share, in grid steps."""
        return DiscreteGaussian(self.radix)

    @property
    def step(self) -> float:
        """The grid q, in the units of the contributions.

        Such that sqrt(shares) sigma = z S, where the sensitivity S in grid steps counts, beside clip_norm /
        q, what float32 learners and float64 rounding here may add ("Arithmetic" above).
        """
        sensitivity = math.sqrt(self.shares) * self.noise.std / self.mechanism.noise_multiplier
        bound = self._clip_norm * (1 + _RELATIVE_ERROR * self.units)
        return bound / (sensitivity - _FLOAT_ERROR * math.sqrt(self.dimension))

    @property
    def alone(self) -> Mechanism:
        """The guarantee of one share alone, if everyone except this site colludes."""
        share = self.mechanism.noise_multiplier / math.sqrt(self.shares)
        return self._with_slack(replace(self.mechanism, noise_multiplier=share))

    def encode(self, vector: NDArray[np.floating], generator: np.random.Generator) -> Words:
        """A site's sum of contributions, rounded to the grid, with its share of the noise, modulo 2^bits.

        `vector` has shape (dimension,) and norm at most units * clip_norm, which no honest learner can exceed.
        Long vectors are encoded in blocks, by as many threads as there are cores; the noise of each block has its own
        256-bit key from `generator`. Raises Refused, before anything is drawn, for other vectors: NaN, infinity,
        another shape, out of range.
        """
        self._check(vector)
        words: Words = np.empty(self.dimension, dtype=self.word)
        if self.dimension <= BLOCK:
            self._encode(vector, words, generator)
        else:
            generators = [keyed_by(generator) for _ in range(0, self.dimension, BLOCK)]
            in_blocks(
                self.dimension,
                lambda part: self._encode(vector[part], words[part], generators[part.start // BLOCK]),
            )
        return words

    def _encode(self, vector: NDArray[np.floating], words: Words, generator: np.random.Generator) -> None:
        """Write the words of a block."""
        scale, noise = 1 / self.step, self.noise
        for start in range(0, vector.size, _CHUNK):
            part = slice(start, min(start + _CHUNK, vector.size))
            scaled = vector[part].astype(np.float64)
            scaled *= scale
            scaled += (random_words(scaled.size, generator) + 0.5) * 2.0**-32
            draws = noise.draw(scaled.size, generator)
            draws += np.floor(scaled, out=scaled).astype(np.int64)
            words[part] = draws.astype(words.dtype)  # the low bits: modulo 2^bits, also below zero

    def decode(self, words: Words) -> NDArray[np.float64]:
        """The sum in the units of the contributions, from the sum of words modulo 2^bits."""
        if words.dtype != self.word or words.shape != (self.dimension,):
            raise InvalidValue(
                f"the sum has type {words.dtype} and shape {words.shape}",
                f"it must be {self.dimension} words of {self.bits} bits",
                "decode the output of the aggregation",
            )
        total: NDArray[np.float64] = words.view(_SIGNED[self.bits]).astype(np.float64)
        total *= self.step
        return total

    @property
    def _clip_norm(self) -> float:
        return self.mechanism.clip_norm * (1 + _TOLERANCE)

    def _check(self, vector: NDArray[np.floating]) -> None:
        if vector.shape != (self.dimension,) or not np.issubdtype(vector.dtype, np.floating):
            raise Refused(
                f"a contribution has type {vector.dtype} and shape {vector.shape}",
                f"it must be {self.dimension} floating-point numbers",
                "report this: the learner does not fit the study",
            )
        # einsum accumulates float32 in float64 without a copy; NaN and infinity survive into the norm.
        norm = math.sqrt(float(np.einsum("i,i->", vector, vector, dtype=np.float64, casting="same_kind")))
        if not math.isfinite(norm):
            raise Refused(
                "a contribution holds NaN, infinity or a number beyond 1e150",
                "only finite numbers can be summed",
                "report this: the learner has diverged or read damaged data",
            )
        if norm > self.units * self._clip_norm:
            raise Refused(
                "a contribution is out of range",
                f"{self.units} units with clip norm {self.mechanism.clip_norm:g} cannot reach its norm",
                "increase the number of units that the study allows per site, or report this",
            )

    def _with_slack(self, mechanism: Mechanism) -> Mechanism:
        """`mechanism` with the slack of the theorem, per step."""
        variance, dimension = self.noise.std**2, self.dimension
        tail = (1 + 1 / (4 * variance)) * (dimension + 2 * math.sqrt(dimension * _TAIL) + 2 * _TAIL)
        reach = math.sqrt(tail) + 4 / mechanism.noise_multiplier
        sampler = 2 * self.shares * dimension * TABLE_ERROR * (1 + math.exp(_LARGEST_EPSILON))
        return replace(
            mechanism,
            epsilon_slack=(dimension + reach**2) / (4 * variance),
            delta_slack=math.exp(-_TAIL) + sampler,
        )


def _check_sizes(mechanism: Mechanism, *, dimension: int, sites: int, shares: int, units: int) -> None:
    for name, value, least in (("dimension", dimension, 1), ("shares", shares, 1), ("units", units, 1)):
        if value < least:
            raise InvalidValue(f"{name} is {value}", f"it must be at least {least}", "check the study")
    if not shares <= sites:
        raise InvalidValue(
            f"{shares} honest noise shares are requested from {sites} sites",
            "each site adds only one share",
            "reduce min_honest, or add sites",
        )
    if mechanism.noise_multiplier == 0:
        raise InvalidValue(
            "the noise multiplier is 0",
            "an integer mechanism needs noise",
            'use trust = "none" to train without',
        )


def calibrate_integer(
    target: Guarantee,
    *,
    steps: int,
    dimension: int,
    sites: int,
    shares: int,
    units: int,
    sampling_rate: float = 1.0,
    clip_norm: float = 1.0,
    spent: Sequence[Mechanism] = (),
) -> IntegerMechanism:
    """The integer mechanism with the least noise that, together with `spent`, still meets `target`.

    Its own slack is set aside first: what is (e - E, exp(-E/2) (delta - D))-private with Gaussian noise is
    (e, delta)-private with slack E and D (see `fedveil.privacy.accounting.composition`). The slack set aside is that
    of the noise without it, and so an upper bound: more noise allows the same or a finer grid. It is close to the
    least: where the grid follows the noise, that is below sigma = 2^19, `fit` keeps the slack of 32-bit words below a
    thousandth, and words of 64 bits do not reach that limit. Raises InvalidValue if nothing fits.
    """

    def fit(target: Guarantee, bits: int | None = None) -> IntegerMechanism:
        plain = calibrate(target, steps=steps, sampling_rate=sampling_rate, clip_norm=clip_norm, spent=spent)
        return IntegerMechanism.fit(
            plain, dimension=dimension, sites=sites, shares=shares, units=units, bits=bits
        )

    first = fit(target)
    slack = first.mechanism
    epsilon = target.epsilon - steps * slack.epsilon_slack
    delta = math.exp(-steps * slack.epsilon_slack / 2) * (target.delta - steps * slack.delta_slack)
    if epsilon <= 0 or delta <= 0:
        raise InvalidValue(
            f"rounding to whole numbers costs epsilon {steps * slack.epsilon_slack:.2g} over {steps} rounds",
            f"the target is {target.epsilon:g} in all",
            "reduce federation.max_units or the number of rounds, or train a smaller model",
        )
    return fit(replace(target, epsilon=epsilon, delta=delta), first.bits)
