import json
import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from scipy.special import ndtr
from scipy.stats import norm

from fedveil.errors import InvalidValue, StudyError
from fedveil.learning import CentredHead
from fedveil.study import (
    NO_PRIVACY,
    Grid,
    Measurement,
    Reference,
    Study,
    Wishes,
    make_terms,
    recommend,
    references,
)
from fedveil.study.rules import signal_to_noise

TASK = Reference(
    name="made up",
    method="gradient",
    separation=2.8,
    patients=40.0,
    noise=80.0,
    power=1.5,
    spread=0.05,
    scatter=0.3,
    ratios=(10.0, 5000.0),
    sizes=(100.0, 3000.0),
    runs=100,
)
ONCE = replace(TASK, method="one-shot", noise=200.0)
LAWS = {"gradient": TASK}
BOTH = {"gradient": TASK, "one-shot": ONCE}
FIVE = (700, 600, 500, 400, 300)


def measured(setting, patients, ratio, auroc):
    return Measurement(
        setting=setting,
        units=patients,
        patients=patients,
        ratio=ratio,
        epsilon_spent=setting.epsilon,
        true_positive_rate=0.02,
        advantage=0.1,
        auroc=auroc,
        balanced_accuracy=auroc,
        seconds=1.0,
    )


@pytest.fixture
def runs():
    """Runs that follow the law with p = 2, and noise of 0.05 on the scale of the score."""
    generator = np.random.default_rng(1)
    lists = {"trust": ("server",), "unit": ("patient",), "sites": (5,), "alpha": (1.0,)}
    grid = Grid(epsilon=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0, NO_PRIVACY), patients=(100, 300, 1000, 3000), **lists)
    found = []
    for setting in grid.settings():
        ratio = 0.25 * setting.patients * setting.epsilon
        lost = 1 + 30 / setting.patients + (60 / ratio) ** 2
        score = 2.5 / math.sqrt(2 * lost) + 0.05 * generator.normal()
        found.append(measured(setting, setting.patients, ratio, float(ndtr(score))))
    return found


def test_the_law_is_found_again(runs):
    fitted = Reference.fit("task", runs)
    errors = [abs(fitted.auroc(m.patients, m.ratio) - m.auroc) for m in runs]
    assert np.mean(errors) < 0.015
    assert fitted.separation == pytest.approx(2.5, rel=0.1)
    assert fitted.spread == pytest.approx(0.05, rel=0.5)
    assert fitted.scatter < 0.15
    assert fitted.runs == len(runs)
    assert fitted.ratios == (0.25 * 100 * 0.25, 0.25 * 3000 * 8)


def test_the_law_holds_on_settings_it_was_not_fitted_on(runs):
    fitted = Reference.fit("task", runs[::2])
    rest = runs[1::2]
    assert np.mean([abs(fitted.auroc(m.patients, m.ratio) - m.auroc) for m in rest]) <= 0.015
    inside = [low <= m.auroc <= high for m in rest for low, high in [fitted.interval(m.patients, m.ratio)]]
    assert np.mean(inside) >= 0.8


def test_chance_decides_where_noise_is_all_there_is(runs):
    """Runs at small nu that scatter by 0.4 widen the interval there and nowhere else."""
    generator = np.random.default_rng(2)
    wild = [replace(m, auroc=float(ndtr(0.4 * generator.normal()))) if m.ratio < 20 else m for m in runs * 3]
    fitted = Reference.fit("task", wild)
    low, high = fitted.interval(100, 2.0)
    assert high - low > 0.3
    low, high = fitted.interval(3000, 3000.0)
    assert high - low < 0.05


def test_the_law_predicts_the_mean_over_runs_where_chance_decides():
    """Separations scatter normally around d, so AUROC has the mean Phi(d / sqrt(2 (1 + s^2)))."""
    wide = replace(TASK, scatter=1.5)
    generator = np.random.default_rng(5)
    for ratio in (40.0, 120.0):
        score = 2.8 / math.sqrt(2 * (1 + 40 / 1000 + (80 / ratio) ** 1.5))
        s = math.sqrt(0.05**2 + 1.5**2 / (1 + (ratio / 80) ** 2))
        mean = ndtr(score + s * generator.standard_normal(200_000)).mean()
        assert wide.auroc(1000, ratio) == pytest.approx(mean, abs=0.003)


def test_each_method_has_a_law_of_its_own(runs):
    once = [
        replace(m, setting=replace(m.setting, method="one-shot"), auroc=0.5 + (m.auroc - 0.5) / 2)
        for m in runs
    ]
    laws = Reference.fit_each("task", runs + once)
    assert set(laws) == {"gradient", "one-shot"}
    assert laws["gradient"] == Reference.fit("task", runs)
    assert laws["one-shot"].auroc(1000, 500) < laws["gradient"].auroc(1000, 500)
    with pytest.raises(InvalidValue, match="by one method"):
        Reference.fit("task", runs + once)


def test_too_few_runs_are_refused(runs):
    with pytest.raises(InvalidValue, match="8 or more"):
        Reference.fit("task", runs[:7])


def test_more_noise_or_fewer_patients_never_help():
    grid = [TASK.auroc(1000, ratio) for ratio in (1, 10, 100, 1000, math.inf)]
    assert grid == sorted(grid)
    assert grid[0] < 0.53
    sizes = [TASK.auroc(size, math.inf) for size in (10, 100, 1000)]
    assert sizes == sorted(sizes)
    low, high = TASK.interval(1000, 100)
    assert low < TASK.auroc(1000, 100) < high


def test_shipped_references_survive_json(tmp_path):
    known = references()
    assert all(
        set(known[name]) == {"gradient", "one-shot"}
        for name in ("chest-x-rays", "breast-ultrasound", "phantom")
    )
    plain = {name: {method: one.to_dict() for method, one in by.items()} for name, by in known.items()}
    text = json.dumps({"references": plain})
    (tmp_path / "mine.json").write_text(text)
    assert references(tmp_path / "mine.json") == known
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(StudyError):
        references(tmp_path / "mine.json")


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "server"])
@pytest.mark.parametrize(
    ("unit", "method"), [("patient", "gradient"), ("site", "gradient"), ("patient", "one-shot")]
)
@pytest.mark.parametrize("shares", [{}, {"evaluation_share": 0.1, "calibration_share": 0.02}])
def test_the_ratio_and_the_noise_are_those_of_the_study_that_would_run(trust, unit, method, shares):
    """The closed form against the terms that a run's sites would admit; whole numbers cost next to nothing."""
    wishes = Wishes(
        cohorts=FIVE,
        units=(unit,),
        trusts=(trust,),
        methods=(method,),
        epsilon=2.0,
        study=Study().with_changes({"privacy": shares, "training": {"method": method}}),
    )
    found = recommend(wishes, BOTH)
    study = Study.parse(found.study_lines()).with_changes({"privacy": shares})
    terms = make_terms(
        study, sites=[f"s{k}" for k in range(5)], model=CentredHead((64,), 2, centred=method == "gradient")
    )
    assert found.chosen.ratio == pytest.approx(signal_to_noise(terms, int(wishes.count(unit))), rel=5e-3)
    mechanism = terms.main.mechanism
    assert found.mechanism.noise_multiplier == pytest.approx(mechanism.noise_multiplier, rel=5e-3)
    assert (found.mechanism.steps, found.mechanism.clip_norm) == (mechanism.steps, mechanism.clip_norm)
    variance = terms.noise_variance(mechanism, 5)
    sites = 0.0 if trust == "server" else variance / 5
    assert found.site_noise**2 == pytest.approx(sites, rel=1e-2)


def test_the_least_trust_that_reaches_the_target_is_chosen():
    found = recommend(Wishes(cohorts=FIVE, auroc=0.95), LAWS)
    assert not found.no
    assert found.chosen.way.trust == "site"
    assert found.chosen.auroc >= 0.95
    smaller = found.wishes.ratio(found.chosen.way, 0.9 * found.chosen.epsilon)
    assert TASK.auroc(found.wishes.patients, smaller) < 0.95
    needed = [one.epsilon for one in found.candidates]
    assert needed == sorted(needed, reverse=True)


def test_a_limit_on_epsilon_brings_in_more_trust():
    """At epsilon 0.4 hospitals that add all their noise fall short of what a sum alone still reaches."""
    free = recommend(Wishes(cohorts=FIVE, auroc=0.95), LAWS)
    limit = (free.candidates[0].epsilon + free.candidates[1].epsilon) / 2
    found = recommend(Wishes(cohorts=FIVE, auroc=0.95, epsilon=limit), LAWS)
    assert found.chosen.way.trust == "secure-aggregation"
    assert found.chosen.epsilon <= limit


def test_little_is_lost_by_trusting_less():
    rich = recommend(Wishes(cohorts=FIVE, epsilon=8.0), LAWS)
    assert rich.chosen.way.trust == "site"
    poor = recommend(Wishes(cohorts=FIVE, epsilon=0.5), LAWS)
    assert poor.chosen.way.trust != "site"


def test_a_hospital_among_five_cannot_be_hidden():
    found = recommend(Wishes(cohorts=FIVE, units=("site",), epsilon=1.0), LAWS)
    assert "one of 5 hospitals cannot be hidden" in found.no
    assert found.chosen.auroc < 0.6
    assert found.advice is not None
    assert "patients instead of whole hospitals" in found.advice.what


def test_the_method_that_loses_less_to_noise_is_chosen():
    """One round gets all of the budget, which rounds of training share with statistics and calibration."""
    better, worse = replace(ONCE, noise=20.0), replace(ONCE, noise=500.0)
    wishes = Wishes(cohorts=FIVE, epsilon=0.5)
    once = recommend(wishes, {"gradient": TASK, "one-shot": better})
    assert once.chosen.way.method == once.reference.method == "one-shot"
    assert once.mechanism.steps == 1
    assert recommend(wishes, {"gradient": TASK, "one-shot": worse}).chosen.way.method == "gradient"
    needed = recommend(Wishes(cohorts=FIVE, auroc=0.95), {"gradient": TASK, "one-shot": better})
    assert needed.chosen.way.method == "one-shot"
    only = recommend(replace(wishes, methods=("gradient",)), {"gradient": TASK, "one-shot": better})
    assert only.chosen.way.method == "gradient"


def test_a_method_that_nobody_measured_is_left_out_or_refused():
    found = recommend(Wishes(cohorts=FIVE), LAWS)
    assert {one.way.method for one in found.candidates} == {"gradient"}
    with pytest.raises(InvalidValue, match="measured by gradient"):
        recommend(Wishes(cohorts=FIVE, methods=("one-shot",)), LAWS)


def test_more_protection_is_preferred_unless_it_costs_noticeably():
    units = {"units": ("patient", "image", "site"), "trusts": ("server",)}
    rich = recommend(Wishes(cohorts=FIVE, images=1.8, epsilon=2.0, **units), LAWS)
    assert rich.chosen.way.unit == "patient"
    poor = recommend(Wishes(cohorts=(100, 80, 60), images=4.0, epsilon=1.0, **units), LAWS)
    assert poor.chosen.way.unit == "image"
    by = {one.way.unit: one for one in poor.candidates}
    assert by["image"].ratio == pytest.approx(4 * by["patient"].ratio)
    assert by["image"].auroc > by["patient"].auroc > by["site"].auroc


def test_the_lines_of_a_study_file_choose_what_was_recommended():
    for laws, wanted in ((LAWS, "gradient"), ({"one-shot": ONCE}, "one-shot")):
        found = recommend(Wishes(cohorts=FIVE, auroc=0.9), laws)
        study = Study.parse(found.study_lines())
        assert study.training.method == wanted
        assert study.privacy.trust == found.chosen.way.trust
        assert study.privacy.epsilon == found.chosen.epsilon


def test_an_unreachable_target_is_a_no_with_what_it_would_take():
    found = recommend(Wishes(cohorts=(100, 100, 100), auroc=0.96, epsilon=0.5), LAWS)
    assert "it would take about" in found.no
    needed = int(found.no.split("about ")[1].split(" ")[0].replace(",", ""))
    scaled = recommend(Wishes(cohorts=(math.ceil(needed / 3),) * 3, auroc=0.96, epsilon=0.5), LAWS)
    assert not scaled.no
    beyond = recommend(Wishes(cohorts=FIVE, auroc=0.999), LAWS)
    assert "at most, with any number of patients" in beyond.no


def test_an_acceptable_risk_becomes_an_epsilon():
    """The largest epsilon whose Gaussian mechanism allows that risk, priced by an accountant of its own."""
    wishes = Wishes(cohorts=FIVE, risk=0.054)
    mu = norm.ppf(0.054) - norm.ppf(0.01)
    accountant = PLDAccountant().compose(dp_event.GaussianDpEvent(1 / mu))
    assert wishes.limit == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
    assert Wishes(cohorts=FIVE, risk=0.054, epsilon=1.0).limit == 1.0


def test_advice_is_the_cheapest_change_that_helps():
    found = recommend(Wishes(cohorts=FIVE, epsilon=0.2, trusts=("site",)), LAWS)
    assert found.advice is not None
    assert "secure aggregation" in found.advice.what
    assert found.advice.gain > 0.01
    full = recommend(Wishes(cohorts=(100_000,) * 5, epsilon=8.0), LAWS)
    assert full.advice is None


def test_the_arithmetic_is_shown():
    lines = "\n".join(recommend(Wishes(cohorts=FIVE, epsilon=1.0, trusts=("server",)), LAWS).explain())
    assert "mu = 0.2680" in lines or "mu = 0.2681" in lines
    assert "nu = N mu / f = 2,500 x " in lines
    assert "D = 2.800" in lines


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"cohorts": ()}, "cohorts are none"),
        ({"cohorts": (5, 0)}, "a patient or more"),
        ({"cohorts": FIVE, "epsilon": 0.0}, "epsilon is 0"),
        ({"cohorts": FIVE, "auroc": 0.4}, "auroc is 0.4"),
        ({"cohorts": FIVE, "risk": 0.005}, "risk is 0.005"),
        ({"cohorts": (5, 5), "trusts": ("secure-aggregation",)}, "3 or more"),
        ({"cohorts": FIVE, "units": ("site",), "methods": ("one-shot",)}, "protects patients or images"),
        ({"cohorts": FIVE, "images": 0.5}, "images is 0.5"),
        ({"cohorts": FIVE, "study": Study.parse('[model]\nnetwork = "cnn"')}, "trains a network"),
    ],
)
def test_impossible_wishes_are_refused(wishes, words):
    with pytest.raises(InvalidValue, match=words):
        Wishes(**wishes)
