"""Evaluation on the hospitals' held-out patients, as a part of a study: noisy, charged, resumable, near the truth."""

import json

import numpy as np
import pytest
from torch import nn

from fedveil.data import held_out_patients
from fedveil.errors import FederationError, StudyError
from fedveil.federation import Coordinator
from fedveil.learning.networks import registry
from fedveil.planning import make_plan
from fedveil.privacy import epsilon, verify_ledger
from fedveil.study import RunDirectory, run
from fedveil.study.prepare import prepare


def exact_by_patient(out):
    """AUROC of the run's own scores in ten bins with every patient counting once: a plain computation."""
    import csv

    from sklearn.metrics import roc_auc_score

    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    patients = [row["patient"] for row in rows]
    weights = [1 / patients.count(patient) for patient in patients]
    scores = [min(int(10 * float(row["score:right"])), 9) for row in rows]
    return roc_auc_score([row["label"] == "right" for row in rows], scores, sample_weight=weights)


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "server", "none"])
def test_every_trust_releases_an_evaluation(study, tmp_path, trust):
    settings = study(privacy={"trust": trust, "evaluation_share": 0.3, "epsilon": 60.0})
    result = run(RunDirectory.create(tmp_path / "out", settings))
    released, test = result["metrics"]["released"], result["metrics"]["test"]
    assert set(result["metrics"]) == {"test", "released"}
    assert [one["what"] for one in result["releases"]][-1] == "evaluation"
    low, high = released["units_interval"]
    assert low - 10 <= 38 <= high + 10, "38 of 150 patients are for testing"
    assert (released["noise_std"] == 0) == (trust == "none")
    if trust == "none":
        assert released["units"] == pytest.approx(38)
        assert released["auroc"] == pytest.approx(exact_by_patient(tmp_path / "out"), abs=1e-6)
        np.testing.assert_allclose(np.sum(released["confusion_estimate"]), 38)
    low, high = released["auroc_interval"]
    assert low - 0.1 <= test["auroc"] <= high + 0.1
    assert any("metrics.released" in note for note in result["notes"])
    json.dumps(result["metrics"]["released"])


def test_an_evaluation_is_paid_for_within_the_same_target(study, tmp_path):
    """Sequential composition: the ledgers hold it beside training, and all of it stays within epsilon."""
    result = run(RunDirectory.create(tmp_path / "out", study(privacy={"evaluation_share": 0.2})))
    plain = make_plan(study()).agreement.release("training").mechanism.noise_multiplier
    noisier = next(one["mechanism"] for one in result["releases"] if one["what"] == "training")
    assert noisier["noise_multiplier"] == pytest.approx(plain * np.sqrt(0.8 / 0.6), rel=1e-3)
    for path in (tmp_path / "out" / "ledgers").glob("*.jsonl"):
        state = verify_ledger(path)
        assert [charge.label.split()[0] for charge in state.charges][-1] == "evaluation"
        assert 0.999 * 20 <= epsilon([charge.mechanism for charge in state.charges], 1e-3) <= 20


def test_without_a_share_nothing_of_held_out_patients_leaves(study, tmp_path):
    result = run(RunDirectory.create(tmp_path / "out", study()))
    assert result["metrics"]["released"] is None
    assert prepare(study()).held_out == {}


def test_shares_must_leave_something_for_training(study):
    with pytest.raises(StudyError, match="they must leave some for training"):
        study(privacy={"evaluation_share": 0.85})


def test_test_patients_are_dealt_out_by_a_public_rule(study):
    data = prepare(study(privacy={"evaluation_share": 0.1}))
    again = held_out_patients(data.dataset, tuple(data.sites), 1)
    owners = {}
    for name, rows in data.held_out.items():
        np.testing.assert_array_equal(rows, again[name])
        for patient in np.unique(data.dataset.patients[rows]):
            assert owners.setdefault(patient, name) == name, "a patient is in one hospital"
    whole = np.sort(np.concatenate(list(data.held_out.values())))
    np.testing.assert_array_equal(whole, data.dataset.test)
    counts = np.unique(list(owners.values()), return_counts=True)[1]
    assert counts.max() - counts.min() <= 1


def test_named_hospitals_test_on_their_own_patients(study):
    dataset = prepare(study()).dataset
    from dataclasses import replace

    named = replace(dataset, sites=dataset.patients % 3, site_names=("a", "b", "c"))
    for code, (name, rows) in enumerate(held_out_patients(named, ("a", "b", "c")).items()):
        assert name == named.site_names[code]
        assert (named.sites[rows] == code).all()
        assert (named.split[rows] == 1).all()


def test_a_run_that_dies_while_it_evaluates_is_charged_for_what_was_asked(study, tmp_path, monkeypatch):
    """Killed between the question and the answer: the charge is remembered, and the budget holds."""
    settings = study(privacy={"evaluation_share": 0.2})
    directory = RunDirectory.create(tmp_path / "out", settings)
    collect, killed = Coordinator._total, []

    def dies(self, release, replies):
        if release.name == "evaluation" and not killed:
            killed.append(self.charged.copy())
            raise FederationError("the process dies", "here", "now")
        return collect(self, release, replies)

    monkeypatch.setattr(Coordinator, "_total", dies)
    with pytest.raises(FederationError):
        run(directory)
    assert directory.charged() == killed[0]
    assert killed[0]["evaluation"] == 1
    result = run(RunDirectory.reopen(tmp_path / "out"))
    spent = [verify_ledger(path).spent() for path in (tmp_path / "out" / "ledgers").glob("*.jsonl")]
    assert max(spent) <= 20
    assert result["guarantee"]["epsilon"] == pytest.approx(max(spent), rel=1e-6)
    assert result["metrics"]["released"] is None, "the budget paid for one evaluation, whose answer was lost"
    assert not (tmp_path / "out" / "charged.json").exists()


def test_every_request_is_noted_before_it_is_sent(study, tmp_path, monkeypatch):
    """What a coordinator says was spent is never less than what sites charged, wherever it was killed."""
    directory = RunDirectory.create(tmp_path / "out", study())
    misfit, dead = Coordinator._misfit, []

    def dies(self, request, release, site, answer):
        if request.release == "statistics" and not dead:
            dead.append(directory.charged())
            raise FederationError("the process dies", "here", "now")
        return misfit(self, request, release, site, answer)

    monkeypatch.setattr(Coordinator, "_misfit", dies)
    with pytest.raises(FederationError):
        run(directory)
    assert dead == [{"statistics": 1}]
    rounds = []
    monkeypatch.setattr(
        RunDirectory,
        "note_charged",
        lambda self, charged, note=RunDirectory.note_charged: (
            rounds.append(dict(charged)),
            note(self, charged),
        ),
    )
    run(RunDirectory.reopen(tmp_path / "out"))
    assert rounds[0] == {"statistics": 2}
    spent = verify_ledger(tmp_path / "out" / "ledgers" / "site-1.jsonl")
    labels = [charge.label.split()[0] for charge in spent.charges]
    assert (labels.count("statistics"), labels[-1]) == (2, "calibration")
    assert labels.count("training") < 6, "the answer that was lost is paid for by a round"
    assert spent.spent() <= 20


def test_a_sampled_network_evaluates_with_one_more_step_of_its_mechanism(study, tmp_path, monkeypatch):
    """Unlike sampled mechanisms have no tight price together; so held-out patients are sampled like the others."""
    small = nn.Sequential(nn.Conv2d(1, 4, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    monkeypatch.setattr(registry, "network", lambda *_, **__: small)
    settings = study(
        model={"network": "cnn", "features": "none"},
        training={"rounds": 4, "sampling_rate": 0.5},
        privacy={"evaluation_share": 0.05, "epsilon": 50.0},
        data={"sites": {"count": 3}},
        federation={"max_units": 1000},
    )
    agreement = make_plan(settings).agreement
    one, whole = agreement.release("evaluation").mechanism, agreement.release("training").mechanism
    assert (one.sampling_rate, one.noise_multiplier) == (0.5, whole.noise_multiplier)
    assert epsilon([release.mechanism for release in agreement.releases], 1e-3) <= 50
    found = [
        run(RunDirectory.create(tmp_path / str(k), settings))["metrics"]["released"]["units"]
        for k in range(2)
    ]
    assert found[0] != found[1]
    assert 0 < np.mean(found) < 100, "divided by the sampling rate: about 38 patients, not 19"
