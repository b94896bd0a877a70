"""`fedveil plan` as a person runs it."""

import csv
import json

import pytest
from tests.cli.person import (
    SMALL,
    fedveil,
    here,  # noqa: F401 - where it all happens
    refused,
)

from fedveil.cli.output.console import console


def test_plan_and_run_state_the_same_guarantee():
    planned = json.loads(fedveil("plan", "--json").stdout)
    result = json.loads(fedveil("run", "--out", "out", "--json").stdout)
    assert planned["guarantee"]["epsilon"] == pytest.approx(result["guarantee"]["epsilon"], rel=1e-6)
    assert planned["epsilon_alone"] == pytest.approx(result["sites"][0]["epsilon_alone"], rel=1e-6)


def test_plan_shows_the_arithmetic_of_the_noise():
    """Release by release mu is sqrt(steps) / z, and their squares add up to that of the whole."""
    planned = json.loads(fedveil("plan", "--json").stdout)
    by = {one["what"]: one["mechanism"] for one in planned["releases"]}
    squares = {name: one["steps"] / one["noise_multiplier"] ** 2 for name, one in by.items()}
    text = fedveil("plan", "--explain").stdout
    assert text.count(" = ") > fedveil("plan").stdout.count(" = ")
    assert f"mu = sqrt(4 steps) / {by['training']['noise_multiplier']:.4g}" in text
    assert f"{sum(squares.values()) ** 0.5:.4f}" in text
    assert "1 / sqrt(3)" in text
    assert "so each adds 1 / sqrt(3)" not in fedveil("plan", "--trust", "server", "--explain").stdout
    assert (
        f"nu = units x mu / what trust makes of the noise = {planned['outlook']['signal_to_noise']:.1f}"
        in text
    )


def test_plan_recommends_a_setting_that_runs(tmp_path):
    """The lines at the end are a study file, and what `plan` says of it is what was promised."""
    text = fedveil("plan", "--cohorts", "700,600,500", "--epsilon", "1", "--explain").stdout
    assert "recommended" in text
    assert "nu = N mu / f = 1,800 x" in text
    found = json.loads(fedveil("plan", "--cohorts", "700,600,500", "--epsilon", "1", "--json").stdout)
    assert found["answer"] == "yes"
    assert found["study"] in text
    source = SMALL.split("[model]")[0]
    (tmp_path / "wanted.toml").write_text(source + found["study"].replace("delta = 1e-05", "delta = 1e-3"))
    planned = json.loads(fedveil("plan", "wanted.toml", "--json").stdout)
    assert planned["guarantee"]["trust"] == found["chosen"]["configuration"]["trust"]
    assert planned["guarantee"]["epsilon"] == pytest.approx(1.0, rel=1e-3)
    assert "sampling" in text
    assert "0.5 in 60: " in text, "what sampling would give"


def test_plan_shows_both_accuracies_and_compares_by_the_one_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(console, "_width", 200)
    call = ("plan", "--cohorts", "700,600,500", "--epsilon", "1")
    usual, other = (
        json.loads(fedveil(*call, *more, "--json").stdout) for more in ((), ("--balanced-accuracy", "0.8"))
    )
    assert (usual["metric"], other["metric"]) == ("auroc", "balanced-accuracy")
    assert other["chosen"]["predicted"]["balanced-accuracy"]["expected"] >= 0.8
    assert (
        set(usual["chosen"]["predicted"]) == set(usual["without_privacy"]) == {"auroc", "balanced-accuracy"}
    )
    text = fedveil(*call, "--metric", "balanced-accuracy").stdout
    assert text.index("predicted balanced accuracy") < text.index("predicted AUROC")
    assert any(line.startswith("patient  site") and "one-shot" in line for line in text.splitlines())
    assert text.index("epsilon  balanced accuracy") > 0
    expected = other["chosen"]["predicted"]["balanced-accuracy"]["expected"]
    assert f"{expected:.3f}" in fedveil(*call, "--balanced-accuracy", "0.8").stdout


def test_plan_recommends_a_network_whose_lines_are_a_study(tmp_path):
    call = ("plan", "--cohorts", "700,600,500", "--epsilon", "8", "--network", "efficientnet-lite0")
    found = json.loads(fedveil(*call, "--json").stdout)
    assert {one["configuration"]["recipe"]["network"] for one in found["candidates"]} == {
        "efficientnet-lite0"
    }
    assert found["study"].startswith('[model]\nnetwork = "efficientnet-lite0"')
    text = fedveil(*call, "--explain").stdout
    assert "the network efficientnet-lite0" in text
    assert "sampling is as in the measured runs: all of the units in each of 30 rounds" in text


def test_plan_says_what_local_steps_cost():
    call = ("plan", "--cohorts", "700,600,500", "--epsilon", "8", "--network", "cnn", "--method", "averaging")
    found = json.loads(fedveil(*call, "--json").stdout)
    ratios = [one["ratio"] for one in found["candidates"]]
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-5), "the same noise whatever the trust"
    text = fedveil(*call, "--explain").stdout
    assert "each of 3 hospitals adds all noise to its local steps, at every trust level: f = sqrt(3)" in text
    assert "over 120 steps on a share 0.2 of the units and 2 equal ones" in text
    assert "nu = q N sqrt(T) / (z f) = 0.2 x 1,800 x sqrt(120) / (" in text
    assert "image_size = 28" in found["study"]


def test_plan_keeps_what_a_study_file_says(tmp_path):
    (tmp_path / "sampled.toml").write_text("[training]\nsampling_rate = 0.5\nrounds = 40\n")
    found = json.loads(
        fedveil("plan", "sampled.toml", "--cohorts", "700,600,500", "--network", "linear", "--json").stdout
    )
    assert (found["sampling_rate"], found["rounds"]) == (0.5, 40)
    assert {one["configuration"]["recipe"]["method"] for one in found["candidates"]} == {"gradient"}
    refused(
        fedveil("plan", "sampled.toml", "--cohorts", "700,600,500", "--method", "one-shot"),
        "one-shot does not fit the study",
        "uses all units once",
    )


def test_plan_says_no_honestly():
    found = fedveil("plan", "--cohorts", "700,600,500,400,300", "--unit", "site", "--epsilon", "1")
    assert "one of 5 hospitals cannot be hidden" in found.stdout
    assert "[privacy]" not in found.stdout, "nothing to paste"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--auroc", "0.9"), ("--auroc is 0.9", "add --cohorts")),
        (("study.toml", "--unit", "image"), ("--unit is image", "add --cohorts")),
        (("--fit", "sweep"), ("--fit is sweep", "add --cohorts")),
        (("--cohorts", "5,6,7", "--data", "phantom"), ("--data is phantom", "needs no images")),
        (("--cohorts", "5,6,7", "--like", "phantom", "--fit", "x"), ("--like is phantom", "--fit")),
        (("--cohorts", "5,6,7", "--like", "brains"), ("--like is 'brains'", "chest-x-rays")),
        (("--cohorts", "5;6"), ("--cohorts is '5;6'", "whole numbers")),
        (("--cohorts", "5,6,7", "--trust", "nobody"), ("--trust holds 'nobody'", "secure-aggregation")),
        (("--cohorts", "5,6", "--trust", "secure-aggregation"), ("cannot be combined", "3 or more")),
        (("--cohorts", "5,6,7", "--unit", "patient,image"), ("cohorts count patients", "add --images")),
        (("--cohorts", "5,6,7", "--method", "sgd"), ("--method holds 'sgd'", "one-shot")),
        (("--cohorts", "5,6,7", "--network", "vgg"), ("--network holds 'vgg'", "efficientnet-lite0")),
        (
            ("--cohorts", "5,6,7", "--network", "linear", "--method", "averaging"),
            ("has --method averaging and --network linear", "efficientnet-lite0 by gradient"),
        ),
        (("--cohorts", "5,6,7", "--metric", "recall"), ("--metric holds 'recall'", "balanced-accuracy")),
        (
            ("--cohorts", "5,6,7", "--metric", "auroc,balanced-accuracy"),
            ("compared by exactly one", "choose one"),
        ),
        (("--cohorts", "5,6,7", "--balanced-accuracy", "1.5"), ("balanced accuracy is 1.5", "between 0.5")),
        (("--balanced-accuracy", "0.8"), ("--balanced-accuracy is 0.8", "add --cohorts")),
        (("--metric", "auroc"), ("--metric is auroc", "add --cohorts")),
        (("--network", "cnn"), ("--network is cnn", "add --cohorts")),
    ],
)
def test_plan_refuses_what_does_not_fit_the_call(arguments, words):
    refused(fedveil("plan", *arguments), *words)


def test_a_sweep_of_ones_own_is_what_a_plan_predicts_from(tmp_path):
    lists = (
        "--epsilon",
        "4,8,16,none",
        "--sites",
        "3",
        "--trust",
        "site,server",
        "--method",
        "gradient,one-shot",
    )
    swept = fedveil("sweep", "--out", "swept", *lists, "--workers", "1", "--json")
    assert swept.exit_code == 0, swept.output
    rows = list(csv.DictReader((tmp_path / "swept" / "results.csv").read_text().splitlines()))
    assert {row["method"] for row in rows} == {"gradient", "one-shot"}
    again = fedveil(
        "sweep", "--out", "swept", *lists, "--patients", "30,all", "--resume", "--workers", "1", "--json"
    )
    assert again.exit_code == 0, again.output
    found = json.loads(
        fedveil("plan", "--cohorts", "60,60", "--fit", "swept", "--epsilon", "8", "--json").stdout
    )
    assert found["like"] == "swept"
    assert 'features = "pixels"' in found["study"], "what was measured is what is recommended"
    assert "delta = 0.001" in found["study"]
    assert {one["configuration"]["recipe"]["method"] for one in found["candidates"]} == {
        "gradient",
        "one-shot",
    }
