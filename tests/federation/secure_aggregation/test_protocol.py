"""What a federation gets from the protocol: the exact sum of whoever survived, or nothing."""

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.errors import FederationError, Refused
from fedveil.federation.secure_aggregation import MaskedInput, RoundAbandoned, establish, unmask


def subsets(sites):
    return chain.from_iterable(combinations(sites, count) for count in range(len(sites) + 1))


def test_a_round_step_by_step(federation, words, modular_sum):
    """Five sites, of which one is lost before its words arrive and none after."""
    box = federation(5)
    own = words(box.sites)
    aggregation = box.server.open(1)
    for site in box.sites[:4]:
        aggregation.add(box.clients[site].masked_input(1, own[site].copy()))
    request = aggregation.request()
    assert request.survivors == box.sites[:4]
    for site in request.survivors:
        aggregation.reveal(box.clients[site].recover(request))
    np.testing.assert_array_equal(aggregation.total(), modular_sum(own, box.sites[:4]))


@pytest.mark.parametrize("count", [3, 4, 5])
def test_sums_are_exact_for_every_pattern_of_drop_outs_that_the_threshold_admits(
    federation, words, modular_sum, count
):
    """Every site may be lost before its words arrive, after, or not at all: 3^n patterns."""
    patterns = [
        (arrived, answering)
        for arrived in subsets([f"site-{number}" for number in range(1, count + 1)])
        for answering in subsets(arrived)
    ]
    box = federation(count, rounds=len(patterns))
    own = words(box.sites)
    for round_number, (arrived, answering) in enumerate(patterns, start=1):
        given_words = {site: own[site] for site in arrived}
        silent = set(arrived) - set(answering)
        if len(answering) >= box.session.min_survivors:
            total = box.run(round_number, given_words, silent=silent)
            np.testing.assert_array_equal(total, modular_sum(own, arrived))
        else:
            with pytest.raises(RoundAbandoned):
                box.run(round_number, given_words, silent=silent)


@st.composite
def federations(draw):
    count = draw(st.integers(3, 16))
    threshold = draw(st.integers((count + 1) // 2 + 1, count))
    lost = draw(st.integers(0, count - threshold))
    late = draw(st.integers(0, count - threshold - lost))
    order = draw(st.permutations(range(count)))
    return count, threshold, order[:lost], order[lost : lost + late], draw(st.integers(1, 300))


@settings(max_examples=30, deadline=None)
@given(federations(), st.integers(0, 2**32))
def test_sums_are_exact_for_any_size_and_threshold(federation, modular_sum, drawn, seed):
    count, threshold, lost, late, length = drawn
    box = federation(count, rounds=1, threshold=threshold)
    generator = np.random.default_rng(seed)
    own = {
        site: generator.integers(0, 2**32, length, dtype=np.uint32)
        for number, site in enumerate(box.sites)
        if number not in lost
    }
    total = box.run(1, own, silent={box.sites[number] for number in late})
    np.testing.assert_array_equal(total, modular_sum(own, own))


@pytest.mark.parametrize("seed", range(3))
def test_sums_are_exact_in_a_sparse_graph(federation, words, modular_sum, seed):
    """40 sites with some 30 neighbours each; 4 are lost before their words arrive, 2 after."""
    box = federation(40, rounds=1, sparse=True)
    assert box.session.edge_probability < 1
    own = words(box.sites, seed=seed)
    gone = np.random.default_rng(seed).permutation(box.sites)[:6]
    given_words = {site: own[site] for site in box.sites if site not in gone[:4]}
    np.testing.assert_array_equal(
        box.run(1, given_words, silent=set(gone[4:])), modular_sum(own, list(given_words))
    )


def test_a_site_that_missed_rounds_comes_back(federation, words, modular_sum):
    box = federation(4)
    own = words(box.sites)
    first = {site: own[site] for site in box.sites[1:]}
    np.testing.assert_array_equal(box.run(1, first), modular_sum(own, box.sites[1:]))
    np.testing.assert_array_equal(box.run(3, own), modular_sum(own, box.sites))


def test_rounds_may_have_vectors_of_any_length(federation, words, modular_sum):
    box = federation(3)
    for round_number, length in ((1, 1), (2, 65_537), (3, 200_000)):
        own = words(box.sites, length)
        np.testing.assert_array_equal(box.run(round_number, own), modular_sum(own, box.sites))


def test_the_last_round_of_a_session_is_the_last(federation, words):
    box = federation(3, rounds=2, first_round=7)
    own = words(box.sites)
    box.run(7, own)
    box.run(8, own)
    for outside in (6, 9):
        with pytest.raises(FederationError, match="must be set up, and hold that round"):
            box.server.open(outside)
        with pytest.raises(Refused, match="may take part in rounds"):
            box.masked("site-1", outside, own["site-1"])


def test_a_set_up_that_a_site_misses_is_named(federation):
    for step in range(3):
        box = federation(4, ready=False)
        calls = iter(range(3))

        def exchange(messages, box=box, calls=calls, step=step):
            return box.exchange(messages, silent={"site-2"} if next(calls) == step else ())

        with pytest.raises(FederationError, match="site-2"):
            establish(box.server, exchange)


def test_words_from_strangers_other_rounds_and_twice_are_left_out(federation, words):
    box = federation(4)
    own = words(box.sites)
    aggregation = box.collect(1, own)
    right = MaskedInput("site-1", 1, own["site-1"])
    stray = [
        right,
        MaskedInput("stranger", 1, own["site-1"]),
        MaskedInput("site-1", 2, own["site-1"]),
        MaskedInput("site-1", 1, own["site-1"][:3]),
    ]
    for masked in stray:
        with pytest.raises(FederationError, match="do not belong to the sum"):
            aggregation.add(masked)


def test_answers_that_cannot_be_read_or_were_not_asked_for_count_as_silence(federation, words, modular_sum):
    box = federation(5)
    own = words(box.sites)
    aggregation = box.collect(1, own)
    answers = box.exchange(dict.fromkeys(box.sites, aggregation.request().to_bytes()))
    answers["site-2"] = b"garbage"
    total = unmask(aggregation, lambda messages: answers)
    np.testing.assert_array_equal(total, modular_sum(own, box.sites))


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros(4, dtype=np.int64),
        np.zeros(4, dtype=np.float64),
        np.zeros((2, 2), dtype=np.uint32),
        np.zeros(8, dtype=np.uint32)[::2],
        np.zeros(0, dtype=np.uint32),
    ],
)
def test_what_is_not_a_vector_of_words_is_refused_before_the_round_is_claimed(federation, bad):
    box = federation(3)
    with pytest.raises(Refused, match="contiguous vector of uint32"):
        box.clients["site-1"].masked_input(1, bad)
    assert box.marks["site-1"].mark == -1


def test_secrets_of_past_rounds_are_overwritten(federation, words):
    """After a round's recovery nothing at a site can help to open it."""
    box = federation(3, rounds=2)
    box.run(1, words(box.sites))
    client = box.clients["site-1"]
    for kept in (client._secrets, *client._shares.values()):
        first_seed, second_seed, first_key, second_key = (bytes(kept[i : i + 32]) for i in range(0, 128, 32))
        assert first_seed == first_key == bytes(32)
        assert second_seed != bytes(32) != second_key
