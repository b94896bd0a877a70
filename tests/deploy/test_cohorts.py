"""A hospital's images behind its service: who is held out, what the budget needs, and what nobody outside learns."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from tests.deploy.hospital import OWN_MODELS, Hospital, edit
from typer.testing import CliRunner

from fedveil.cli.main import app
from fedveil.deploy.config import SiteConfig
from fedveil.deploy.hosting import Cohorts
from fedveil.deploy.identity import Identity
from fedveil.deploy.review import review
from fedveil.deploy.service import open_service
from fedveil.errors import DataError, InvalidValue, Refused
from fedveil.federation import Reply
from fedveil.federation.wire import Frame, encode, pack
from fedveil.privacy import Budget, Ledger


def status(hospital: Hospital) -> str:
    """What the coordinator is told once the service has looked at its images."""
    hospital.hello()
    hospital.service._opening[hospital.terms.digest].join()
    return hospital.hello().head["status"]


def spoil(hospital: Hospital, **changes: object) -> None:
    """Other images for the hospital: arrays of the file replaced, or left out where None is given."""
    path = hospital.folder / "images.npz"
    arrays = dict(np.load(path)) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def fedveil(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.output + done.stderr


def test_who_is_held_out_follows_from_the_hospitals_own_key(make_hospital, tmp_path):
    hospital = make_hospital(settings={"test_fraction": 0.3})
    config, identity = hospital.service.config, hospital.service.identity
    split = Cohorts(config, identity).dataset(hospital.offer).split
    again = Cohorts(config, Identity.load(hospital.folder / "identity.key")).dataset().split
    np.testing.assert_array_equal(split, again)
    other = Cohorts(config, Identity.create(tmp_path / "other.key")).dataset().split
    assert 0 < split.sum() < 60
    assert (split != other).any()
    arrays = dict(np.load(hospital.folder / "images.npz"))
    spoil(hospital, **{name: arrays[name][1:] for name in ("images", "labels", "patient")})
    np.testing.assert_array_equal(split[1:], Cohorts(config, identity).dataset().split)


def test_a_hospital_where_nobody_happens_to_be_held_out_takes_part(make_hospital):
    hospital = make_hospital(settings={"test_fraction": 1e-9}, template=OWN_MODELS)
    assert isinstance(hospital.round(), Reply)


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": np.zeros((60, 8, 8, 3), np.uint8)},
        {"labels": np.array([0, 1] * 29 + [0, 2]), "classes": np.array(["normal", "ill", "rare"])},
        {"patient": None},
        {"images": np.zeros((59, 8, 8), np.uint8)},
    ],
    ids=["colour", "unknown label", "no patients", "damaged"],
)
def test_the_status_says_nothing_of_the_images(make_hospital, caplog, wrong):
    """A hospital whose images cannot be used answers like any other; its own log and check tell why."""
    hospital = make_hospital()
    spoil(hospital, **wrong)
    with caplog.at_level(logging.ERROR):
        assert status(hospital) == "ready"
    assert "noise alone" in caplog.text or "count as nothing" in caplog.text
    assert isinstance(hospital.round(), Reply)
    assert len(hospital.ledger.charges) == 1
    code, said = fedveil("site", "check", hospital.folder)
    assert code == 2 or "problem      study toy" in said


def test_more_patients_than_said_are_the_hospitals_own_trouble(make_hospital):
    hospital = make_hospital(settings={"max_units": 59})
    assert status(hospital) == "ready"
    with pytest.raises(DataError, match="60 patients"):
        Cohorts(hospital.service.config, hospital.service.identity).dataset()


@pytest.mark.parametrize("wrong", [{}, {"images": np.zeros((60, 8, 8, 3), np.uint8)}])
@pytest.mark.parametrize(
    ("settings", "study"),
    [({"min_sites": 3}, {}), ({}, {"epsilon": 30.0}), ({"delta": 1e-4, "max_units": 10_000}, {})],
    ids=["policy", "budget", "delta"],
)
def test_a_refusal_follows_from_policy_and_budget_whatever_the_images(make_hospital, settings, study, wrong):
    hospital = make_hospital(settings=settings, **study)
    spoil(hospital, **wrong)
    assert status(hospital) == "refused"


def test_masked_sums_need_room_for_the_most_units_that_a_hospital_may_hold(make_hospital):
    hospital = make_hospital(trust="secure-aggregation", min_sites=3)
    small = hospital.offer.study.with_changes({"federation": {"max_units": 999}})
    with pytest.raises(Refused, match="room for 999 units"):
        hospital.service.config.check(replace(hospital.offer, study=small).terms())
    hospital.service.config.check(hospital.terms)


def test_delta_must_be_small_for_the_most_patients_that_may_come(make_hospital, tmp_path):
    hospital = make_hospital()
    path = hospital.folder / "site.toml"
    edit(path, delta=0.5)
    with pytest.raises(InvalidValue, match="publish somebody's data"):
        SiteConfig.load(hospital.folder)
    edit(path, delta=1e-3)
    listed = hospital.service.studies.read(hospital.terms.digest)
    assert review(SiteConfig.load(hospital.folder), listed).objection is None
    edit(path, max_units=1001, delta=1e-4)
    assert "publish somebody's data" in review(SiteConfig.load(hospital.folder), listed).objection
    with (
        Ledger(tmp_path / "old.jsonl", Budget(1.0, 0.5)) as old,
        pytest.raises(InvalidValue, match="delta is"),
    ):
        open_service(hospital.folder, old)
    code, said = fedveil("site", "init", tmp_path / "new", "--name", "new", "--delta", "0.5")
    assert (code, "delta is 0.5" in said) == (2, True)
    assert not (tmp_path / "new" / "ledger.jsonl").exists()


def test_a_promise_to_patients_needs_data_that_names_them(make_hospital):
    hospital = make_hospital()
    spoil(hospital, patient=None)
    code, said = fedveil("site", "check", hospital.folder)
    assert code == 2
    assert "names no patients" in said
    assert "one_image_a_patient" in said
    edit(hospital.folder / "site.toml", one_image_a_patient="true")
    hospital.restart()
    assert status(hospital) == "ready"
    code, said = fedveil("site", "check", hospital.folder)
    assert code == 0, said


def test_the_check_names_every_problem(make_hospital):
    hospital = make_hospital()
    rows = ["path,label,patient", *(f"{name}.png,ill,p-{name}" for name in "ab")]
    (hospital.folder / "images.csv").write_text("\n".join(rows))
    edit(hospital.folder / "site.toml", source='"images.csv"')
    code, said = fedveil("site", "check", hospital.folder)
    assert code == 2
    assert all(f"{name}.png" in said for name in "ab")


def test_studies_share_images_only_where_they_see_them_alike(make_hospital):
    hospital = make_hospital()
    cohorts = Cohorts(hospital.service.config, hospital.service.identity)
    first = cohorts.task(hospital.offer)
    changes = [
        ({"training": {"views": 3}}, lambda task: len(task.crops) == 2),
        ({"training": {"views": 3, "flip": False}}, lambda task: len(task.crops) == 2),
        ({"privacy": {"calibration_share": 0.0}}, lambda task: task.degraded is None),
        ({"training": {"method": "one-shot"}}, lambda task: not task.head.centred),
        ({"model": {"whitened": False}}, lambda task: task.extractor.key != first.extractor.key),
    ]
    for number, (change, holds) in enumerate(changes, 1):
        offer = replace(hospital.offer, study=hospital.offer.study.with_changes(change))
        assert holds(cohorts.task(offer))
        assert len(cohorts.tasks) == number + 1
    other = hospital.offer.study.with_changes({"study": {"name": "other"}, "privacy": {"epsilon": 3.0}})
    assert cohorts.task(replace(hospital.offer, study=other)).features is first.features


def test_nothing_is_sent_again_after_an_approval_is_withdrawn(hospital):
    asked = hospital.seal(pack(hospital.request()))
    first = hospital.service.answer(asked)
    assert hospital.service.answer(asked) == first
    hospital.service.studies.withdraw(hospital.terms.digest)
    again = hospital.open(hospital.service.answer(asked))
    assert again.head["receipt"] is None
    assert again.blobs != hospital.open(first).blobs


def test_a_receipt_quotes_what_a_round_of_local_steps_is_charged(make_hospital):
    template = OWN_MODELS.replace("units = 150", 'units = 150\nmethod = "averaging"\nlocal_steps = 3')
    hospital = make_hospital(settings={"methods": '["averaging"]'}, template=template)
    receipt = hospital.ask(pack(hospital.request())).head["receipt"]
    assert receipt["cost"]["steps"] == 3
    assert receipt["cost"] == hospital.ledger.charges[-1].mechanism.to_dict()


def test_a_forged_offer_is_refused_at_the_door(make_hospital):
    hospital = make_hospital(approve=False)
    offer = {**hospital.offer.to_dict(), "sites": ["north", "south\nbudget     epsilon 0 of 50 is spent"]}
    assert hospital.ask(encode(Frame("offer", {**offer, "nonce": "n"}))).kind == "refused"
