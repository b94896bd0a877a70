"""Sums of 64-bit words through the whole federation: agreement, requests as bytes, masks, drop-outs, decoded total."""

from dataclasses import replace

import numpy as np
import pytest
from tests.federation.toy import DIMENSION, make_agreement

from fedveil.errors import FederationError
from fedveil.federation import Coordinator, wire
from fedveil.federation.messages import Declined, Reply
from fedveil.federation.secure_aggregation import Aggregation, MaskedInput, Session
from fedveil.privacy import IntegerMechanism


def widened(agreement):
    """The same agreement with words of 64 bits."""
    release = agreement.main
    integer = release.integer
    plain = replace(integer.mechanism, epsilon_slack=0.0, delta_slack=0.0)
    size = {"dimension": DIMENSION, "sites": integer.sites, "shares": integer.shares, "units": 1000}
    made = IntegerMechanism.fit(plain, **size, bits=64)
    changed = replace(release, integer=made, mechanism=made.mechanism)
    return replace(
        agreement, releases=tuple(changed if one is release else one for one in agreement.releases)
    )


class OverTheWire:
    """Answers as they arrive from a network; `spoil` changes those of some sites."""

    def __init__(self, transport, spoil):
        self.transport, self.spoil = transport, spoil
        self.kinds = set()
        self.signing_keys = {}

    def exchange(self, requests):
        answers = {}
        for site, answer in self.transport.exchange(requests).items():
            if isinstance(answer, Reply):
                self.kinds.add(answer.vector.dtype)
                answer = self.spoil(answer)
                answer = wire.unpack(wire.pack(answer), Reply | Declined)
            answers[site] = answer
        return answers


def test_a_round_of_wide_words_gives_the_sum_with_its_noise(federate):
    agreement = widened(make_agreement("secure-aggregation", sites=5, rounds=4, noise=4.0, min_sites=3))
    narrow = make_agreement("secure-aggregation", sites=5, rounds=4, noise=4.0, min_sites=3)
    assert agreement.digest != narrow.digest, "the width of a word is part of what a hospital admits"
    federation = federate(agreement)
    federation.silent.add("site-2")
    transport = OverTheWire(federation.transport, lambda answer: answer)
    parameters = np.zeros(DIMENSION)
    collected = Coordinator(agreement, transport).collect(agreement.release("training"), 1, parameters)
    assert transport.kinds == {np.dtype(np.uint64)}
    exact = np.sum(
        [
            federation.learners[name].contribution(parameters, clip_norm=1.0)
            for name in agreement.sites
            if name != "site-2"
        ],
        axis=0,
    )
    std = np.sqrt(4 / agreement.honest) * agreement.main.mechanism.noise_std
    assert 0 < np.abs(collected.total - exact).max() < 7 * std


def test_narrow_words_do_not_belong_to_a_wide_sum(federate):
    agreement = widened(make_agreement("secure-aggregation", sites=5, rounds=4, noise=4.0, min_sites=3))
    federation = federate(agreement)

    def narrow(answer):
        return replace(answer, vector=answer.vector.astype(np.uint32)) if answer.site == "site-3" else answer

    coordinator = Coordinator(agreement, OverTheWire(federation.transport, narrow))
    collected = coordinator.collect(agreement.release("training"), 1, np.zeros(DIMENSION))
    assert "site-3" not in collected.survivors


def test_a_sum_takes_words_of_one_width():
    session = Session.of("study", ("a", "b", "c"), rounds=1)
    aggregation = Aggregation(session, b"", {}, {}, 1)
    aggregation.add(MaskedInput("a", 1, np.zeros(3, dtype=np.uint64)))
    with pytest.raises(FederationError, match="one length and width"):
        aggregation.add(MaskedInput("b", 1, np.zeros(3, dtype=np.uint32)))
