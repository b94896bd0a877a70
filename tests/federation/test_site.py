"""The site's side of the trust boundary; names of the form test_* from the pitfalls table are pinned there."""

import dataclasses

import numpy as np
import pytest
from tests.federation.toy import DIMENSION, ask, make_agreement

from fedveil.errors import BudgetExceeded, InvalidValue, Refused
from fedveil.federation import (
    Coordinator,
    Declined,
    LocalSteps,
    Policy,
    Release,
    Reply,
    Request,
    SecureReply,
    Site,
)
from fedveil.federation.messages import CHARGED_FIELDS, PUBLIC_FIELDS
from fedveil.federation.queries import (
    CalibrationQuery,
    EvaluationQuery,
    GradientQuery,
    LocalStepsQuery,
    StatisticsQuery,
)
from fedveil.privacy import Budget, Guarantee, IntegerMechanism, Ledger, Mechanism, epsilon


def test_reply_fields_are_charged_or_public():
    for message in (Reply, Declined, SecureReply):
        names = {field.name for field in dataclasses.fields(message)}
        assert names <= PUBLIC_FIELDS | CHARGED_FIELDS, f"{message.__name__} has fields nobody pays for"
    assert not PUBLIC_FIELDS & CHARGED_FIELDS


@pytest.mark.parametrize("trouble", ["raises", "nan", "shape"])
def test_a_failing_learner_tells_nothing_about_its_cohort(federate, caplog, monkeypatch, trouble):
    """Whether a file can be read, or a number overflows, depends on who is there: the answer is noise, as always."""
    federation = federate(make_agreement())
    learner, site = federation.learners["site-1"], federation.sites["site-1"]
    if trouble == "raises":
        learner.broken = True
    else:
        wrong = np.full(DIMENSION, np.nan) if trouble == "nan" else np.ones(DIMENSION + 1)
        monkeypatch.setattr(learner, "contribution", lambda *_, **__: wrong)
    answers = [site.handle(ask(federation.agreement, attempt=k)) for k in range(1, 5)]
    assert all(isinstance(one, Reply) for one in answers)
    noise = np.concatenate([one.vector for one in answers])
    assert 3 < noise.std() < 16, "the noise of the mechanism, 8, and nothing else"
    assert len(federation.ledgers["site-1"].state.charges) == 4
    assert "Jane Doe" not in repr(answers)
    assert "nothing but noise" in caplog.text
    assert ("Jane Doe" in caplog.text) == (trouble == "raises"), "the hospital's own log has the details"


def test_without_privacy_a_failing_learner_is_told(federate):
    federation = federate(make_agreement("none", noise=0.0))
    federation.learners["site-1"].broken = True
    answer = federation.sites["site-1"].handle(ask(federation.agreement))
    assert isinstance(answer, Declined)
    assert answer.code == "failed"
    assert "Jane Doe" not in repr(answer)


def test_one_bad_local_step_is_noise_and_the_next_ones_go_on(federate, monkeypatch):
    """Each step has its own noise, so a step that fails must be noise too, not the end of the round."""
    local = LocalSteps(steps=3, learning_rate=0.1, units=40.0)
    release = Release(
        query=LocalStepsQuery(local),
        mechanism=Mechanism(8.0, 1.0, 12),
        dimension=DIMENSION,
        parameters=DIMENSION,
    )
    federation = federate(make_agreement(releases=(release,)))
    federation.learners["site-1"].broken = True
    answer = federation.sites["site-1"].handle(ask(federation.agreement, release=release.name))
    assert isinstance(answer, Reply)
    assert np.linalg.norm(answer.vector) > 0


def test_an_admitted_study_costs_what_was_admitted_at_most(federate):
    """Whatever a coordinator asks for again, and however much of the hospital's budget is left."""
    agreement = make_agreement(rounds=4, noise=8.0)
    planned = epsilon([agreement.release("training").mechanism], 1e-5)
    agreement = dataclasses.replace(
        agreement, target=dataclasses.replace(agreement.target, epsilon=planned * 1.0001)
    )
    federation = federate(agreement, epsilon=60.0)
    site, ledger = federation.sites["site-1"], federation.ledgers["site-1"]
    answers = [site.handle(ask(agreement, attempt=k)) for k in range(1, 30)]
    assert sum(isinstance(one, Reply) for one in answers) == 4
    assert {one.code for one in answers[4:]} == {"over-budget"}
    assert ledger.spent_on(agreement.title) <= agreement.target.epsilon
    again = Site("site-1", federation.learners["site-1"], Policy(), ledger)
    again.admit(agreement)
    assert isinstance(again.handle(ask(agreement, attempt=99)), Declined), "a restart forgets nothing of it"


def test_releases_that_cost_more_than_the_target_are_not_admitted(federate):
    agreement = make_agreement(rounds=400, noise=2.0)
    agreement = dataclasses.replace(agreement, target=dataclasses.replace(agreement.target, epsilon=1.0))
    federation = federate(agreement, admit=False)
    with pytest.raises(Refused, match="cost more than its target"):
        federation.sites["site-1"].admit(agreement)


def test_a_study_without_privacy_needs_a_budget_without_end(federate, tmp_path):
    """Exact sums are in the ledger too, which then says that nothing bounds what was revealed."""
    agreement = make_agreement("none", noise=0.0)
    federation = federate(agreement)
    assert isinstance(federation.sites["site-1"].handle(ask(agreement)), Reply)
    assert federation.ledgers["site-1"].spent() == float("inf")
    with Ledger(tmp_path / "finite.jsonl", Budget(8.0, 1e-5)) as ledger:
        site = Site("site-1", federation.learners["site-1"], Policy(trusts=frozenset({"none"})), ledger)
        with pytest.raises(BudgetExceeded):
            site.admit(agreement)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e7])
def test_parameters_that_make_numbers_overflow_are_refused(federate, value):
    agreement = make_agreement()
    federation = federate(agreement)
    answer = federation.sites["site-1"].handle(ask(agreement, parameters=np.full(DIMENSION, value)))
    assert isinstance(answer, Declined)
    assert not federation.ledgers["site-1"].state.charges


def test_no_unclipped_state_leaves_a_site(federate):
    federation = federate(make_agreement("none", noise=0.0))
    federation.learners["site-1"].rows *= 1e6
    answer = federation.sites["site-1"].handle(ask(federation.agreement))
    assert isinstance(answer, Reply)
    assert np.linalg.norm(answer.vector) <= federation.learners["site-1"].units * 1.0 + 1e-9


def test_a_failure_after_the_charge_keeps_the_charge(federate):
    federation = federate(make_agreement())
    federation.learners["site-1"].broken = True
    federation.sites["site-1"].handle(ask(federation.agreement))
    assert federation.ledgers["site-1"].spent() > 0


def test_charge_matches_steps_executed(federate):
    agreement = make_agreement(rounds=3)
    federation = federate(agreement)
    for round_number in (1, 2, 3):
        federation.sites["site-1"].handle(ask(agreement, round=round_number, attempt=round_number))
    executed = len(federation.learners["site-1"].seen)
    mechanism = agreement.release("training").mechanism.with_steps(executed)
    assert federation.ledgers["site-1"].spent() == pytest.approx(epsilon([mechanism], 1e-5), rel=1e-12)


def test_sampling_executed_is_sampling_accounted(federate):
    """Each patient is drawn independently with the accounted rate: sizes are binomial, not fixed batches."""
    agreement = make_agreement(rounds=300, sampling_rate=0.25, noise=20.0)
    federation = federate(agreement, units=200)
    for round_number in range(1, 301):
        assert isinstance(
            federation.sites["site-1"].handle(ask(agreement, round=round_number, attempt=round_number)), Reply
        )
    sizes = np.array([len(units) for units in federation.learners["site-1"].seen])
    assert abs(sizes.mean() - 50) < 5 * np.sqrt(200 * 0.25 * 0.75 / 300)
    assert 0.6 < sizes.var() / (200 * 0.25 * 0.75) < 1.6
    counts = np.bincount(np.concatenate(federation.learners["site-1"].seen), minlength=200)
    assert abs(counts - 75).max() < 6 * np.sqrt(300 * 0.25 * 0.75)


def test_site_recomputes_mechanism_from_policy(federate):
    """A request has no field for noise, clip norm or sampling, and terms with less noise are other terms."""
    agreement = make_agreement()
    federation = federate(agreement)
    fields = {field.name for field in dataclasses.fields(Request)}
    assert fields == {"study", "release", "round", "attempt", "participants", "parameters"}
    weaker = dataclasses.replace(
        agreement,
        releases=(
            Release(
                query=GradientQuery(),
                mechanism=Mechanism(noise_multiplier=0.01, clip_norm=1.0, steps=4),
                dimension=DIMENSION,
                parameters=DIMENSION,
            ),
        ),
    )
    assert weaker.digest != agreement.digest
    answer = federation.sites["site-1"].handle(ask(weaker))
    assert isinstance(answer, Declined)
    assert answer.code == "refused"
    assert federation.ledgers["site-1"].spent() == 0


def test_site_refuses_over_budget_request(federate):
    agreement = make_agreement(rounds=4)
    one_round = epsilon([agreement.release("training").mechanism.with_steps(1)], 1e-5)
    federation = federate(agreement, epsilon=one_round * 1.01, admit=False)
    with pytest.raises(BudgetExceeded):
        federation.sites["site-1"].admit(agreement)

    short = make_agreement(rounds=1)
    federation.sites["site-1"].admit(short)
    assert isinstance(federation.sites["site-1"].handle(ask(short)), Reply)
    again = federation.sites["site-1"].handle(ask(short, attempt=2))
    assert isinstance(again, Declined)
    assert again.code == "over-budget"
    assert len(federation.learners["site-1"].seen) == 1, "no pixel is touched without a charge"


def test_delta_must_be_small(federate):
    agreement = make_agreement()
    federation = federate(agreement, admit=False)
    large = dataclasses.replace(agreement, target=Guarantee(1.0, 0.05, "patient", "site"))
    policy = Policy(max_units=40)
    site = Site("site-1", federation.learners["site-1"], policy, federation.ledgers["site-1"])
    with pytest.raises(InvalidValue, match=r"delta is 0\.05 for 40 units"):
        site.admit(large)


@pytest.mark.parametrize("units", [1, 1000, 1001])
def test_admission_does_not_depend_on_how_many_units_there_are(federate, units):
    """Delta and room are checked against the public bound alone, whatever the cohort."""
    agreement = make_agreement("secure-aggregation")
    federation = federate(agreement, units=units)
    assert all(site.admit(agreement) == agreement.digest for site in federation.sites.values())
    anyone = frozenset({"secure-aggregation"})
    Policy(trusts=anyone, max_units=1000).check(agreement)
    with pytest.raises(Refused, match="room for 1,000 units"):
        Policy(trusts=anyone, max_units=1001).check(agreement)


@pytest.mark.parametrize("units", [999, 1000, 1001, 3000])
def test_a_sum_beyond_its_room_is_scaled_and_answered(federate, units):
    """More units than there is room for: no refusal, no wrapping around, and one unit moves it by its bound at most."""
    agreement = make_agreement(
        "secure-aggregation", noise=1.0, target=Guarantee(500.0, 1e-5, "patient", "secure-aggregation")
    )
    federation = federate(agreement, units=10, epsilon=1000.0)
    federation.learners["site-1"].rows = np.tile(np.eye(DIMENSION)[0] * 5.0, (units, 1))
    for name in agreement.sites[1:]:
        federation.learners[name].rows = np.zeros((1, DIMENSION))
    found = Coordinator(agreement, federation.transport).collect(
        agreement.release("training"), 1, np.zeros(DIMENSION)
    )
    assert found.survivors == agreement.sites
    assert found.total[0] == pytest.approx(min(units, 1000), abs=20.0)


@pytest.mark.parametrize(
    "change",
    [
        {"round": 0},
        {"round": 5},
        {"release": "confessions"},
        {"participants": ("site-1",)},
        {"participants": ("site-1", "site-2", "site-3", "site-3")},
        {"participants": ("site-2", "site-3", "site-4")},
        {"participants": ("site-1", "site-2", "site-9")},
        {"parameters": np.zeros(DIMENSION + 1)},
        {"parameters": np.full(DIMENSION, np.nan)},
        {"parameters": np.full(DIMENSION, np.inf)},
        {"study": "0" * 64},
    ],
)
def test_a_request_that_does_not_fit_is_refused_and_costs_nothing(federate, change):
    federation = federate(make_agreement())
    answer = federation.sites["site-1"].handle(ask(federation.agreement, **change))
    assert isinstance(answer, Declined)
    assert answer.code == "refused"
    assert federation.ledgers["site-1"].spent() == 0
    assert federation.learners["site-1"].seen == []


def test_an_attempt_is_served_once_also_after_a_restart(federate):
    federation = federate(make_agreement())
    site = federation.sites["site-1"]
    assert isinstance(site.handle(ask(federation.agreement, attempt=7)), Reply)
    restarted = Site("site-1", federation.learners["site-1"], site._policy, federation.ledgers["site-1"])
    restarted.admit(federation.agreement)
    for served in (site, restarted):
        assert isinstance(served.handle(ask(federation.agreement, attempt=7)), Declined)
        assert isinstance(served.handle(ask(federation.agreement, attempt=6)), Declined)
    assert isinstance(restarted.handle(ask(federation.agreement, attempt=8)), Reply)


def test_policy_refuses_what_the_hospital_does_not_accept(federate):
    agreement = make_agreement("server")
    federation = federate(agreement, admit=False)
    learner, ledger = federation.learners["site-1"], federation.ledgers["site-1"]
    with pytest.raises(Refused, match='trust "server"'):
        Site("site-1", learner, Policy(), ledger).admit(agreement)
    with pytest.raises(Refused, match="min_sites"):
        Site("site-1", learner, Policy(trusts=frozenset({"server"}), min_sites=4), ledger).admit(agreement)
    with pytest.raises(Refused, match="length 6"):
        Site("site-1", learner, Policy(trusts=frozenset({"server"}), max_dimension=5), ledger).admit(
            agreement
        )
    with pytest.raises(Refused, match="not among them"):
        Site("site-x", learner, Policy(trusts=frozenset({"server"})), ledger).admit(agreement)


def test_a_private_site_needs_a_ledger(federate):
    federation = federate(make_agreement(), admit=False)
    with pytest.raises(Refused, match="no ledger"):
        Site("site-1", federation.learners["site-1"], Policy(), None)


def test_clip_bound_is_public(federate):
    """The bound is a constant of the terms, the same in every round, whatever the cohort's norms are."""
    agreement = make_agreement("none", noise=0.0, rounds=3)
    federation = federate(agreement)
    site, learner = federation.sites["site-1"], federation.learners["site-1"]
    used = []
    original = learner.contribution
    learner.contribution = lambda *a, clip_norm, units=None: (
        used.append(clip_norm) or original(*a, clip_norm=clip_norm, units=units)
    )
    for round_number, scale in enumerate((1.0, 100.0, 0.01), 1):
        learner.rows *= scale
        site.handle(ask(agreement, round=round_number, attempt=round_number))
    assert used == [agreement.release("training").mechanism.clip_norm] * 3


@pytest.mark.parametrize("query", [StatisticsQuery(), CalibrationQuery(), EvaluationQuery()])
def test_a_bounded_release_must_state_its_real_bound(query):
    """Its contributions have norm up to 1, so a smaller clip norm would mean less noise than is charged."""
    with pytest.raises(InvalidValue, match="clip norm"):
        Release(query=query, mechanism=Mechanism(5.0, 0.5, 1), dimension=4, parameters=0)


def test_whole_numbers_must_be_those_that_are_priced():
    integer = IntegerMechanism.fit(Mechanism(5.0, 1.0, 1), dimension=4, sites=5, shares=3, units=10)
    cheap = dataclasses.replace(integer.mechanism, noise_multiplier=500.0)
    with pytest.raises(InvalidValue, match="executed"):
        Release(query=GradientQuery(), mechanism=cheap, dimension=4, parameters=4, integer=integer)
    with pytest.raises(InvalidValue, match="executed"):
        Release(
            query=GradientQuery(), mechanism=integer.mechanism, dimension=5, parameters=4, integer=integer
        )


def test_without_privacy_no_release_states_noise():
    """Nobody would add it, and a charge would say that somebody did."""
    agreement = make_agreement("site")
    with pytest.raises(InvalidValue, match="states noise"):
        dataclasses.replace(agreement, target=Guarantee(float("inf"), 1e-5, "patient", "none"))


def test_what_all_sites_make_together_no_hospital_makes_for_itself(federate):
    """It would leave with the noise of one share, and count as another round."""
    agreement = make_agreement("secure-aggregation")
    federation = federate(agreement)
    with pytest.raises(Refused, match="a release of all sites together"):
        federation.sites["site-1"].make_own(agreement.digest, "training", np.zeros(DIMENSION))
    assert not federation.ledgers["site-1"].state.charges


def test_a_ledger_with_charges_of_kinds_that_are_gone_is_read_and_counts(federate, tmp_path):
    """Earlier versions released checks of progress and several phases of training, and charged them by name."""
    agreement, old = make_agreement(rounds=4, noise=8.0), Mechanism(8.0, 1.0, 1)
    both = epsilon([agreement.main.mechanism, old.with_steps(4)], 1e-5)
    learner = federate(agreement, admit=False).learners["site-1"]
    for budget, fits in ((both * 1.001, True), (both * 0.999, False)):
        path = tmp_path / f"{fits}.jsonl"
        with Ledger(path, Budget(budget, 1e-5)) as ledger:
            for attempt, label in enumerate(("training", "training-2", "progress", "training-5"), 1):
                ledger.reserve(
                    old, study="earlier 0123456789ab", trust="site", label=f"{label} attempt {attempt}"
                )
        with Ledger(path) as ledger:
            site = Site("site-1", learner, Policy(), ledger)
            if fits:
                site.admit(agreement)
                assert isinstance(site.handle(ask(agreement)), Reply)
                continue
            with pytest.raises(BudgetExceeded):
                site.admit(agreement)
