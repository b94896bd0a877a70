"""A study's finished model at a hospital: it comes in, is kept and judged; only that it was kept goes out."""

import json

import numpy as np
import pytest
from PIL import Image
from tests.deploy.hospital import OWN_MODELS, Hospital, record_withdrawal

from fedveil.data import Dataset
from fedveil.deploy.site.review import review
from fedveil.deploy.site.runtime import Cohorts
from fedveil.federation import Reply, release_of
from fedveil.federation.queries import OwnModelQuery, OwnThresholdQuery
from fedveil.federation.wire import Frame, encode
from fedveil.study import TrainedModel, predict
from fedveil.study.pipeline import model_of

FREQUENCIES = np.array([0.4, 0.6])


def model_for(hospital: Hospital, seed: int = 0) -> dict[str, np.ndarray]:
    """A model of the hospital's study, whatever it is worth."""
    model = model_of(hospital.offer.study, Dataset.empty(("normal", "ill"), channels=1, image_size=8))
    trained = np.random.default_rng(seed).normal(size=model.trained)
    return {"parameters": model.join(None, trained), "frequencies": FREQUENCIES}


def send(hospital: Hospital, arrays: dict[str, np.ndarray], **head: object) -> Frame:
    values = {"study": hospital.agreement.digest, "nonce": "n", **head}
    return hospital.ask(encode(Frame("model", values, arrays)))


def kept(hospital: Hospital):
    """What the hospital has of the study once it has done all that follows."""
    hospital.service.finish()
    return hospital.service.models.of(hospital.agreement.digest)


def own_charges(hospital: Hospital) -> int:
    made = [release_of(charge.label) for charge in hospital.ledger.charges]
    assert made.count(OwnModelQuery.name) == made.count(OwnThresholdQuery.name)
    return made.count(OwnModelQuery.name)


def test_a_finished_model_is_kept_for_predictions_and_costs_nothing(hospital, tmp_path):
    arrays = model_for(hospital)
    assert send(hospital, arrays).kind == "kept"
    found = kept(hospital)
    np.testing.assert_array_equal(found.common().parameters, arrays["parameters"])
    np.testing.assert_array_equal(found.common().frequencies, FREQUENCIES)
    assert found.common().classes == ("normal", "ill")
    assert not hospital.ledger.charges
    folder = tmp_path / "new scans"
    folder.mkdir()
    Image.fromarray(np.full((8, 8), 90, dtype=np.uint8)).save(folder / "one.png")
    (folder / "torn.png").write_bytes(b"no image")
    said = predict(found.folder, str(folder))
    header = "image,predicted,prob:normal,prob:ill,score:normal,score:ill"
    assert said.csv.startswith(f"{header}\none.png,")
    assert [problem.place for problem in said.problems] == [str(folder / "torn.png")]
    assert found.folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_the_answer_is_the_same_whatever_the_hospital_makes_of_the_model(make_hospital, fraction):
    hospital = make_hospital(settings={"test_fraction": fraction}, template=OWN_MODELS)
    answer = send(hospital, model_for(hospital), nonce="abc")
    assert answer.head == {"site": "north", "study": hospital.agreement.digest, "nonce": "abc"}
    assert (answer.kind, dict(answer.arrays), dict(answer.blobs)) == ("kept", {}, {})
    found = json.loads((kept(hospital).folder / "evaluation.json").read_text())
    assert (found["common"] is None) is (fraction == 0.0)
    if fraction:
        cohorts = Cohorts(hospital.service.config, hospital.service.identity)
        assert found["common"]["n"] == len(cohorts.dataset(hospital.offer).test)
        assert 0 <= found["own"]["auroc"] <= 1


def test_a_model_that_comes_again_changes_nothing(hospital):
    arrays = model_for(hospital)
    for _ in range(2):
        assert send(hospital, arrays).kind == "kept"
    before = {path: path.stat().st_mtime_ns for path in kept(hospital).folder.rglob("*")}
    hospital.restart()
    assert send(hospital, arrays).kind == "kept"
    assert {path: path.stat().st_mtime_ns for path in kept(hospital).folder.rglob("*")} == before


def test_another_model_never_takes_the_place_of_the_one_that_is_kept(hospital, caplog):
    first = model_for(hospital)
    send(hospital, first)
    assert send(hospital, model_for(hospital, seed=1)).kind == "refused"
    np.testing.assert_array_equal(kept(hospital).common().parameters, first["parameters"])
    assert "holds the first one" in caplog.text


def short(arrays):
    return {**arrays, "parameters": arrays["parameters"][1:]}


def not_finite(arrays):
    return {**arrays, "parameters": np.full_like(arrays["parameters"], np.inf)}


def single(arrays):
    return {**arrays, "parameters": arrays["parameters"].astype(np.float32)}


def no_frequency(arrays):
    return {**arrays, "frequencies": np.array([0.0, 1.0])}


def too_much(arrays):
    return {**arrays, "frequencies": np.array([0.5, 0.6])}


def too_rare(arrays):
    return {**arrays, "frequencies": np.array([1e-12, 1 - 1e-12])}


def three_classes(arrays):
    return {**arrays, "frequencies": np.full(3, 1 / 3)}


def unnamed(arrays):
    return {"parameters": arrays["parameters"]}


@pytest.mark.parametrize(
    "spoil", [short, not_finite, single, no_frequency, too_much, too_rare, three_classes, unnamed]
)
def test_what_is_no_model_of_the_study_is_refused(hospital, spoil, caplog):
    assert send(hospital, spoil(model_for(hospital))).kind == "refused"
    assert not kept(hospital).exists()
    assert "impossible for its study" in caplog.text
    assert isinstance(hospital.round(), Reply)


@pytest.mark.parametrize("study", ["0" * 64, "../../../../tmp/x", None])
def test_a_model_of_a_study_that_nobody_approved_is_refused(hospital, study):
    assert send(hospital, model_for(hospital), study=study).kind == "refused"
    assert not (hospital.folder / "models").exists()


def test_a_model_of_a_study_whose_approval_was_withdrawn_is_refused(hospital):
    record_withdrawal(hospital.service, hospital.agreement.digest)
    assert send(hospital, model_for(hospital)).kind == "refused"
    assert not (hospital.folder / "models").exists()


def test_what_a_kill_left_half_written_is_no_model(hospital):
    unfinished = hospital.folder / "models" / f".{hospital.agreement.digest}.tmp"
    unfinished.mkdir(parents=True)
    (unfinished / "model.json").write_text("{")
    assert not kept(hospital).exists()
    assert send(hospital, model_for(hospital)).kind == "kept"
    assert not unfinished.exists()
    assert kept(hospital).common().fits


def test_an_own_model_is_made_and_charged_once(make_hospital, caplog):
    hospital = make_hospital(template=OWN_MODELS)
    send(hospital, model_for(hospital))
    own = kept(hospital).own()
    assert not np.array_equal(own.parameters, kept(hospital).common().parameters)
    assert own_charges(hospital) == 1
    for charge, name in zip(
        hospital.ledger.charges[-2:], (OwnModelQuery.name, OwnThresholdQuery.name), strict=True
    ):
        assert charge.mechanism == charge.alone == hospital.agreement.release(name).mechanism
    hospital.restart()
    hospital.service.conclude(hospital.agreement.digest)
    np.testing.assert_array_equal(kept(hospital).own().parameters, own.parameters)
    # As if the service was killed between charge and file: to make it again would cost its price again.
    for name in ("evaluation.json", "personal/model.json"):
        (kept(hospital).folder / name).unlink()
    hospital.restart()
    hospital.service.conclude(hospital.agreement.digest)
    assert kept(hospital).own() is None
    assert kept(hospital).is_done
    assert own_charges(hospital) == 1
    assert "a study charges it only once" in caplog.text


def test_an_own_model_that_was_not_begun_before_a_kill_is_made_afterwards(make_hospital, monkeypatch):
    hospital = make_hospital(template=OWN_MODELS)
    with monkeypatch.context() as killed:
        killed.setattr(hospital.service, "conclude", lambda _: None)
        assert send(hospital, model_for(hospital)).kind == "kept"
    assert not kept(hospital).is_done
    hospital.restart()
    hospital.service.conclude(hospital.agreement.digest)
    assert kept(hospital).own() is not None
    assert own_charges(hospital) == 1


def test_a_hospital_may_do_without_a_model_of_its_own(make_hospital):
    hospital = make_hospital(settings={"own_models": "false"}, template=OWN_MODELS)
    send(hospital, model_for(hospital))
    assert kept(hospital).is_done
    assert kept(hospital).own() is None
    assert not hospital.ledger.charges


def test_the_review_names_the_price_of_an_own_model(make_hospital):
    hospital = make_hospital(template=OWN_MODELS)
    found = review(hospital.service.config, hospital.service.studies.read(hospital.agreement.digest))
    assert any(line.startswith("own model") and "epsilon" in line for line in found.sentences)
    assert "30 x own model" in "".join(found.sentences)


def test_the_review_counts_what_was_charged_for_a_study_once(make_hospital):
    hospital = make_hospital(template=OWN_MODELS)
    listed = hospital.service.studies.read(hospital.agreement.digest)
    before = review(hospital.service.config, listed)
    hospital.round(1, 1)
    send(hospital, model_for(hospital))
    hospital.service.finish()
    after = review(hospital.service.config, listed)
    assert after.state.spent() > 0
    assert after.after == pytest.approx(before.after)


def test_trouble_with_the_images_stays_in_the_hospital(hospital, caplog):
    (hospital.folder / "images.npz").unlink()
    assert send(hospital, model_for(hospital)).kind == "kept"
    assert not kept(hospital).is_done
    assert "images.npz" in caplog.text
    assert isinstance(TrainedModel.load(kept(hospital).folder), TrainedModel)
