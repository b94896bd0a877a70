"""The program as a person uses it: in process, but through the same entry point, exit codes and streams."""

import csv
import json

import numpy as np
import pytest
import typer
from PIL import Image
from tests.cli.person import (
    SMALL,
    fedveil,
    here,  # noqa: F401 - where it all happens
    program,
    refused,
)

from fedveil.cli import app


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
