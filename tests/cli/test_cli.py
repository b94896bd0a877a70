"""The program as a person uses it: in process, but through the same entry point, exit codes and streams."""

import csv
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from tests.study.conftest import write_images
from typer.testing import CliRunner

from fedveil.cli import app
from fedveil.cli.output.console import console

SMALL = """
[study]
name = "small"
[data]
source = "images.npz"
image_size = 16
[model]
features = "pixels"
[training]
rounds = 4
[privacy]
epsilon = 20.0
delta = 1e-3
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(console, "width", 200)  # otherwise as it was when the console was made
    write_images(tmp_path / "images.npz")
    (tmp_path / "study.toml").write_text(SMALL)


def fedveil(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result, *words):
    """A user's mistake: exit code 2, one line, no traceback."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    line = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert all(word in line for word in words), line
    return line


def commands(group, prefix=()):
    for name, command in typer.main.get_command(group).commands.items():
        if hasattr(command, "commands"):
            for inner in command.commands:
                yield (*prefix, name, inner)
        else:
            yield (*prefix, name)


@pytest.mark.parametrize("command", list(commands(app)), ids=" ".join)
def test_every_command_has_help_with_an_example(command):
    result = fedveil(*command, "--help")
    assert result.exit_code == 0
    assert "Example: fedveil " + " ".join(command[:1]) in " ".join(result.output.split())


def test_a_study_from_its_file_to_its_report_and_predictions(tmp_path):
    assert fedveil("plan").exit_code == 0
    run = fedveil("run", "--out", "out", "--json")
    assert run.exit_code == 0, run.output
    result = json.loads(run.stdout)
    assert result["metrics"]["test"]["auroc"] > 0.9
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
    assert fedveil("ledger", "verify", "out/ledgers/site-1.jsonl").exit_code == 0
    shown = json.loads(fedveil("ledger", "show", "out/ledgers/site-1.jsonl", "--json").stdout)
    assert shown["epsilon_spent"] == pytest.approx(result["guarantee"]["epsilon"])
    again = fedveil("report", "out")
    assert again.exit_code == 0

    (tmp_path / "new").mkdir()
    with np.load(tmp_path / "images.npz") as file:
        images, labels = file["images"][:12], file["labels"][:12]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "new" / f"{number:02}.png")
    predicted = fedveil("predict", "out", "new")
    rows = list(csv.DictReader(predicted.stdout.splitlines()))
    assert [row["image"] for row in rows] == [f"{number:02}.png" for number in range(12)]
    hits = np.mean(
        [row["predicted"] == ["left", "right"][label] for row, label in zip(rows, labels, strict=True)]
    )
    assert hits >= 0.75
    for row in rows:
        scores = {name: float(row[f"score:{name}"]) for name in ("left", "right")}
        assert row["predicted"] == max(scores, key=scores.get)
        assert sum(scores.values()) == pytest.approx(1, abs=1e-5)

    (tmp_path / "new" / "05.png").write_bytes(b"no image")
    (tmp_path / "new" / "table.tsv").write_text("Image Index\tage\n04.png\t1\n05.png\t2\n06.png\t3\n")
    predicted = fedveil("predict", "out", "new/table.tsv", "--column", "path=Image Index")
    assert predicted.exit_code == 2
    assert [line.split(",")[0] for line in predicted.stdout.splitlines()] == ["image", "04.png", "06.png"]
    assert "not classified: new/table.tsv, line 3: new/05.png: it is not an image" in predicted.stderr


def test_a_study_file_is_checked_with_all_that_it_says_of_its_data(tmp_path):
    with np.load(tmp_path / "images.npz") as file:
        for number, image in enumerate(file["images"][:4]):
            Image.fromarray(image).save(tmp_path / f"{number}.png")
    (tmp_path / "set.csv").write_text("Image Index,dx\n0.png,a|b\n1.png,c\n2.png,b\n3.png,c\n")
    refused(fedveil("run", "study.toml", "--data", "set.csv"), 'path = "Image Index", label = "dx"')
    text = SMALL.replace('"images.npz"', '"set.csv"\npositive = ["b"]\nseparator = "|"')
    (tmp_path / "own.toml").write_text(text + '[data.columns]\npath = "Image Index"\nlabel = "dx"\n')
    checked = fedveil("data", "check", "own.toml")
    assert checked.exit_code == 0, checked.output
    assert "positive: 2 images" in checked.stdout
    mapped = fedveil("data", "check", "set.csv", "--column", "path=Image Index", "--column", "label=dx")
    assert "which looks like 2 findings" in mapped.stdout


def test_one_round_makes_a_model_and_a_report(tmp_path):
    """What `plan` may recommend, with the alternatives that a report may ask for."""
    (tmp_path / "once.toml").write_text(SMALL.replace("rounds = 4", 'method = "one-shot"'))
    run = fedveil("run", "once.toml", "--out", "out", "--baselines", "--json")
    assert run.exit_code == 0, run.output
    result = json.loads(run.stdout)
    assert set(result["baselines"]) == {
        "no_privacy",
        "pooled",
        "pooled_no_privacy",
        "alone",
        "alone_no_privacy",
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The model was made in one round" in page
    assert "5 hospitals, 1 round" in page


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
    monkeypatch.setattr(console, "width", 200)
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


def test_init_writes_a_study_that_runs(tmp_path):
    assert fedveil("init", "mine.toml", "--data", "images.npz").exit_code == 0
    refused(fedveil("init", "mine.toml"), "mine.toml exists", "never overwrites")
    assert fedveil("plan", "mine.toml", "--epsilon", "3").exit_code == 0


def test_mistakes_are_told_in_one_line(tmp_path):
    refused(fedveil("run", "absent.toml"), "absent.toml does not exist", "fedveil init")
    refused(fedveil("run", "--epsilon", "-1"), "privacy.epsilon is -1")
    refused(fedveil("run", "--trust", "everyone"), "privacy.trust")
    refused(fedveil("run", "--data", "absent.npz"), "absent.npz")
    (tmp_path / "bad.toml").write_text("[privacy]\ndelta = 0.1")
    refused(fedveil("run", "bad.toml"), "delta is 0.1")
    refused(fedveil("report", "nowhere"), "nowhere")
    refused(fedveil("predict", "nowhere", "images"), "model")
    refused(fedveil("ledger", "verify", "nowhere.jsonl"), "nowhere.jsonl")
    refused(fedveil("data", "fetch", "no-such-set"), "no-such-set")
    refused(fedveil("data", "split", "images.npz", "hospitals", "--scheme", "odd"), "scheme is odd")
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_a_refused_run_leaves_nothing_behind(tmp_path):
    study = SMALL.replace("delta = 1e-3", "delta = 0.5")
    (tmp_path / "study.toml").write_text(study)
    refused(fedveil("run", "--out", "out"), "delta is 0.5")
    assert not (tmp_path / "out").exists()


def test_a_finished_run_is_neither_overwritten_nor_resumed():
    assert fedveil("run", "--out", "out").exit_code == 0
    refused(fedveil("run", "--out", "out"), "finished run")
    refused(fedveil("run", "--out", "out", "--resume"), "nothing to resume")


def test_an_edited_ledger_is_refused(tmp_path):
    fedveil("run", "--out", "out")
    ledger = tmp_path / "out" / "ledgers" / "site-1.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"steps":1,', b'"steps":0,', 1))
    refused(fedveil("ledger", "verify", ledger), "site-1.jsonl")


def test_a_damaged_model_is_named(tmp_path):
    fedveil("run", "--out", "out")
    model = tmp_path / "out" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-100])
    (tmp_path / "new").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "new" / "a.png")
    refused(fedveil("predict", "out", "new"), "the model in out is damaged")


def test_a_model_of_other_features_is_not_used(tmp_path):
    """What another version makes of an image is another feature, even if there are as many of them."""
    fedveil("run", "--out", "out")
    described = tmp_path / "out" / "model.json"
    described.write_text(described.read_text().replace("whitened-1 ", "whitened-0 "))
    (tmp_path / "new").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "new" / "a.png")
    refused(fedveil("predict", "out", "new"), "this fedveil computes")


def test_data_check_lists_problems_and_fails(tmp_path):
    Image.new("L", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "manifest.csv").write_text("path,label,patient\na.png,x,1\nb.png,y,2\nc.png,y,3\n")
    result = fedveil("data", "check", "manifest.csv")
    assert result.exit_code == 2
    assert "line 3" in result.output
    assert "line 4" in result.output


def test_a_sweep_over_named_hospitals_tells_what_all_of_it_costs(tmp_path):
    arrays = dict(np.load(tmp_path / "images.npz"))
    site = arrays["patient"] % 2
    np.savez(tmp_path / "images.npz", **arrays, site=site, site_names=np.array(["north", "south"]))
    lists = ("--epsilon", "4,8", "--trust", "site", "--out", "swept")
    remedy = refused(fedveil("sweep", *lists), "2 real hospitals", "2 models")
    paid = fedveil("sweep", *lists, "--pay", remedy.split("--pay ")[1].rstrip("."))
    assert paid.exit_code == 0, paid.output
    words = " ".join(paid.output.split())
    assert "all models of this sweep together: Adding or removing any one patient" in words
    assert "a later run on the same patients adds to it" in words
    found = json.loads(fedveil("sweep", *lists, "--resume", "--json").stdout)
    assert found["guarantee"]["trust"] == "site"
    spent = found["epsilon_spent"]
    assert set(spent) == {"north", "south"}
    assert 8 < max(spent.values()) <= found["guarantee"]["epsilon"]


def test_a_sweep_prints_the_alternatives_and_they_are_no_part_of_a_forecast(tmp_path):
    lists = ("--epsilon", "2,4,8,16", "--trust", "site", "--sites", "3", "--seeds", "2", "--workers", "1")
    swept = fedveil("sweep", *lists, "--baselines", "--out", "swept")
    assert swept.exit_code == 0, swept.output
    assert swept.stdout.split("epsilon")[1].split()[:3] == ["site", "pooled", "alone"]
    plan = ("plan", "--cohorts", "60,60", "--epsilon", "8", "--json", "--fit", "swept")
    with_alternatives, results = fedveil(*plan).stdout, tmp_path / "swept" / "results.jsonl"
    kept = [line for line in results.read_text().splitlines() if '"federated"' in line]
    assert 8 < len(kept) < len(results.read_text().splitlines())
    results.write_text("\n".join(kept) + "\n")
    assert fedveil(*plan).stdout == with_alternatives != ""


def test_baselines_are_trained_on_request():
    result = json.loads(fedveil("run", "--out", "out", "--baselines", "--json").stdout)
    assert set(result["baselines"]) == {
        "no_privacy",
        "pooled",
        "pooled_no_privacy",
        "alone",
        "alone_no_privacy",
    }
    assert all(0 <= metrics["auroc"] <= 1 for metrics in result["baselines"].values())


def program(*arguments, limit: int | None = None):
    """The installed program in a process of its own, whose files cannot grow beyond ``limit`` bytes."""

    def constrain() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [Path(sys.executable).parent / "fedveil", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONWARNINGS": "default", "OMP_NUM_THREADS": "1"},
        preexec_fn=constrain,
    )


def test_a_full_disk_ends_in_one_line_and_a_run_that_can_be_resumed(tmp_path):
    full = program("run", "--out", "out", limit=6_000)
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    assert "error: " in full.stderr
    assert not (tmp_path / "out" / "result.json").exists()
    if (tmp_path / "out").exists():
        resumed = program("run", "--out", "out", "--resume")
        assert resumed.returncode == 0, resumed.stderr


def test_a_directory_that_may_not_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(fedveil("run", "--out", "file/out"), "file")


WHO = ("--by", "A. Lind", "--role", "privacy officer")


def test_a_budget_is_amended_on_record(tmp_path):
    fedveil("run", "--out", "out")
    ledger = tmp_path / "out" / "ledgers" / "site-1.jsonl"
    result = fedveil("ledger", "amend", ledger, "--epsilon", "30", "--reason", "ethics board", *WHO)
    assert result.exit_code == 0, result.output
    shown = json.loads(fedveil("ledger", "show", ledger, "--json").stdout)
    assert shown["budget"]["epsilon"] == 30
    assert shown["epsilon_spent"] > 0, "what was spent stays spent"
    assert "ethics board" in ledger.read_text()
    absent = fedveil("ledger", "amend", "nowhere.jsonl", "--epsilon", "30", "--reason", "x", *WHO)
    refused(absent, "nowhere.jsonl does not exist")
