"""The command to run before anything is spent: what a study would cost, or which setting to choose."""

import json
from pathlib import Path

from fedveil.cli.output.console import speak_plainly
from fedveil.cli.output.tables import print_plan
from fedveil.cli.planning import options
from fedveil.cli.planning.recommendation import print_recommendation, recommendation_values
from fedveil.cli.planning.request import known_laws, make_plan_request, refuse
from fedveil.cli.study_file import AsJson, Data, read_study
from fedveil.planning import make_plan, recommend
from fedveil.planning.cost import Plan
from fedveil.study import Study

__all__ = ["plan"]


def plan(
    study: options.StudyFile = None,
    cohorts: options.Cohorts = None,
    epsilon: options.Epsilon = None,
    trust: options.Trusts = None,
    data: Data = None,
    auroc: options.Auroc = None,
    balanced_accuracy: options.BalancedAccuracy = None,
    risk: options.Risk = None,
    tolerance: options.Tolerance = None,
    metric: options.RankBy = None,
    unit: options.Units = None,
    images: options.Images = None,
    method: options.Methods = None,
    network: options.Networks = None,
    like: options.Like = None,
    fit: options.Fit = None,
    federation: options.Federation = None,
    explain: options.Explain = False,
    as_json: AsJson = False,
) -> None:
    """Print what a study would cost, or recommend a setting, before anything runs.

    Example: fedveil plan study.toml --epsilon 3

    Example: fedveil plan --cohorts 800,600,600,500,400 --auroc 0.95 --explain
    """
    plan_request = {"auroc": auroc, "balanced_accuracy": balanced_accuracy, "risk": risk, "metric": metric}
    plan_request |= {
        "tolerance": tolerance,
        "unit": unit,
        "images": images,
        "method": method,
        "network": network,
    }
    with speak_plainly():
        if cohorts is None:
            asked = plan_request | {"like": like, "fit": fit}
            refuse(
                asked, "is part of a plan request, and a study file states its own settings", "add --cohorts"
            )
            changed = read_study(study or Path("study.toml"), data, epsilon, trust)
            _price(changed, federation, explain, as_json)
            return
        refuse(
            {"federation": federation},
            "prices a study file, and --cohorts recommends one",
            "drop one of them",
        )
        refuse({"data": data}, "cannot be combined with --cohorts, which needs no images", "drop one of them")
        laws, measured = known_laws(like, fit)
        wanted = make_plan_request(
            plan_request | {"epsilon": epsilon, "trust": trust}, cohorts, study, laws, measured
        )
        found = recommend(wanted, laws)
        if as_json:
            print(json.dumps(recommendation_values(found), indent=2))
        else:
            print_recommendation(found, explain)


def _price(study: Study, federation: Path | None, explain: bool, as_json: bool) -> None:
    """Print what a study would cost: simulated, or in the federation at hand."""
    planned = make_plan(study) if federation is None else _in_federation(study, federation)
    if as_json:
        print(json.dumps(planned.to_dict() | {"arithmetic": planned.explain()}, indent=2))
    else:
        print_plan(planned, explain)


def _in_federation(study: Study, folder: Path) -> Plan:
    from fedveil.deploy.coordinator.hospitals import Federation
    from fedveil.deploy.coordinator.planning import plan_federation

    return plan_federation(study, Federation.load(folder))
