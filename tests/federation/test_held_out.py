"""A site's released evaluation: charged before a held-out score leaves, and the same to read without test patients."""

import dataclasses

import numpy as np
import pytest
from tests.federation.toy import DIMENSION, ask, make_agreement

from fedveil.federation import (
    Declined,
    Release,
    Reply,
    Site,
)
from fedveil.federation.queries import (
    EvaluationQuery,
)
from fedveil.learning import HeldOut
from fedveil.learning.evaluation.score_histogram import BINS
from fedveil.privacy import IntegerMechanism, Mechanism


def evaluation_terms(trust="site", **changes):
    """Terms with a training release and an evaluation on held-out units."""
    agreement = make_agreement(trust, rounds=1)
    mechanism = dataclasses.replace(Mechanism(noise_multiplier=5.0, clip_norm=1.0, steps=1), **changes)
    integer = None
    if trust == "secure-aggregation":
        integer = IntegerMechanism.fit(
            mechanism, dimension=2 * BINS, sites=5, shares=agreement.honest, units=1000
        )
        mechanism = integer.mechanism
    evaluation = Release(
        query=EvaluationQuery(),
        mechanism=mechanism,
        dimension=2 * BINS,
        parameters=2 + DIMENSION,
        integer=integer,
    )
    return dataclasses.replace(agreement, releases=(*agreement.releases, evaluation))


class Scorer:
    def __call__(self, parameters):
        return np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])


def held_out():
    return HeldOut(Scorer(), np.array([0, 1, 1]), np.array([0, 1, 1]), classes=2)


def with_held_out(federation, agreement, held=None):
    site = federation.sites["site-1"]
    again = Site(
        "site-1", federation.learners["site-1"], site._policy, federation.ledgers["site-1"], held_out=held
    )
    again.admit(agreement)
    return again


def test_an_evaluation_is_charged_before_a_held_out_score_leaves(federate):
    """The reply is the histogram with the whole noise of the mechanism, and the ledger holds the price."""
    agreement = evaluation_terms()
    federation = federate(agreement, admit=False)
    site = with_held_out(federation, agreement, held_out())
    request = ask(
        agreement, release="evaluation", parameters=np.concatenate([[1.0, 1.0], np.zeros(DIMENSION)])
    )
    answer = site.handle(request)
    assert isinstance(answer, Reply)
    exact = held_out().histogram(request.parameters)
    assert exact.sum() == pytest.approx(2), "two patients, one of them with two images"
    assert 1.0 < np.std(answer.vector - exact) < 12.0
    charge = federation.ledgers["site-1"].state.charges[-1]
    assert charge.mechanism == agreement.release("evaluation").mechanism
    assert charge.label.startswith("evaluation")
    assert federation.learners["site-1"].seen == [], "training patients take no part"
    twice = site.handle(dataclasses.replace(request, round=2, attempt=2))
    assert isinstance(twice, Declined), "the study evaluates once"


def test_a_site_without_held_out_patients_answers_with_noise_alone(federate):
    agreement = evaluation_terms()
    federation = federate(agreement, admit=False)
    site = with_held_out(federation, agreement)
    answer = site.handle(ask(agreement, release="evaluation", parameters=np.ones(2 + DIMENSION)))
    assert isinstance(answer, Reply)
    assert answer.vector.shape == (2 * BINS,)
    assert federation.ledgers["site-1"].spent() > 0, "whether it holds any is nobody's business"


def test_hostile_class_frequencies_get_noise(federate):
    agreement = evaluation_terms()
    federation = federate(agreement, admit=False)
    site = with_held_out(federation, agreement, held_out())
    answer = site.handle(ask(agreement, release="evaluation", parameters=np.zeros(2 + DIMENSION)))
    assert isinstance(answer, Reply)
    assert answer.vector.std() > 0
