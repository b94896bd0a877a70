"""A patient withdraws: their images are not read again, what was computed is gone, and what remains is said."""

import errno
import json

import numpy as np
import pytest
from tests.deploy.hospital import WHO, Hospital
from typer.testing import CliRunner

from fedveil.cli.main import app
from fedveil.deploy import approval
from fedveil.deploy.records.forgotten import Forgotten
from fedveil.errors import InvalidValue
from fedveil.federation import Reply

SAID = ["--by", WHO["by"], "--role", WHO["role"], "--reason", "withdrew consent", "--yes"]


def forget(hospital: Hospital, patient: str) -> tuple[int, str]:
    command = ["site", "forget", patient, str(hospital.folder), *SAID]
    done = CliRunner().invoke(app, command)
    return done.exit_code, " ".join((done.output + done.stderr).split())


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / "north" / "cache"))


def patients(hospital: Hospital) -> set[str]:
    """The patients whose images the service holds for its study."""
    task = hospital.service._cohorts.task(hospital.offer)
    return {str(task.dataset.patient_names[code]).removeprefix("patient ") for code in task.dataset.patients}


def test_a_forgotten_patient_is_in_no_later_sum(hospital):
    assert isinstance(hospital.round(1, 1), Reply)
    assert "7" in patients(hospital)
    assert list((hospital.folder / "cache").rglob("*.*"))
    code, text = forget(hospital, "7")
    assert code == 0, text
    assert not (hospital.folder / "cache").exists()
    assert isinstance(hospital.round(2, 2), Reply), "the running service goes on without them"
    assert "7" not in patients(hospital)
    assert len(patients(hospital)) == 59
    hospital.restart()
    assert "7" not in patients(hospital)
    assert "took part in toy" in text
    assert "what was released cannot be recalled" in text


def test_the_record_names_nobody_but_to_the_hospital_itself(hospital):
    assert isinstance(hospital.round(1, 1), Reply)
    assert forget(hospital, "7")[0] == 0
    hospital.hello()
    (sealed,) = (hospital.folder / "forgotten").glob("*.sealed")
    assert sealed.stat().st_mode & 0o077 == 0
    ledger = (hospital.folder / "ledger.jsonl").read_text()
    assert '"act":"forgotten"' in ledger
    assert sealed.stem in ledger
    (record,) = Forgotten(hospital.folder, hospital.service.identity).records()
    assert record["patient"] == "7"
    assert [title.split()[0] for title, _ in record["studies"]] == ["toy"]
    other = type(hospital.service.identity).create(hospital.folder / "other.key")
    assert Forgotten(hospital.folder, other)._hash("7") != sealed.stem
    lines = (hospital.folder / "forgotten.jsonl").read_text()
    assert set(json.loads(lines)) == {"patient", "key"}
    with pytest.raises(InvalidValue, match="made with another identity key"):
        Forgotten(hospital.folder, other).names()


def test_a_patient_who_comes_back_with_the_next_export_stays_out(hospital):
    assert forget(hospital, "7")[0] == 0
    path = hospital.folder / "images.npz"
    arrays = dict(np.load(path))
    order = np.random.default_rng(0).permutation(len(arrays["labels"]))
    np.savez(path, **{key: one if key == "classes" else one[order] for key, one in arrays.items()})
    hospital.restart()
    assert "7" not in patients(hospital)


def test_who_is_not_in_the_data_cannot_be_forgotten(hospital):
    before = hospital.ledger.head
    code, text = forget(hospital, "nobody")
    assert code == 2
    assert "no image here names the patient 'nobody'" in text
    assert forget(hospital, "7")[0] == 0
    assert hospital.ledger.head == before, "a decision reaches the ledger with the service's next answer"


def test_a_damaged_list_stops_everything(hospital):
    """Reading the images without it would bring everybody back."""
    assert forget(hospital, "7")[0] == 0
    (hospital.folder / "forgotten.jsonl").write_text("{")
    hospital.service._sites.clear()
    hospital.service._cohorts.tasks.clear()
    assert hospital.service._cohorts.config.folder == hospital.folder
    with pytest.raises(Exception, match="names the patients who withdrew"):
        hospital.service._cohorts.task(hospital.offer)


STEPS = {
    "seal": (Forgotten, "_seal"),
    "purge": (Forgotten, "purge"),
    "name": (Forgotten, "_add"),
    "record": (approval, "record"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_withdrawal_that_was_interrupted_is_completed_when_it_is_repeated(hospital, monkeypatch, step):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    assert isinstance(hospital.round(1, 1), Reply)
    with monkeypatch.context() as patched:
        patched.setattr(*STEPS[step], interrupted)
        assert forget(hospital, "7")[0] != 0
    forgotten = Forgotten(hospital.folder, hospital.service.identity)
    if forgotten.names():
        assert not (hospital.folder / "cache").exists(), "who is listed has no features here"
        assert [one["patient"] for one in forgotten.records()] == ["7"], "and has a record"
    code, text = forget(hospital, "7")
    assert code == 0, text
    assert "1 images are left out" in text
    assert "took part in toy" in text
    assert isinstance(hospital.round(2, 2), Reply)
    assert "7" not in patients(hospital)
    assert [one.act for one in hospital.ledger.decisions] == ["approved", "forgotten"]
    assert len(forgotten.names()) == 1


def test_a_withdrawal_that_an_earlier_version_left_half_done_is_completed(hospital):
    """It added the name first."""
    assert isinstance(hospital.round(1, 1), Reply)
    Forgotten(hospital.folder, hospital.service.identity)._add("7")
    hospital.restart()
    assert not (hospital.folder / "cache").exists(), "the service deletes features when it starts"
    assert isinstance(hospital.round(2, 2), Reply)
    assert "7" not in patients(hospital)
    code, text = forget(hospital, "7")
    assert code == 0, text
    assert "1 images are left out" in text
    assert not (hospital.folder / "cache").exists()
    hospital.hello()
    assert [one.act for one in hospital.ledger.decisions] == ["approved", "forgotten"]
    before = (hospital.folder / "decisions.jsonl").read_bytes()
    assert forget(hospital, "7") == (code, text), (
        "a repetition deletes features again and records nothing new"
    )
    assert (hospital.folder / "decisions.jsonl").read_bytes() == before


def test_features_are_deleted_where_the_service_stores_them(hospital, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("FEDVEIL_CACHE", str(elsewhere))
    (elsewhere / "medmnist").mkdir(parents=True)
    assert isinstance(hospital.round(1, 1), Reply)
    assert list((elsewhere / "features").rglob("*.npy"))
    code, text = forget(hospital, "7")
    assert code == 0, text
    assert str(elsewhere / "features") in text
    assert [path.name for path in elsewhere.iterdir()] == ["medmnist"], "downloads stay"


def test_a_withdrawal_whose_features_cannot_be_deleted_claims_nothing(hospital, monkeypatch):
    (hospital.folder / "cache").mkdir(exist_ok=True)

    def fails(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", fails)
    code, text = forget(hospital, "7")
    assert code == 2
    assert "cannot be deleted (Permission denied)" in text
    assert "were deleted" not in text
    monkeypatch.undo()
    assert not Forgotten(hospital.folder, hospital.service.identity).names(), "it is repeated as a whole"
