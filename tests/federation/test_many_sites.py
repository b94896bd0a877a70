"""Federations of more sites than one complete graph of masks holds, and what happens when many of them fail."""

import numpy as np
import pytest
from tests.federation.toy import DIMENSION, make_agreement

from fedveil.errors import FederationError
from fedveil.federation import Coordinator
from fedveil.federation.secure_rounds import session_of

SITES = 70


@pytest.fixture
def agreement():
    return make_agreement("secure-aggregation", sites=SITES, rounds=3, noise=100.0, min_sites=10)


def test_a_smaller_session_is_opened_when_a_sparse_one_has_lost_too_many(federate, agreement):
    sparse = session_of(agreement, agreement.sites, 1, 256)
    assert sparse.sparse
    left = SITES - (sparse.min_survivors - 1)
    assert agreement.enough(SITES - left), "the terms alone would let this round begin"
    federation = federate(agreement, epsilon=100.0)
    for name in agreement.sites[:left]:
        federation.silent.add(name)
    coordinator = Coordinator(agreement, federation.transport)
    collected = coordinator.collect(agreement.release("training"), 1, np.zeros(DIMENSION))
    assert len(collected.survivors) == SITES - left
    assert coordinator.charged["training"] == 2, "the sparse session's attempt is charged too"


def test_too_few_sites_for_any_session_are_named_before_they_are_charged(federate, agreement):
    federation = federate(agreement, epsilon=100.0)
    coordinator = Coordinator(agreement, federation.transport)
    for name in agreement.sites[: SITES - agreement.honest]:
        coordinator.benched[name] = (1, 2**62)
    with pytest.raises(FederationError, match=f"{agreement.honest} of {SITES} sites remain"):
        coordinator.collect(agreement.release("training"), 1, np.zeros(DIMENSION))
    assert not coordinator.charged


def test_a_session_that_the_terms_cannot_give_counts_as_missing_sites(federate):
    """With 100 sites a sparse session of 67 cannot promise the 66 honest shares that the noise was sized by."""
    agreement = make_agreement("secure-aggregation", sites=100, rounds=1, noise=100.0, min_sites=10)
    assert agreement.enough(67)
    federation = federate(agreement, epsilon=100.0, units=2)
    coordinator = Coordinator(agreement, federation.transport)
    for name in agreement.sites[:33]:
        coordinator.benched[name] = (1, 2**62)
    with pytest.raises(FederationError, match="67 of 100 sites remain"):
        coordinator.collect(agreement.release("training"), 1, np.zeros(DIMENSION))
