import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tests.study.stopping import Stop, StopAfter

from fedveil.errors import BudgetExceeded, InvalidValue, StudyError
from fedveil.io import json_line
from fedveil.privacy import Ledger, Mechanism, epsilon, verify_ledger
from fedveil.study import RunDirectory, Study, run
from fedveil.study.prepare import prepare
from fedveil.study.results.schema import SCHEMA, Result, RoundLine

FILES = {
    "study.toml",
    "result.json",
    "rounds.jsonl",
    "predictions.csv",
    "provenance.json",
    "examples.npz",
    "model.safetensors",
    "model.json",
    "ledgers",
}


def test_a_run_leaves_a_complete_directory(study, tmp_path):
    result = run(RunDirectory.create(tmp_path / "out", study()))
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    written = json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]
    assert written == json.loads(json_line(result["metrics"]))
    assert result["metrics"]["test"]["auroc"] > 0.9
    rounds = [json.loads(line) for line in (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()]
    assert [record["round"] for record in rounds] == [1, 2, 3, 4, 5, 6]
    predictions = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    assert len(predictions) == result["metrics"]["test"]["n"]
    hits = np.mean([row["label"] == row["predicted"] for row in predictions])
    assert hits == pytest.approx(result["metrics"]["test"]["accuracy"])


def test_epsilon_composes_over_rounds(study, tmp_path):
    """The stated epsilon is the price of everything the ledgers hold, not of one round."""
    result = run(RunDirectory.create(tmp_path / "out", study()))
    state = verify_ledger(tmp_path / "out" / "ledgers" / "site-1.jsonl")
    assert [charge.label.split()[0] for charge in state.charges] == ["statistics"] + ["training"] * 6 + [
        "calibration"
    ]
    whole = epsilon([charge.mechanism for charge in state.charges], 1e-3)
    assert result["guarantee"]["epsilon"] == pytest.approx(whole, rel=1e-9)
    assert whole <= 20.0
    assert whole == pytest.approx(20.0, rel=1e-3)
    one = epsilon([state.charges[1].mechanism], 1e-3)
    assert one < whole / 2


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "server", "none"])
def test_every_trust_runs(study, tmp_path, trust):
    result = run(RunDirectory.create(tmp_path / "out", study(privacy={"trust": trust})))
    assert result["guarantee"]["trust"] == trust
    assert (result["guarantee"]["epsilon"] == float("inf")) == (trust == "none")
    alone = result["sites"][0]["epsilon_alone"]
    if trust == "site":
        assert alone == pytest.approx(result["sites"][0]["epsilon_spent"])
    elif trust == "secure-aggregation":
        assert alone > result["sites"][0]["epsilon_spent"]
    elif trust == "server":
        assert alone == float("inf")


def test_normaliser_is_public(study, tmp_path):
    """Steps are divided by the released number of patients, noise included, or by the study's constant."""
    settings = study(privacy={"statistics_share": 0.0})
    with pytest.raises(StudyError, match=r"training\.units"):
        run(RunDirectory.create(tmp_path / "refused", settings))
    stated = study(privacy={"statistics_share": 0.0, "calibration_share": 0.0}, training={"units": 100})
    result = run(RunDirectory.create(tmp_path / "out", stated))
    assert [release["what"] for release in result["releases"]] == ["training"]


def test_selection_is_public_or_charged(study, tmp_path):
    """The released model is the last round's, whatever the learning curve says."""
    source = study().data.source
    first = run(RunDirectory.create(tmp_path / "a", study(privacy={"trust": "none"})))
    with np.load(source) as file:
        arrays = dict(file)
    flipped = np.where(arrays["split"] == 1, 1 - arrays["labels"], arrays["labels"])
    np.savez(tmp_path / "flipped.npz", **(arrays | {"labels": flipped.astype(np.uint8)}))
    changed = study(privacy={"trust": "none"}, data={"source": str(tmp_path / "flipped.npz")})
    second = run(RunDirectory.create(tmp_path / "b", changed))
    assert second["metrics"]["test"]["auroc"] == pytest.approx(1 - first["metrics"]["test"]["auroc"])
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert same[0] == same[1], "test labels must not touch the model"


def test_a_run_never_overwrites(study, tmp_path):
    run(RunDirectory.create(tmp_path / "out", study()))
    with pytest.raises(StudyError, match="finished run"):
        RunDirectory.create(tmp_path / "out", study())
    with pytest.raises(StudyError, match="nothing to resume"):
        RunDirectory.reopen(tmp_path / "out")


def test_a_resumed_run_keeps_its_study(study, tmp_path):
    RunDirectory.create(tmp_path / "out", study())
    with pytest.raises(StudyError, match="another study"):
        RunDirectory.reopen(tmp_path / "out", study(privacy={"epsilon": 3.0}))


def test_two_processes_cannot_share_a_run(study, tmp_path):
    directory = RunDirectory.create(tmp_path / "out", study())
    with (
        directory,
        pytest.raises(StudyError, match="in use by another process"),
        RunDirectory.reopen(tmp_path / "out"),
    ):
        pass


def test_delta_above_one_over_the_patients_is_refused(study, tmp_path):
    with pytest.raises(InvalidValue, match=r"delta is 0\.02 for 112 units"):
        run(RunDirectory.create(tmp_path / "out", study(privacy={"delta": 0.02})))


def test_without_noise_a_resumed_run_equals_an_uninterrupted_one(study, tmp_path):
    """Stopped after any round, and even between checkpoint and round log, the model comes out bit for bit the same."""
    settings = study(privacy={"trust": "none"}, training={"rounds": 5, "momentum": 0.5, "average_from": 0.4})
    run(RunDirectory.create(tmp_path / "whole", settings))
    expected = (tmp_path / "whole" / "model.safetensors").read_bytes()

    for rounds in (1, 3, 4):
        out = tmp_path / f"stopped-{rounds}"
        with pytest.raises(Stop):
            run(RunDirectory.create(out, settings), progress=StopAfter(rounds))
        with (out / "rounds.jsonl").open("a") as file:
            file.write('{"round": 99, "torn')
        run(RunDirectory.reopen(out, settings))
        assert (out / "model.safetensors").read_bytes() == expected
        rounds_logged = [
            json.loads(line)["round"] for line in (out / "rounds.jsonl").read_text().splitlines()
        ]
        assert rounds_logged == [1, 2, 3, 4, 5]


CHILD = """
import sys
from pathlib import Path
from fedveil.study import RunDirectory, run
run(RunDirectory.reopen(Path(sys.argv[1])))
"""


def test_killed_at_any_moment_no_charge_is_lost(study, tmp_path):
    """kill -9 again and again: the run completes, the ledger holds every charge, the budget holds."""
    settings = study(training={"rounds": 60})
    out = tmp_path / "out"
    RunDirectory.create(out, settings)
    ledger = out / "ledgers" / "site-2.jsonl"
    charges, kills = 0, 0
    deadline = time.monotonic() + 120
    while not (out / "result.json").exists() and time.monotonic() < deadline:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(out)], env=os.environ)
        while child.poll() is None and kills < 3:
            seen = (
                len(verify_ledger(ledger).charges) if ledger.exists() and ledger.stat().st_size > 1000 else 0
            )
            if seen >= charges + 7:
                child.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        child.wait(timeout=120)
        after = len(verify_ledger(ledger).charges)
        assert after >= charges
        charges = after
    assert kills == 3
    state = verify_ledger(ledger)
    assert state.spent() <= 20.0
    finished = len((out / "rounds.jsonl").read_text().splitlines())
    trained = sum(charge.label.startswith("training") for charge in state.charges)
    assert finished <= trained <= finished + kills
    assert finished >= 60 - kills
    result = json.loads((out / "result.json").read_text())
    spent = [verify_ledger(path).spent() for path in sorted((out / "ledgers").glob("*.jsonl"))]
    assert result["guarantee"]["epsilon"] == pytest.approx(max(spent), rel=1e-6)
    assert max(spent) <= 20.0


def test_a_ledger_held_by_another_process_stops_the_run(study, tmp_path):
    directory = RunDirectory.create(tmp_path / "out", study())
    from fedveil.privacy import Budget

    with (
        Ledger(directory.ledger("site-1"), Budget(20.0, 1e-3)),
        pytest.raises(Exception, match="another process"),
    ):
        run(directory)
    assert not (tmp_path / "out" / "result.json").exists()


def test_a_ledger_with_too_little_left_stops_the_run_before_it_starts(study, tmp_path):
    directory = RunDirectory.create(tmp_path / "out", study())
    from fedveil.privacy import Budget

    with Ledger(directory.ledger("site-3"), Budget(20.0, 1e-3)) as ledger:
        ledger.reserve(Mechanism(0.6, 1.0, 1), study="another", trust="site")
    with pytest.raises(BudgetExceeded, match="left"):
        run(directory)


def test_a_damaged_checkpoint_is_named(study, tmp_path):
    directory = RunDirectory.create(tmp_path / "out", study())
    (tmp_path / "out" / "checkpoint.npz").write_bytes(b"not a checkpoint")
    with pytest.raises(StudyError, match=r"checkpoint\.npz is damaged"):
        run(directory)


def test_the_default_study_is_private():
    assert Study().privacy.trust != "none"


def named(study, tmp_path):
    """The same study where the data itself names three hospitals."""
    arrays = dict(np.load(study().data.source))
    path = tmp_path / "named.npz"
    np.savez(path, **arrays, site=arrays["patient"] % 3, site_names=np.array(["a", "b", "c"]))
    return study(data={"source": str(path)})


def test_baselines_are_never_trained_on_named_hospitals(study, tmp_path):
    asked = named(study, tmp_path).with_changes({"report": {"baselines": True}})
    with pytest.raises(StudyError, match="no ledger is charged for it"):
        prepare(asked)
    assert prepare(study(report={"baselines": True})).simulated
    synthetic = study(data={"source": "phantom:3"}, report={"baselines": True}, privacy={"delta": 1e-4})
    assert len(prepare(synthetic).sites) == 3


def test_a_result_says_that_it_is_private_and_what_simulated_hospitals_promise(study, tmp_path):
    real, dealt = prepare(named(study, tmp_path)).notes, prepare(study()).notes
    drawn = prepare(study(data={"source": "phantom"}, privacy={"delta": 1e-4})).notes
    counts, fixed = "as confidential as the images", "assigned to fixed hospitals"
    said = [
        [any(text in note for note in notes) for text in (counts, fixed)] for notes in (real, dealt, drawn)
    ]
    assert said == [[True, False], [True, True], [False, True]]


def test_the_files_of_a_run_are_read_by_the_types_that_wrote_them(study, tmp_path):
    directory = RunDirectory.create(tmp_path / "out", study())
    returned = run(directory)
    result = Result.model_validate(json.loads((directory.path / "result.json").read_text()))
    assert result.version == SCHEMA
    assert result.metrics.test.auroc == returned["metrics"]["test"]["auroc"]
    assert [site.epsilon_spent for site in result.sites] == [s["epsilon_spent"] for s in returned["sites"]]
    lines = (directory.path / "rounds.jsonl").read_text().splitlines()
    assert [RoundLine.model_validate(json.loads(line)).number for line in lines] == list(
        range(1, result.rounds + 1)
    )
