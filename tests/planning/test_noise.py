"""The noise of what is recommended: that of the study that would run, sampled or not."""

from dataclasses import replace

import pytest
from tests.planning.laws import (
    AVERAGING,
    BOTH,
    CNN,
    DEEP,
    FIVE,
    GRADIENT,
    LAWS,
    ONE_SHOT,
    TUNED,
)

from fedveil.learning import CentredHead
from fedveil.planning import Configuration, PlanRequest, recommend
from fedveil.privacy import epsilon
from fedveil.study import Study, make_agreement
from fedveil.study.steps import signal_to_noise


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "server"])
@pytest.mark.parametrize(
    ("unit", "recipe", "tables"),
    [
        ("patient", GRADIENT, {}),
        ("patient", GRADIENT, {"privacy": {"evaluation_share": 0.1, "calibration_share": 0.02}}),
        ("patient", GRADIENT, {"training": {"rounds": 20}}),
        ("patient", GRADIENT, {"training": {"sampling_rate": 0.25, "rounds": 70}}),
        ("image", GRADIENT, {"training": {"sampling_rate": 0.5}, "privacy": {"clip_norm": 0.3}}),
        ("patient", GRADIENT, {"privacy": {"personal_calibration_share": 0.2}}),
        ("patient", GRADIENT, {"privacy": {"personal_share": 0.2}}),
        ("patient", ONE_SHOT, {"privacy": {"personal_calibration_share": 0.2}}),
        ("site", GRADIENT, {}),
        ("patient", ONE_SHOT, {}),
        ("patient", ONE_SHOT, {"privacy": {"evaluation_share": 0.1, "calibration_share": 0.02}}),
        ("patient", CNN, {}),
        ("patient", CNN, {"privacy": {"evaluation_share": 0.1}}),
        ("patient", TUNED, {}),
        ("patient", AVERAGING, {}),
        ("image", AVERAGING, {"model": {"network": "cnn"}, "training": {"sampling_rate": 1.0}}),
    ],
)
def test_the_ratio_and_the_noise_are_those_of_the_study_that_would_run(trust, unit, recipe, tables):
    """The closed form against the terms that a run's sites would admit; whole numbers cost next to nothing."""
    own = {table: dict(keys) for table, keys in tables.items()}
    if recipe.method != "averaging":
        own.setdefault("training", {})["method"] = recipe.method
    plan_request = PlanRequest(
        cohorts=FIVE,
        images=1.5,
        units=(unit,),
        trusts=(trust,),
        recipes=(recipe,),
        epsilon=2.0,
        study=Study().with_changes(own),
    )
    found = recommend(plan_request, DEEP)
    study = Study.parse(found.study_lines())
    agreement = make_agreement(
        study, sites=[f"s{k}" for k in range(5)], model=CentredHead((64,), 2, centred=recipe != ONE_SHOT)
    )
    assert agreement.holds
    assert found.chosen.ratio == pytest.approx(
        signal_to_noise(agreement, int(plan_request.count(unit))), rel=5e-3
    )
    mechanism, main = found.mechanism, agreement.main.mechanism
    assert mechanism.noise_multiplier == pytest.approx(main.noise_multiplier, rel=5e-3)
    assert (mechanism.steps, mechanism.clip_norm) == (main.steps, main.clip_norm)
    assert mechanism.sampling_rate == main.sampling_rate
    assert found.rounds == agreement.main.rounds
    scale = mechanism.noise_multiplier / main.noise_multiplier
    assert found.site_noise == pytest.approx(scale * agreement.noise_std(agreement.main), rel=1e-2)


@pytest.mark.parametrize("trust", ["site", "server"])
@pytest.mark.parametrize("recipe", [GRADIENT, CNN, AVERAGING])
def test_the_study_that_would_run_has_the_very_noise_that_is_stated(trust, recipe):
    """Where noise is no whole number; the price of a study's releases is then the epsilon that was asked for."""
    found = recommend(PlanRequest(cohorts=FIVE, trusts=(trust,), recipes=(recipe,), epsilon=0.7), DEEP)
    study = Study.parse(found.study_lines())
    agreement = make_agreement(study, sites=list("abcde"), model=CentredHead((64,), 2))
    assert agreement.main.mechanism == found.mechanism
    assert epsilon([one.mechanism for one in agreement.releases], 1e-5) == pytest.approx(0.7, rel=1e-3)


def test_local_steps_carry_all_noise_whatever_the_trust():
    found = recommend(PlanRequest(cohorts=FIVE, recipes=(AVERAGING,), epsilon=4.0), DEEP)
    assert len({one.configuration.trust for one in found.candidates}) == 3
    ratios = [one.ratio for one in found.candidates]
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-5), "masking whole numbers costs next to nothing"
    assert found.chosen.configuration.trust == "site", "no more trust is asked for than helps"
    assert found.site_noise == pytest.approx(found.mechanism.noise_std)
    assert Study.parse(found.study_lines()).training.units == sum(FIVE)


def test_local_steps_of_more_hospitals_are_noisier():
    """The same patients over 20 hospitals rather than 5: each of them adds what one would."""
    few, many = (
        recommend(PlanRequest(cohorts=cohorts, recipes=(AVERAGING,), epsilon=4.0), DEEP).chosen.ratio
        for cohorts in ((500,) * 5, (125,) * 20)
    )
    assert few == pytest.approx(2 * many)


@pytest.mark.parametrize("target", [0.3, 2.0, 8.0])
def test_sampling_gains_nothing_at_as_many_passes(target):
    """nu falls with the share that takes part, and by the least where noise is largest; so all take part."""
    found = recommend(PlanRequest(cohorts=FIVE, recipes=(GRADIENT,), epsilon=target), LAWS)
    ratios = [one.ratio for one in found.samplings]
    assert [one.rate for one in found.samplings] == [1.0, 0.5, 0.2, 0.1, 0.05]
    assert ratios == sorted(ratios, reverse=True)
    assert [one.rounds * one.rate for one in found.samplings] == [pytest.approx(30)] * 5
    assert found.samplings[0].ratio == pytest.approx(found.chosen.ratio)
    assert found.mechanism.sampling_rate == 1.0
    assert "all in 30" in "\n".join(found.explain())


def test_the_sampling_that_is_compared_is_what_would_run():
    plan_request = PlanRequest(cohorts=FIVE, trusts=("server",), recipes=(GRADIENT,), epsilon=2.0)
    for one in recommend(plan_request, LAWS).samplings[1:]:
        training = {"sampling_rate": one.rate, "rounds": one.rounds}
        study = Study().with_changes({"training": training, "privacy": {"trust": "server", "epsilon": 2.0}})
        agreement = make_agreement(study, sites=list("abcde"), model=CentredHead((64,), 2))
        assert one.ratio == pytest.approx(signal_to_noise(agreement, sum(FIVE)), rel=1e-6)
        assert one.noise_multiplier == agreement.main.mechanism.noise_multiplier


def test_a_sampling_rate_with_more_signal_is_chosen_and_a_tie_goes_to_fewer_rounds(monkeypatch):
    """As it would be if sampled sums were cheaper than they are: every rate as good, or the smallest the best."""
    plan_request = PlanRequest(cohorts=FIVE, trusts=("server",), recipes=(GRADIENT,), epsilon=2.0)
    real = plan_request.samplings(Configuration(unit="patient", trust="server", recipe=GRADIENT), 2.0)
    for ratios, wanted in (([300.0] * 5, 1.0), ([300, 300.1, 300, 400, 400.2], 0.1)):
        made = tuple(replace(one, ratio=ratio) for one, ratio in zip(real, ratios, strict=True))
        monkeypatch.setattr(PlanRequest, "samplings", lambda *_, made=made: made)
        found = recommend(plan_request, LAWS)
        assert found.mechanism.sampling_rate == wanted
        assert Study.parse(found.study_lines()).training.rounds == round(30 / wanted)


def test_a_study_that_samples_stays_as_it_is():
    study = Study.parse("[training]\nsampling_rate = 0.25\nrounds = 80")
    found = recommend(PlanRequest(cohorts=FIVE, epsilon=2.0, study=study), BOTH)
    assert {one.configuration.recipe for one in found.candidates} == {GRADIENT}, (
        "one-shot takes all units once"
    )
    assert (found.mechanism.sampling_rate, found.mechanism.steps) == (0.25, 80)
    assert max(one.ratio for one in found.samplings) > found.chosen.ratio, "and what it gives up is shown"


def test_networks_keep_the_steps_that_their_law_was_measured_at():
    """What a linear head's study says of its own rounds is no plan for another network."""
    study = Study.parse("[training]\nrounds = 12\n[privacy]\nclip_norm = 0.5")
    found = recommend(PlanRequest(cohorts=FIVE, epsilon=2.0, recipes=(CNN,), study=study), DEEP)
    usual = Study.parse('model.network = "cnn"')
    assert (found.rounds, found.mechanism.sampling_rate) == (usual.training.rounds, 0.2)
    assert found.mechanism.clip_norm == usual.privacy.clip_norm
    assert found.samplings == ()
