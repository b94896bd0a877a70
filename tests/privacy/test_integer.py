"""The integer mechanism: its noise to the last bit, its price against exact sums, its range, its refusals."""

import math
from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedveil.errors import InvalidValue, Refused
from fedveil.privacy import Guarantee, Mechanism, calibrate, delta_at, epsilon, secure_generator
from fedveil.privacy import discrete as discrete_module
from fedveil.privacy.accounting.integer import IntegerMechanism, calibrate_integer
from fedveil.privacy.discrete import LARGEST_RADIX, SMALLEST_RADIX, TABLE_ERROR, DiscreteGaussian

TARGET = Guarantee(1.0, 1e-5, "patient", "secure-aggregation")


# The sampler


def table_law(radix):
    """P(D = k) as the alias table realises it, in exact fractions: what each bin keeps and gives away."""
    table = discrete_module._table(radix)
    bins, rest_bits, first_bits = 1 << 15, 192, 17
    law = [Fraction(0)] * bins
    for i in range(bins):
        first = int(table.first[i]) & ((1 << first_bits) - 1)
        keeps = Fraction((first << rest_bits) | table.rest[i], 1 << (first_bits + rest_bits))
        law[i] += keeps / bins
        law[int(table.other[i])] += (1 - keeps) / bins
    return law


@pytest.mark.parametrize("radix", [SMALLEST_RADIX, LARGEST_RADIX])
def test_table_is_the_discrete_gaussian_to_the_stated_error(radix):
    """Against exp by the decimal module, at every 97th value; and all of it adds up to 1 exactly."""
    law = table_law(radix)
    assert sum(law) == 1
    with localcontext(prec=75):
        exponent = -1 / (2 * Decimal(2 * radix) ** 2)
        density = [(k * k * exponent).exp() for k in range(16_385)]
        total = 2 * sum(density) - density[0]
        realised = (law[k + 16_384] for k in range(0, 16_384, 97))
        differences = (
            abs(Decimal(p.numerator) / p.denominator - density[97 * i] / total)
            for i, p in enumerate(realised)
        )
        assert 97 * sum(differences) < TABLE_ERROR
        assert 2 * density[-1] < TABLE_ERROR  # all that is cut off


def test_radix_composition_is_a_discrete_gaussian():
    """P(K A + B = y) by convolution, against exp(-y^2 / 2 std^2), as a ratio; the theory says 2e-32."""
    noise = DiscreteGaussian(SMALLEST_RADIX)
    grid = np.arange(-80, 81)
    law = np.exp(-(grid**2) / (2 * (2 * SMALLEST_RADIX) ** 2))
    composed = np.zeros(SMALLEST_RADIX * 160 + 161)
    for a, probability in zip(grid, law, strict=True):
        start = SMALLEST_RADIX * (a + 80)
        composed[start : start + 161] += probability * law
    y = np.arange(len(composed)) - (len(composed) - 1) // 2
    middle = np.abs(y) < 6 * noise.std
    ratio = composed[middle] / np.exp(-(y[middle] ** 2) / (2 * noise.std**2))
    np.testing.assert_allclose(ratio / ratio.mean(), 1, rtol=1e-12)


@pytest.mark.parametrize("radix", [SMALLEST_RADIX, LARGEST_RADIX])
def test_draws_follow_the_law(radix):
    noise = DiscreteGaussian(radix)
    draws = noise.draw(400_000, secure_generator())
    assert draws.dtype == np.int64
    assert (
        stats.kstest(
            draws + np.random.default_rng(0).random(draws.size) - 0.5, stats.norm(0, noise.std).cdf
        ).pvalue
        > 1e-7
    )
    assert np.var(draws) / noise.std**2 == pytest.approx(1, abs=6 * math.sqrt(2 / draws.size))
    if radix == SMALLEST_RADIX:
        values, counts = np.unique(draws[np.abs(draws) <= 90], return_counts=True)
        law = np.exp(-(values**2) / (2 * noise.std**2))
        assert stats.chisquare(counts, law / law.sum() * counts.sum()).pvalue > 1e-7


class Bits:
    """A generator whose next bytes are given."""

    def __init__(self, byte):
        self.byte = byte

    def bytes(self, count):
        return self.byte * count


def test_ties_are_decided_by_more_bits():
    """Where 32 bits do not decide, the smallest continuation keeps the bin's own value, the largest takes the other."""
    table = discrete_module._table(LARGEST_RADIX)
    undecided = [i for i in range(1 << 15) if table.rest[i] and table.other[i] != i][:5]
    bits = table.first[undecided].copy()
    np.testing.assert_array_equal(table.draw(bits, Bits(b"\x00")), np.array(undecided) - 16_384)
    np.testing.assert_array_equal(table.draw(bits, Bits(b"\xff")), table.other[undecided] - 16_384)


# The price


def integer_law(noise, fractions, reach):
    """P(Y - floor(sum of x) = y) for the sum of one share a fraction: stochastic rounding, then discrete noise."""
    support = np.arange(-reach, reach + 1)
    share = np.exp(-(support**2) / (2 * noise.std**2))
    law = np.ones(1)
    for fraction in fractions:
        law = np.convolve(law, share / share.sum())
        law = np.convolve(law, [1 - fraction, fraction])
    return law


def on_grid(radix, shares):
    """A mechanism for one coordinate on a given grid, which `fit` would only choose where it has to."""
    plain = Mechanism(2.5, 1.0, steps=1)
    made = IntegerMechanism(mechanism=plain, dimension=1, sites=shares, shares=shares, units=1, radix=radix)
    return replace(made, mechanism=made._with_slack(plain))


@pytest.mark.parametrize(("radix", "tight"), [(SMALLEST_RADIX, 0.7), (16, 0.995)])
@pytest.mark.parametrize("shares", [1, 2, 3])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.9])
def test_price_bounds_the_exact_privacy_loss_and_is_close_to_it(radix, tight, shares, fraction):
    """A contribution moves the mean by a non-integer number of steps; delta(epsilon) is summed over all outcomes."""
    made = on_grid(radix, shares)
    shift, reach = 1.0 / made.step, math.ceil(9 * made.noise.std)
    others = [0.3] * (shares - 1)
    whole, part = divmod(fraction + shift, 1)
    room = (0, int(whole) + 1)
    without = np.pad(integer_law(made.noise, [fraction, *others], reach), room)
    moved = np.roll(np.pad(integer_law(made.noise, [part, *others], reach), room), int(whole))
    for at in (0.1, 0.4, 0.8):
        ways = (moved - math.exp(at) * without, without - math.exp(at) * moved)
        exact = max(np.maximum(way, 0).sum() for way in ways)
        assert tight * delta_at([made.mechanism], at) <= exact <= delta_at([made.mechanism], at)


@pytest.mark.parametrize("shares", [1, 3])
def test_theorem_bounds_the_likelihood_ratio_pointwise(shares):
    """|log P/G| <= (1 + (t/s)^2) / (8 sigma^2) in one coordinate, for several rounding errors, on the coarsest grid."""
    noise = DiscreteGaussian(SMALLEST_RADIX)
    std = math.sqrt(shares) * noise.std
    for fractions in ([0.5] * shares, [0.1] * shares, [0.0] * (shares - 1) + [0.7]):
        law = integer_law(noise, fractions, math.ceil(9 * noise.std))
        y = np.arange(len(law)) - shares * math.ceil(9 * noise.std)
        t = y - sum(fractions)
        near = np.abs(t) < 6 * std
        rounded = stats.norm.cdf(t[near] + 0.5, scale=std) - stats.norm.cdf(t[near] - 0.5, scale=std)
        # Where a difference of cdfs loses digits, its mirror image does not.
        mirrored = stats.norm.cdf(-t[near] + 0.5, scale=std) - stats.norm.cdf(-t[near] - 0.5, scale=std)
        rounded = np.where(t[near] > 0, mirrored, rounded)
        ratio = np.abs(np.log(law[near] / rounded))
        bound = (1 + (t[near] / std) ** 2) / (8 * noise.std**2)
        assert (ratio <= bound + 1e-9).all()


def test_price_is_that_of_the_exact_gaussian_to_a_millionth():
    """The published bar is 1.01: epsilon 1, 60 rounds, 1,281 parameters, the same noise variance."""
    plain = calibrate(TARGET, steps=60)
    made = IntegerMechanism.fit(plain, dimension=1281, sites=5, shares=3, units=5000)
    ratio = epsilon([made.mechanism], 1e-5) / epsilon([plain], 1e-5)
    assert 1 <= ratio < 1 + 1e-6
    share = made.noise.std * made.step
    assert share * math.sqrt(made.shares) == pytest.approx(plain.noise_std, rel=2e-6)
    assert share * math.sqrt(made.shares) >= plain.noise_std


@pytest.mark.parametrize(("dimension", "rounds"), [(10**6, 60), (10**6, 1000), (10**7, 100)])
def test_large_models_cost_little_more(dimension, rounds):
    made = calibrate_integer(TARGET, steps=rounds, dimension=dimension, sites=10, shares=6, units=1000)
    assert made.mechanism.noise_multiplier < 1.003 * calibrate(TARGET, steps=rounds).noise_multiplier


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.1, 8),
    st.integers(1, 300),
    st.integers(1, 10**6),
    st.integers(3, 200),
    st.integers(1, 2000),
    st.booleans(),
)
def test_calibration_never_lands_above_the_target(target, rounds, dimension, sites, units, before):
    goal = Guarantee(target, 1e-5, "patient", "secure-aggregation")
    spent = [Mechanism(60.0, 1.0, steps=3, epsilon_slack=1e-4, delta_slack=1e-9)] if before else []
    made = calibrate_integer(
        goal, steps=rounds, dimension=dimension, sites=sites, shares=2 * sites // 3, units=units, spent=spent
    )
    assert epsilon([*spent, made.mechanism], 1e-5) <= target


def test_a_share_alone_is_priced_with_its_own_noise():
    made = IntegerMechanism.fit(Mechanism(6.0, 1.0, steps=10), dimension=100, sites=5, shares=4, units=100)
    assert made.alone.noise_multiplier == pytest.approx(3.0)
    assert made.alone.epsilon_slack >= made.mechanism.epsilon_slack > 0
    assert epsilon([made.alone], 1e-5) == pytest.approx(epsilon([Mechanism(3.0, 1.0, 10)], 1e-5), rel=1e-6)


# Encoding


@pytest.fixture(scope="module")
def made():
    return IntegerMechanism.fit(Mechanism(4.0, 1.0, steps=1), dimension=50_000, sites=4, shares=3, units=100)


def test_what_is_decoded_is_what_was_encoded_plus_noise(made):
    vector = np.random.default_rng(0).normal(0, 0.2, 50_000)
    noise = made.decode(made.encode(vector, secure_generator())) - vector
    expected = made.mechanism.noise_std / math.sqrt(made.shares)
    assert noise.std() == pytest.approx(expected, rel=0.02)
    assert abs(noise.mean()) < 6 * expected / math.sqrt(noise.size)
    assert abs(np.corrcoef(noise, vector)[0, 1]) < 6 / math.sqrt(noise.size)


def test_rounding_is_unbiased_and_stochastic():
    """Without its noise, what is sent averages to what was given, for every fraction of a grid step."""
    made = IntegerMechanism.fit(
        Mechanism(4.0, 1.0, steps=1), dimension=40_000, sites=3, shares=2, units=10_000
    )
    fraction = np.repeat(np.linspace(0, 0.9, 10), 4_000)

    class Silent(DiscreteGaussian):
        def draw(self, size, generator):
            return np.zeros(size, dtype=np.int64)

    original = IntegerMechanism.noise
    try:
        IntegerMechanism.noise = property(lambda self: Silent(self.radix))
        words = made.encode((fraction - 3) * made.step, secure_generator()).view(np.int32)
    finally:
        IntegerMechanism.noise = original
    assert set(np.unique(words)) == {-3, -2}
    means = (words + 3.0).reshape(10, 4_000).mean(axis=1)
    np.testing.assert_allclose(means, np.linspace(0, 0.9, 10), atol=6 * 0.5 / math.sqrt(4_000))


@pytest.mark.parametrize("sites", [3, 50])
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_at_the_edge_of_the_range_do_not_wrap(sites, sign):
    """Every site sends the most that it may, all in one coordinate."""
    made = IntegerMechanism.fit(
        Mechanism(1.5, 1.0, steps=1), dimension=100, sites=sites, shares=2, units=40_000
    )
    most = np.zeros(100, dtype=np.float32)
    most[7] = sign * 40_000
    words = [made.encode(most, secure_generator()) for _ in range(sites)]
    total = made.decode(np.sum(words, axis=0, dtype=np.uint32))
    assert total[7] == pytest.approx(sites * most[7], rel=1e-3)
    assert np.abs(np.delete(total, 7)).max() < 12 * math.sqrt(sites) * made.mechanism.noise_std


def bad_vectors():
    good = np.zeros(50_000)
    nan, infinity, huge, far = good.copy(), good.copy(), good.copy(), good.copy()
    nan[3], infinity[3], huge[3], far[3] = math.nan, -math.inf, 1e200, 100.01
    yield "NaN", nan, "NaN, infinity"
    yield "infinity", infinity, "NaN, infinity"
    yield "overflow", huge, "NaN, infinity"
    yield "float32 NaN", nan.astype(np.float32), "NaN, infinity"
    yield "out of range", far, "out of range"
    yield "many out of range", np.full(50_000, 1.0), "out of range"
    yield "short", good[:-1], "floating-point numbers"
    yield "matrix", good.reshape(-1, 50), "floating-point numbers"
    yield "whole numbers", good.astype(np.int64), "floating-point numbers"


@pytest.mark.parametrize(("vector", "message"), [pytest.param(v, m, id=name) for name, v, m in bad_vectors()])
def test_bad_vectors_are_refused_with_nothing_drawn(made, vector, message):
    generator = secure_generator()
    before = generator.bit_generator.state
    with pytest.raises(Refused, match=message):
        made.encode(vector, generator)
    assert str(generator.bit_generator.state) == str(before)


def test_a_learner_that_passes_its_clip_norm_by_float32_rounding_is_not_refused(made):
    vector = np.zeros(50_000, dtype=np.float32)
    vector[:2] = np.float32(100 / math.sqrt(2)) * np.float32(1 + 3e-7)
    made.encode(vector, secure_generator())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": 0}, "dimension is 0"),
        ({"shares": 0}, "shares is 0"),
        ({"units": 0}, "units is 0"),
        ({"shares": 5}, "5 honest noise shares are requested from 4 sites"),
        ({"mechanism": Mechanism(0.0, 1.0, steps=1)}, "needs noise"),
        ({"mechanism": Mechanism(1e9, 1.0, steps=1)}, "use less noise"),
        ({"mechanism": Mechanism(1e7, 1.0, steps=1), "dimension": 10**9}, "use less noise"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    fields = {"mechanism": Mechanism(4.0, 1.0, 1), "dimension": 9, "sites": 4, "shares": 3, "units": 5}
    fields.update(change)
    mechanism = fields.pop("mechanism")
    with pytest.raises(InvalidValue, match=message):
        IntegerMechanism.fit(mechanism, **fields)


@pytest.mark.parametrize("words", [np.zeros(50_000), np.zeros(5, dtype=np.uint32)])
def test_decoding_anything_else_is_refused(made, words):
    with pytest.raises(InvalidValue, match="words of 32 bits"):
        made.decode(words)
