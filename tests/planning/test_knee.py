"""Without wishes the recommendation is the least epsilon that keeps the accuracy."""

import json
import math
from dataclasses import replace

import pytest
from tests.planning.laws import FIVE, GRADIENT, LAWS, ONCE, TASK, laws
from typer.testing import CliRunner

from fedveil.cli import app
from fedveil.cli.output.console import console
from fedveil.errors import InvalidValue
from fedveil.planning import PlanRequest, recommend, references

SMALL = (100, 100, 100)


def plan(*arguments):
    found = CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "80"})
    assert found.exit_code == 0, found.output
    return found.stdout


def test_the_least_epsilon_within_the_tolerance_is_recommended():
    found = recommend(PlanRequest(cohorts=FIVE, trusts=("site",)), LAWS)
    bare = TASK.expected(sum(FIVE), math.inf)
    assert not found.no
    assert found.chosen.value("auroc") >= bare - 0.01
    smaller = found.plan_request.ratio(found.chosen.configuration, 0.9 * found.chosen.epsilon)
    assert TASK.expected(sum(FIVE), smaller) < bare - 0.01
    strict = recommend(PlanRequest(cohorts=FIVE, trusts=("site",), tolerance=0.002), LAWS)
    assert strict.chosen.epsilon > found.chosen.epsilon


def test_a_limit_without_a_tolerance_is_used_whole_and_with_one_only_as_needed():
    whole = recommend(PlanRequest(cohorts=FIVE, epsilon=6.0), LAWS)
    assert whole.chosen.epsilon == 6.0
    least = recommend(PlanRequest(cohorts=FIVE, epsilon=6.0, tolerance=0.01), LAWS)
    assert least.chosen.epsilon < 2


def test_where_no_epsilon_keeps_the_accuracy_the_answer_is_an_honest_no():
    """300 patients: even epsilon 8 loses more than the tolerance; the number needed is enough, and not far too many."""
    found = recommend(PlanRequest(cohorts=SMALL, trusts=("site",), tolerance=0.001), LAWS)
    assert "no epsilon up to 8 keeps the AUROC within 0.001" in found.no
    assert found.chosen.epsilon == 8.0
    assert found.advice is not None
    assert found.advice.gain >= max(change.gain for change in found.changes) / 2 > 0.003
    needed = int(found.no.split("about ")[1].split(" ")[0].replace(",", ""))
    fits = recommend(
        PlanRequest(cohorts=(math.ceil(1.3 * needed / 3),) * 3, trusts=("site",), tolerance=0.001), LAWS
    )
    assert not fits.no


def test_the_curve_rises_marks_the_choice_and_states_its_risk():
    found = recommend(PlanRequest(cohorts=FIVE), LAWS)
    epsilons = [point.epsilon for point in found.curve]
    assert epsilons == sorted(epsilons)
    assert found.chosen.epsilon in epsilons
    expected = [point.predicted.expected for point in found.curve]
    rates = [point.true_positive_rate for point in found.curve]
    assert expected == sorted(expected)
    assert rates == sorted(rates)
    chosen = found.curve[epsilons.index(found.chosen.epsilon)]
    assert chosen.predicted.expected == pytest.approx(found.chosen.value("auroc"))
    assert all(point.predicted.low < point.predicted.expected < point.predicted.high for point in found.curve)


def test_three_ordinary_hospitals_need_little_and_trust_nobody_more_than_by_default():
    text = plan("--cohorts", "700,600,500", "--network", "linear", "--json")
    chosen = json.loads(text)["chosen"]
    assert chosen["epsilon"] <= 1
    assert chosen["configuration"]["trust"] in ("site", "secure-aggregation")


def test_a_weaker_trust_is_recommended_only_if_it_was_named(tmp_path):
    """A cohort so small that a trusted server would help most."""
    study = tmp_path / "study.toml"
    study.write_text("[privacy]\ntrust = 'site'\n")
    call = ("--cohorts", "40,40,40", "--network", "linear", "--json")
    for more, trusts in (
        ((), {"site", "secure-aggregation"}),
        ((str(study),), {"site"}),
        (("--trust", "site,server"), {"site", "server"}),
    ):
        found = json.loads(plan(*more, *call))
        assert {one["configuration"]["trust"] for one in found["candidates"]} == trusts


def test_the_terminal_shows_the_curve_in_80_columns(monkeypatch):
    monkeypatch.setattr(console, "_width", 80)  # otherwise that of the terminal when the console was made
    text = plan("--cohorts", "700,600,500")
    table = text[: text.index("the cheapest change")]
    assert max(map(len, table.splitlines())) <= 80
    marked = [line for line in table.splitlines() if line.startswith(">")]
    assert len(marked) == 2
    assert "o" in marked[0]
    assert "the least within 0.01 of the AUROC without privacy" in marked[1]
    assert "an attacker finds at most" in table


@pytest.mark.parametrize("tolerance", [-0.1, 0.0, 0.5, math.nan])
def test_a_tolerance_that_means_nothing_is_refused(tolerance):
    with pytest.raises(InvalidValue, match="tolerance is"):
        PlanRequest(cohorts=FIVE, tolerance=tolerance)


def test_every_recipe_that_is_offered_has_laws_of_both_metrics():
    for by in references().values():
        for recipe, known in by.items():
            assert set(known) == {"auroc", "balanced-accuracy"}, recipe


def test_a_recipe_with_a_lower_ceiling_does_not_win_by_reaching_it():
    """Its knee is cheaper, but what it keeps is less than what the other reaches."""
    worse = replace(ONCE, separation=1.5, noise=5.0)
    found = recommend(PlanRequest(cohorts=FIVE), laws(TASK, worse))
    assert found.chosen.configuration.recipe == GRADIENT
