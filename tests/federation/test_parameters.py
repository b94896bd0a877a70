"""A site refuses a model that the study cannot have made, for every release, before anything is charged."""

import numpy as np
import pytest

from fedveil.errors import InvalidValue
from fedveil.federation import Agreement, Declined, LocalSteps, Policy, Release, Reply, Request, Site
from fedveil.federation.queries import (
    CalibrationQuery,
    EvaluationQuery,
    GradientQuery,
    LocalStepsQuery,
    OwnModelQuery,
    OwnThresholdQuery,
    StatisticsQuery,
)
from fedveil.learning import CentredHead, CentredLearner, HeldOut, ScoreHistogram
from fedveil.privacy import Budget, Guarantee, Ledger, Mechanism

HEAD = CentredHead((4, 3), 2)
WHOLE = HEAD.parameters
LOCAL = LocalSteps(steps=1, learning_rate=1.0, units=10.0)
QUERIES = {
    StatisticsQuery(): (HEAD.statistics_size, 0),
    GradientQuery(): (HEAD.trained, WHOLE),
    LocalStepsQuery(LOCAL): (HEAD.trained, WHOLE),
    CalibrationQuery(): (HEAD.calibration_size, WHOLE),
    EvaluationQuery(): (ScoreHistogram.size(2), 2 + WHOLE),
    OwnModelQuery(LOCAL): (HEAD.trained, WHOLE),
    OwnThresholdQuery(): (HEAD.calibration_size, WHOLE),
}
ASKED = [query.name for query in QUERIES if query.name != "statistics" and not query.at_site]
SPOILS = {"centre": slice(0, 4), "weights": slice(7, 9), "shift": slice(9, 10)}


@pytest.fixture
def site(tmp_path):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(30, 7)).astype(np.float32)
    labels, patients = np.arange(30) % 2, np.arange(30) // 2
    learner = CentredLearner(HEAD, features, labels, patients)
    held_out = HeldOut(lambda whole: HEAD.probabilities(whole, features), labels, patients, classes=2)
    mechanism = Mechanism(noise_multiplier=50.0, clip_norm=1.0, steps=9, sampling_rate=1.0)
    releases = tuple(
        Release(query=query, mechanism=mechanism, dimension=length, parameters=sent)
        for query, (length, sent) in QUERIES.items()
    )
    agreement = Agreement(
        name="toy",
        settings={},
        sites=("a", "b"),
        target=Guarantee(50.0, 1e-5, "patient", "site"),
        releases=releases,
        min_sites=1,
    )
    with Ledger(tmp_path / "ledger.jsonl", Budget(60.0, 1e-5)) as ledger:
        made = Site("a", learner, Policy(trusts=frozenset({"site"})), ledger, held_out=held_out)
        made.admit(agreement)
        yield made, agreement, ledger


def sent(release, generator):
    parameters = HEAD.join(None, generator.normal(size=HEAD.trained))
    return np.concatenate([[0.3, 0.7], parameters]) if release == "evaluation" else parameters


def ask(agreement, release, parameters, attempt=1):
    return Request(
        study=agreement.digest,
        release=release,
        round=1,
        attempt=attempt,
        participants=agreement.sites,
        parameters=parameters,
    )


@pytest.mark.parametrize("release", ASKED)
@pytest.mark.parametrize("spoil", SPOILS)
def test_a_site_refuses_what_no_study_makes(site, release, spoil, caplog):
    made, agreement, ledger = site
    parameters = sent(release, np.random.default_rng(1))
    spoilt = parameters.copy()
    before = len(spoilt) - WHOLE
    spoilt[before + SPOILS[spoil].start : before + SPOILS[spoil].stop] = 9e5
    answer = made.handle(ask(agreement, release, spoilt))
    assert isinstance(answer, Declined)
    assert answer.code == "refused"
    assert not ledger.state.charges, "nothing is charged for it"
    assert "send the model of the study" in caplog.text
    assert isinstance(made.handle(ask(agreement, release, parameters)), Reply)


def test_a_site_refuses_frequencies_that_no_study_makes(site):
    made, agreement, ledger = site
    parameters = sent("evaluation", np.random.default_rng(1))
    parameters[:2] = 1e6, 1.0
    assert isinstance(made.handle(ask(agreement, "evaluation", parameters)), Declined)
    assert not ledger.state.charges


def test_a_site_makes_no_model_of_its_own_from_what_no_study_makes(site):
    made, agreement, ledger = site
    parameters = sent("training", np.random.default_rng(1))
    spoilt = parameters.copy()
    spoilt[:4] = 9e5
    for own in ("personal", "personal-calibration"):
        with pytest.raises(InvalidValue, match="block of the centre"):
            made.make_own(agreement.digest, own, spoilt)
        assert not ledger.state.charges
    for number, own in enumerate(("personal", "personal-calibration"), 1):
        assert np.isfinite(made.make_own(agreement.digest, own, parameters).total).all()
        assert len(ledger.state.charges) == number


def test_statistics_need_no_parameters(site):
    made, agreement, _ = site
    assert isinstance(made.handle(ask(agreement, "statistics", np.empty(0))), Reply)
