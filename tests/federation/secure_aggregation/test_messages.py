"""Messages survive the journey as bytes; anything else is refused with a sentence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.errors import FederationError
from fedveil.federation.secure_aggregation import (
    Announcement,
    MaskedInput,
    Recovery,
    RecoveryRequest,
    Roster,
    SharesDelivered,
    SharesSent,
)
from fedveil.federation.secure_aggregation.lock import Lock

names = st.text(min_size=1, max_size=8)
keys = st.binary(min_size=32, max_size=32)
numbers = st.integers(0, 2**63 - 1)
boxes = st.dictionaries(names, st.binary(max_size=20), max_size=4)
announcements = st.builds(
    Announcement, names, keys, st.lists(keys, max_size=3).map(tuple), st.binary(min_size=64, max_size=64)
)


@st.composite
def recoveries(draw):
    sites = draw(st.lists(names, max_size=4, unique=True))
    pad = st.binary(min_size=48, max_size=48)
    lock = Lock(draw(st.binary(max_size=40)), draw(keys), {site: draw(pad) for site in sites})
    return Recovery(draw(names), draw(numbers), lock, {site: draw(pad) for site in sites})


messages = st.one_of(
    announcements,
    st.builds(Roster, st.lists(announcements, max_size=3).map(tuple)),
    st.builds(SharesSent, names, boxes),
    st.builds(SharesDelivered, boxes),
    st.builds(RecoveryRequest, numbers, st.lists(names, max_size=5).map(tuple)),
    recoveries(),
)


@given(messages)
def test_messages_survive_the_journey(message):
    assert type(message).from_bytes(message.to_bytes()) == message


@given(names, numbers, st.lists(st.integers(0, 2**32 - 1), max_size=9), st.sampled_from([32, 64]))
def test_masked_input_survives_the_journey(site, number, words, bits):
    message = MaskedInput(site, number, np.array(words, dtype=f"u{bits // 8}") - 1)
    arrived = MaskedInput.from_bytes(message.to_bytes())
    assert (arrived.site, arrived.round_number) == (site, number)
    np.testing.assert_array_equal(arrived.words, message.words)
    assert arrived.words.dtype == message.words.dtype


@given(messages, st.data())
def test_a_message_cut_short_is_refused(message, data):
    whole = message.to_bytes()
    end = data.draw(st.integers(0, len(whole) - 1))
    try:
        arrived = type(message).from_bytes(whole[:end])
    except FederationError:
        return
    assert arrived != message  # a list that was cut between two of its items is a shorter list


@given(st.binary(max_size=60), st.sampled_from([Announcement, Roster, SharesSent, MaskedInput, Recovery]))
def test_garbage_is_refused(garbage, kind):
    with pytest.raises(FederationError, match="cannot be read"):
        kind.from_bytes(garbage)


def test_a_message_of_another_kind_is_refused():
    with pytest.raises(FederationError, match="of the expected kind"):
        Recovery.from_bytes(RecoveryRequest(1, ("a", "b")).to_bytes())


def test_masked_words_travel_raw():
    """Four bytes a parameter: the update costs what it costs as float32."""
    message = MaskedInput("site-1", 1, np.zeros(10_000, dtype=np.uint32))
    assert len(message.to_bytes()) - 40_000 < 100
