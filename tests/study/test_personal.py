"""Each hospital's own model: trained on from the common one, within the same budget, and shown beside it."""

import numpy as np
import pytest

from fedveil.errors import StudyError
from fedveil.federation import InProcess
from fedveil.privacy import epsilon, verify_ledger
from fedveil.report import load
from fedveil.study import RunDirectory, Study, TrainedModel, run
from fedveil.study.results.outcome import Outcome

SITES = ["site-1", "site-2", "site-3"]


@pytest.fixture
def personal(study):
    """A study with own models; keyword arguments change tables."""

    def build(**changes: dict[str, object]) -> Study:
        values: dict[str, dict[str, object]] = {
            "data": {"sites": {"count": 3}},
            "training": {"units": 112, "learning_rate": 1.0},  # too short to separate the classes wholly
            "privacy": {"personal_share": 0.3},
        }
        return study(**{t: values.get(t, {}) | changes.get(t, {}) for t in values | changes})

    return build


def charges(folder, site="site-1"):
    return verify_ledger(folder / "ledgers" / f"{site}.jsonl").charges


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "server", "none"])
def test_every_hospital_gets_its_own_model_within_the_same_budget(personal, tmp_path, trust):
    result = run(RunDirectory.create(tmp_path / "out", personal(privacy={"trust": trust})))
    common = TrainedModel.load(tmp_path / "out").parameters
    own = [TrainedModel.load(tmp_path / "out" / "personal" / site).parameters for site in SITES]
    assert len({one.tobytes() for one in [common, *own]}) == 4
    assert all(site["personal"]["auroc"] > 0.5 for site in result["sites"])
    if trust == "none":
        return
    assert 19.9 < result["guarantee"]["epsilon"] <= 20
    spent = charges(tmp_path / "out")
    assert [one.label.split()[0] for one in spent].count("personal") == 1
    assert epsilon([one.mechanism for one in spent], 1e-3) == pytest.approx(result["guarantee"]["epsilon"])
    (mine,) = [one.mechanism for one in spent if one.label.startswith("personal")]
    assert mine.to_dict() in [one["mechanism"] for one in result["releases"]]


def test_a_tuned_network_is_trained_on_too_and_one_from_scratch_is_not(personal, tmp_path):
    tuned = personal(model={"network": "efficientnet-lite0@32", "features": "none"})
    result = run(RunDirectory.create(tmp_path / "out", tuned))
    assert all(site["personal"]["auroc"] > 0.5 for site in result["sites"])
    with pytest.raises(StudyError, match="personal_share"):
        personal(model={"network": "cnn", "features": "none"})


def test_the_pull_holds_own_models_to_the_common_one(personal, tmp_path):
    distances = []
    for pull in (0.0, 15.0):
        folder = tmp_path / f"pull-{pull}"
        run(
            RunDirectory.create(folder, personal(privacy={"trust": "none"}, training={"personal_pull": pull}))
        )
        common = TrainedModel.load(folder).parameters
        own = TrainedModel.load(folder / "personal" / "site-1").parameters
        distances.append(np.linalg.norm(own - common))
    assert distances[1] < distances[0] / 2


def test_an_own_model_is_made_once_also_by_a_run_that_is_resumed(personal, tmp_path, monkeypatch):
    settings = personal()

    def stop(self, directory):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Outcome, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            run(RunDirectory.create(tmp_path / "out", settings))
    before = TrainedModel.load(tmp_path / "out" / "personal" / "site-2").parameters
    charged = len(charges(tmp_path / "out"))
    (tmp_path / "out" / "personal" / "site-3" / "model.json").unlink()  # as if killed between charge and file
    result = run(RunDirectory.reopen(tmp_path / "out", settings))
    np.testing.assert_array_equal(
        TrainedModel.load(tmp_path / "out" / "personal" / "site-2").parameters, before
    )
    assert len(charges(tmp_path / "out")) == charged
    assert result["sites"][1]["personal"] is not None
    assert result["sites"][2]["personal"] is None
    assert result["guarantee"]["epsilon"] <= 20


def test_rounds_that_were_repeated_leave_an_own_model_its_price(personal, tmp_path, monkeypatch):
    """Interrupted rounds are paid for by rounds of training, not by what own models were to cost."""
    settings = personal(privacy={"trust": "site"})
    plain, calls = InProcess.exchange, []

    def interrupted(self, requests):
        calls.append(plain(self, requests))
        if len(calls) in (3, 5):
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(InProcess, "exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(RunDirectory.create(tmp_path / "out", settings))
    with pytest.raises(KeyboardInterrupt):
        run(RunDirectory.reopen(tmp_path / "out", settings))
    result = run(RunDirectory.reopen(tmp_path / "out", settings))
    assert result["rounds"] < settings.training.rounds
    assert all(site["personal"] is not None for site in result["sites"])
    assert result["guarantee"]["epsilon"] <= 20


def test_the_report_shows_own_models(personal, tmp_path):
    run(RunDirectory.create(tmp_path / "out", personal()))
    sites = load(tmp_path / "out").sites
    assert all(0.5 < site.personal.auroc <= 1 for site in sites)


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "none"])
@pytest.mark.parametrize("method", ["gradient", "one-shot"])
def test_a_hospitals_own_threshold_moves_nothing_but_threshold_and_frequencies(
    study, tmp_path, trust, method
):
    settings = study(
        data={"sites": {"count": 3, "scheme": "iid"}},
        training={"method": method},
        privacy={"trust": trust, "personal_calibration_share": 0.2, "epsilon": 200.0},
    )
    result = run(RunDirectory.create(tmp_path / "out", settings))
    common = TrainedModel.load(tmp_path / "out")
    assert any("own threshold" in note for note in result["notes"])
    head = common.model
    for site in SITES:
        own = TrainedModel.load(tmp_path / "out" / "personal" / site)
        centre, weights, shift, trained = head.split(own.parameters)
        before = head.split(common.parameters)
        np.testing.assert_array_equal(centre, before[0])
        np.testing.assert_array_equal(trained, before[3])
        assert trust != "none" or shift != before[2]  # elsewhere noise may leave nothing to move by
        np.testing.assert_allclose(weights, 1 / (2 * own.frequencies))
        counts = next(one["class_counts"] for one in result["sites"] if one["name"] == site)
        true = np.array([counts[name] for name in common.classes]) / sum(counts.values())
        assert np.abs(own.frequencies - true).max() < np.abs(common.frequencies - true).max() + 0.1
    if trust != "none":
        labels = [one.label.split()[0] for one in charges(tmp_path / "out")]
        assert labels.count("personal-calibration") == 1
        assert 199 < result["guarantee"]["epsilon"] <= 200


def test_own_steps_and_own_threshold_go_together(personal, tmp_path):
    settings = personal(privacy={"personal_calibration_share": 0.2})
    result = run(RunDirectory.create(tmp_path / "out", settings))
    labels = [one.label.split()[0] for one in charges(tmp_path / "out")]
    assert labels[-2:] == ["personal", "personal-calibration"]
    assert 19.9 < result["guarantee"]["epsilon"] <= 20
    common = TrainedModel.load(tmp_path / "out")
    own = TrainedModel.load(tmp_path / "out" / "personal" / "site-1")
    before, after = common.model.split(common.parameters), common.model.split(own.parameters)
    assert not np.array_equal(before[3], after[3])  # frequencies may stay: noise may leave nothing to move by


def test_an_own_threshold_needs_a_common_one(personal):
    with pytest.raises(StudyError, match="common threshold"):
        personal(privacy={"personal_calibration_share": 0.1, "calibration_share": 0.0})


def test_a_study_without_own_models_makes_none(study, tmp_path):
    result = run(RunDirectory.create(tmp_path / "out", study()))
    assert not (tmp_path / "out" / "personal").exists()
    assert all(site["personal"] is None for site in result["sites"])


def test_the_normaliser_of_own_steps_is_public(personal, tmp_path):
    with pytest.raises(StudyError, match=r"training\.units"):
        run(RunDirectory.create(tmp_path / "out", personal(training={"units": None})))
    for wrong in ({"privacy": {"unit": "site"}}, {"training": {"sampling_rate": 0.5}}):
        with pytest.raises(StudyError, match="personal_share"):
            personal(**wrong)
