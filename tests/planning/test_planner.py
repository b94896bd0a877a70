import math
from dataclasses import replace

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from scipy.stats import norm
from tests.planning.laws import (
    AVERAGING,
    CNN,
    DEEP,
    FIVE,
    GRADIENT,
    LAWS,
    ONCE,
    ONE_SHOT,
    TASK,
    TUNED,
    law_of,
    laws,
)

from fedveil.errors import InvalidValue
from fedveil.planning import PlanRequest, recommend
from fedveil.study import METRICS, Study


def test_a_study_that_trains_otherwise_than_what_was_measured_is_told_so():
    """A network's steps have a fixed size, so fewer of them go less far; a head's grow as they become fewer."""
    few = "[training]\nrounds = 5\n"
    for recipe, text, words in (
        (CNN, few + '[model]\nnetwork = "cnn"', "sets training.rounds:"),
        (GRADIENT, '[model]\nfeatures = "pixels"', "sets model.features:"),
        (GRADIENT, few, ""),
        (AVERAGING, "", ""),
    ):
        note = recommend(PlanRequest(cohorts=FIVE, recipes=(recipe,), study=Study.parse(text)), DEEP).note
        assert ("those runs may have had other values" in note) == bool(words)
        assert words in note
    own = Study.parse(few + '[model]\nnetwork = "cnn"')
    found = recommend(PlanRequest(cohorts=FIVE, recipes=(CNN,), study=own, measured=own), DEEP)
    assert "those runs may have had other values" not in found.note
    assert found.rounds == 5


def test_the_size_of_images_that_a_law_was_measured_at_is_in_the_study():
    small = laws(law_of(CNN, image_size=28))
    found = recommend(PlanRequest(cohorts=FIVE, recipes=(CNN,)), small)
    assert Study.parse(found.study_lines()).data.image_size == 28
    usual = recommend(PlanRequest(cohorts=FIVE), LAWS)
    assert "image_size" not in usual.study_lines()


def test_a_network_is_chosen_only_if_it_gives_noticeably_more():
    plan_request = PlanRequest(cohorts=FIVE, epsilon=2.0, recipes=(GRADIENT, TUNED))
    for gain, wanted in ((1.005, GRADIENT), (1.1, TUNED)):
        known = laws(TASK, law_of(TUNED, separation=gain * TASK.separation))
        found = recommend(plan_request, known)
        by = {one.configuration: one.value("auroc") for one in found.candidates}
        assert (
            by[replace(found.chosen.configuration, recipe=TUNED)]
            > by[replace(found.chosen.configuration, recipe=GRADIENT)]
        )
        assert found.chosen.configuration.recipe == wanted


def test_settings_are_compared_by_the_metric_that_is_asked_for():
    """One recipe ranks better, the other finds the better threshold."""
    known = laws(TASK, ONCE)
    known[ONE_SHOT]["balanced-accuracy"] = replace(known[ONE_SHOT]["balanced-accuracy"], separation=2.4)
    plan_request = PlanRequest(cohorts=FIVE, epsilon=8.0)
    assert recommend(plan_request, known).chosen.configuration.recipe == GRADIENT
    found = recommend(replace(plan_request, metric="balanced-accuracy"), known)
    assert found.chosen.configuration.recipe == ONE_SHOT
    assert {law.metric for law in found.laws.values()} == set(found.chosen.predicted) == set(METRICS)
    assert found.reference.metric == "balanced-accuracy"
    assert found.bare["balanced-accuracy"] > recommend(plan_request, laws(TASK)).bare["balanced-accuracy"]


def test_a_target_is_what_settings_are_compared_by_unless_said_otherwise():
    assert PlanRequest(cohorts=FIVE, balanced_accuracy=0.8).ranked == "balanced-accuracy"
    assert PlanRequest(cohorts=FIVE, balanced_accuracy=0.8, auroc=0.9).ranked == "auroc"
    assert PlanRequest(cohorts=FIVE, balanced_accuracy=0.8, metric="auroc").ranked == "auroc"
    assert PlanRequest(cohorts=FIVE).ranked == "auroc"


@pytest.mark.parametrize(("auroc", "balanced", "binding"), [(0.96, 0.86, "balanced"), (0.97, 0.7, "auroc")])
def test_every_target_is_met_by_the_smallest_epsilon_that_meets_it(auroc, balanced, binding):
    plan_request = PlanRequest(cohorts=FIVE, recipes=(GRADIENT,), trusts=("server",))
    alone = {
        "auroc": recommend(replace(plan_request, auroc=auroc), LAWS).chosen,
        "balanced": recommend(replace(plan_request, balanced_accuracy=balanced), LAWS).chosen,
    }
    assert max(alone, key=lambda name: alone[name].epsilon) == binding
    both = recommend(replace(plan_request, auroc=auroc, balanced_accuracy=balanced), LAWS).chosen
    assert both.epsilon == alone[binding].epsilon
    assert both.value("auroc") >= auroc
    assert both.value("balanced-accuracy") >= balanced
    smaller = plan_request.ratio(both.configuration, 0.9 * both.epsilon)
    law = LAWS[GRADIENT]
    missed = [
        law["auroc"].expected(sum(FIVE), smaller) < auroc,
        law["balanced-accuracy"].expected(sum(FIVE), smaller) < balanced,
    ]
    assert any(missed)


@pytest.mark.parametrize("recipe", [CNN, AVERAGING])
def test_sampled_networks_meet_a_target_too(recipe):
    plan_request = PlanRequest(cohorts=FIVE, recipes=(recipe,), trusts=("server",), auroc=0.9)
    found = recommend(plan_request, DEEP).chosen
    assert found.value("auroc") >= 0.9
    assert found.epsilon == float(f"{found.epsilon:.2g}"), "a number that can be typed"
    smaller = plan_request.ratio(found.configuration, 0.9 * found.epsilon)
    assert DEEP[recipe]["auroc"].expected(sum(FIVE), smaller) < 0.9


def test_an_unreachable_balanced_accuracy_is_a_no_in_its_own_words():
    beyond = recommend(PlanRequest(cohorts=FIVE, balanced_accuracy=0.99), LAWS)
    assert "allow a balanced accuracy of 0.885 at most" in beyond.no
    short = recommend(PlanRequest(cohorts=(100, 100, 100), balanced_accuracy=0.86, epsilon=0.5), LAWS)
    assert "the best is balanced accuracy 0." in short.no
    assert "patients would be needed" in short.no


def test_no_recipe_that_is_accepted_does_better_than_the_ceiling_of_a_no():
    """A target that the better of two recipes could reach is no matter of the task."""
    known = laws(TASK, law_of(CNN, separation=0.8 * TASK.separation))
    plan_request = PlanRequest(cohorts=(30, 30, 30), recipes=(GRADIENT, CNN), auroc=0.97, epsilon=0.5)
    assert "any number of patients" not in recommend(plan_request, known).no
    assert "any number of patients" in recommend(replace(plan_request, recipes=(CNN,)), known).no


def test_the_least_trust_that_reaches_the_target_is_chosen():
    found = recommend(PlanRequest(cohorts=FIVE, auroc=0.95), LAWS)
    assert not found.no
    assert found.chosen.configuration.trust == "site"
    assert found.chosen.value("auroc") >= 0.95
    smaller = found.plan_request.ratio(found.chosen.configuration, 0.9 * found.chosen.epsilon)
    assert TASK.expected(found.plan_request.patients, smaller) < 0.95
    needed = [one.epsilon for one in found.candidates]
    assert needed == sorted(needed, reverse=True)


def test_a_limit_on_epsilon_brings_in_more_trust():
    """At epsilon 0.4 hospitals that add all their noise fall short of what a sum alone still reaches."""
    free = recommend(PlanRequest(cohorts=FIVE, auroc=0.95), LAWS)
    limit = (free.candidates[0].epsilon + free.candidates[1].epsilon) / 2
    found = recommend(PlanRequest(cohorts=FIVE, auroc=0.95, epsilon=limit), LAWS)
    assert found.chosen.configuration.trust == "secure-aggregation"
    assert found.chosen.epsilon <= limit


def test_little_is_lost_by_trusting_less():
    rich = recommend(PlanRequest(cohorts=FIVE, epsilon=8.0), LAWS)
    assert rich.chosen.configuration.trust == "site"
    poor = recommend(PlanRequest(cohorts=FIVE, epsilon=0.5), LAWS)
    assert poor.chosen.configuration.trust != "site"


def test_a_hospital_among_five_cannot_be_hidden():
    found = recommend(PlanRequest(cohorts=FIVE, units=("site",), epsilon=1.0), LAWS)
    assert "one of 5 hospitals cannot be hidden" in found.no
    assert found.chosen.value("auroc") < 0.6
    assert found.advice is not None
    assert "patients instead of whole hospitals" in found.advice.what


def test_the_method_that_loses_less_to_noise_is_chosen():
    """One round gets all of the budget, which rounds of training share with statistics and calibration."""
    better, worse = replace(ONCE, noise=20.0), replace(ONCE, noise=500.0)
    plan_request = PlanRequest(cohorts=FIVE, epsilon=0.5)
    once = recommend(plan_request, laws(TASK, better))
    assert once.chosen.configuration.recipe == once.reference.recipe == ONE_SHOT
    assert once.mechanism.steps == 1
    assert recommend(plan_request, laws(TASK, worse)).chosen.configuration.recipe == GRADIENT
    needed = recommend(PlanRequest(cohorts=FIVE, auroc=0.95), laws(TASK, better))
    assert needed.chosen.configuration.recipe == ONE_SHOT
    only = recommend(replace(plan_request, recipes=(GRADIENT,)), laws(TASK, better))
    assert only.chosen.configuration.recipe == GRADIENT


def test_a_method_that_nobody_measured_is_left_out_or_refused():
    found = recommend(PlanRequest(cohorts=FIVE), LAWS)
    assert {one.configuration.recipe for one in found.candidates} == {GRADIENT}
    with pytest.raises(InvalidValue, match="measured for gradient"):
        recommend(PlanRequest(cohorts=FIVE, recipes=(ONE_SHOT,)), LAWS)


def test_more_protection_is_preferred_unless_it_costs_noticeably():
    units = {"units": ("patient", "image", "site"), "trusts": ("server",)}
    rich = recommend(PlanRequest(cohorts=FIVE, images=1.8, epsilon=2.0, **units), LAWS)
    assert rich.chosen.configuration.unit == "patient"
    poor = recommend(PlanRequest(cohorts=(100, 80, 60), images=4.0, epsilon=1.0, **units), LAWS)
    assert poor.chosen.configuration.unit == "image"
    by = {one.configuration.unit: one for one in poor.candidates}
    assert by["image"].ratio == pytest.approx(4 * by["patient"].ratio)
    assert by["image"].value("auroc") > by["patient"].value("auroc") > by["site"].value("auroc")


def test_the_lines_of_a_study_file_choose_what_was_recommended():
    for recipe in (GRADIENT, ONE_SHOT, CNN, AVERAGING, TUNED):
        found = recommend(PlanRequest(cohorts=FIVE, auroc=0.9, recipes=(recipe,)), DEEP)
        study = Study.parse(found.study_lines())
        assert (study.model.network, study.training.method) == (recipe.network, recipe.method)
        assert study.privacy.trust == found.chosen.configuration.trust
        assert study.privacy.epsilon == found.chosen.epsilon


def test_an_unreachable_target_is_a_no_with_what_it_would_take():
    found = recommend(PlanRequest(cohorts=(100, 100, 100), auroc=0.96, epsilon=0.5), LAWS)
    assert "patients would be needed" in found.no
    needed = int(found.no.split("about ")[1].split(" ")[0].replace(",", ""))
    scaled = recommend(PlanRequest(cohorts=(math.ceil(needed / 3),) * 3, auroc=0.96, epsilon=0.5), LAWS)
    assert not scaled.no
    beyond = recommend(PlanRequest(cohorts=FIVE, auroc=0.999), LAWS)
    assert "at most, with any number of patients" in beyond.no


def test_an_acceptable_risk_becomes_an_epsilon():
    """The largest epsilon whose Gaussian mechanism allows that risk, priced by an accountant of its own."""
    plan_request = PlanRequest(cohorts=FIVE, risk=0.054)
    mu = norm.ppf(0.054) - norm.ppf(0.01)
    accountant = PLDAccountant().compose(dp_event.GaussianDpEvent(1 / mu))
    assert plan_request.limit == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
    assert PlanRequest(cohorts=FIVE, risk=0.054, epsilon=1.0).limit == 1.0


def test_advice_is_the_cheapest_change_that_helps():
    found = recommend(PlanRequest(cohorts=FIVE, epsilon=0.2, trusts=("site",)), LAWS)
    assert found.advice is not None
    assert "secure aggregation" in found.advice.what
    assert found.advice.gain > 0.01
    full = recommend(PlanRequest(cohorts=(19_000,) * 5, epsilon=8.0), LAWS)
    assert full.advice is None


def test_advice_says_if_another_recipe_is_better_then():
    """A network that needs more patients than there are wins as soon as there are more hospitals or more epsilon."""
    late = law_of(TUNED, separation=1.2 * TASK.separation, noise=600.0)
    plan_request = PlanRequest(cohorts=(200, 200, 200), epsilon=1.0, recipes=(GRADIENT, TUNED))
    found = recommend(plan_request, laws(TASK, late))
    assert found.chosen.configuration.recipe == GRADIENT
    told = {change.what for change in found.changes}
    more = recommend(replace(plan_request, cohorts=(20_000,) * 3), laws(TASK, late))
    assert more.chosen.configuration.recipe == TUNED
    assert not any("and efficientnet-lite0 by gradient" in what for what in told)
    near = recommend(replace(plan_request, cohorts=(1700,) * 3), laws(TASK, late))
    assert near.chosen.configuration.recipe == GRADIENT
    assert any(
        what.endswith(", and efficientnet-lite0 by gradient") for what in {c.what for c in near.changes}
    )


def test_a_delta_that_would_let_a_patient_be_published_is_refused():
    with pytest.raises(InvalidValue, match="delta is 1e-05"):
        recommend(PlanRequest(cohorts=(60_000, 60_000)), LAWS)


def test_the_arithmetic_is_shown():
    lines = "\n".join(recommend(PlanRequest(cohorts=FIVE, epsilon=1.0, trusts=("server",)), LAWS).explain())
    assert "mu = 0.2680" in lines or "mu = 0.2681" in lines
    assert "nu = N mu / f = 2,500 x " in lines
    assert "D = 2.800" in lines


@pytest.mark.parametrize(
    ("plan_request", "words"),
    [
        ({"cohorts": ()}, "cohorts are none"),
        ({"cohorts": (5, 0)}, "at least one patient"),
        ({"cohorts": FIVE, "epsilon": 0.0}, "epsilon is 0"),
        ({"cohorts": FIVE, "auroc": 0.4}, "auroc is 0.4"),
        ({"cohorts": FIVE, "risk": 0.005}, "risk is 0.005"),
        ({"cohorts": (5, 5), "trusts": ("secure-aggregation",)}, "3 or more"),
        ({"cohorts": FIVE, "units": ("site",), "recipes": (ONE_SHOT,)}, "one-shot does not fit the study"),
        ({"cohorts": FIVE, "units": ("site",), "recipes": (AVERAGING,)}, "needs all of them"),
        ({"cohorts": FIVE, "balanced_accuracy": 0.4}, "balanced accuracy is 0.4"),
        ({"cohorts": FIVE, "images": 0.5}, "images is 0.5"),
    ],
)
def test_impossible_wishes_are_refused(plan_request, words):
    with pytest.raises(InvalidValue, match=words):
        PlanRequest(**plan_request)
