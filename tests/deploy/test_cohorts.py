"""A hospital's images behind its service: who is held out, what the budget needs, and what nobody outside learns."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.deploy.hospital import OWN_MODELS, Hospital, edit, record_withdrawal
from typer.testing import CliRunner

from fedveil.cli.main import app
from fedveil.deploy.identity import Identity
from fedveil.deploy.offer import Offer
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.review import review
from fedveil.deploy.site.runtime import Cohorts
from fedveil.deploy.site.service import open_service
from fedveil.errors import DataError, InvalidValue, Refused
from fedveil.federation import Reply
from fedveil.federation.wire import Frame, encode, pack
from fedveil.privacy import Budget, Ledger


def status(hospital: Hospital) -> str:
    """What the coordinator is told once the service has looked at its images."""
    hospital.hello()
    hospital.service._opening[hospital.agreement.digest].join()
    return hospital.hello().head["status"]


def _of(hospital: Hospital) -> tuple[SiteConfig, Identity]:
    return hospital.service.config, hospital.service.identity


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
        {"labels": np.array([0, 1] * 30), "classes": np.array(["sound", "sick"])},
        {"patient": None},
        {"images": np.zeros((59, 8, 8), np.uint8)},
        {"images": np.zeros((60, 8, 8), np.int64)},
    ],
    ids=["other labels", "no patients", "damaged", "no public white"],
)
def test_the_status_says_nothing_of_the_images(make_hospital, caplog, wrong):
    """A hospital whose images cannot be used answers like any other; its own log and check tell why."""
    hospital = make_hospital()
    spoil(hospital, **wrong)
    with caplog.at_level(logging.ERROR):
        assert status(hospital) == "ready"
    assert "noise alone" in caplog.text or "are unusable and left out" in caplog.text
    assert isinstance(hospital.round(), Reply)
    assert len(hospital.ledger.charges) == 1
    code, said = fedveil("site", "check", hospital.folder)
    assert code == 2 or "problem      study toy" in said


ODD_ROWS = {
    "unknown label": ("labels", 2, {"classes": np.array(["normal", "ill", "rare"])}),
    "no label": ("labels", -1, {}),
    "misspelt label": ("labels", 2, {"classes": np.array(["normal", "ill", "Ill"])}),
    "no number": ("images", np.nan, {}),
    "nobody": ("patient", 59, {"patient_names": np.array([*(f"p{n}" for n in range(59)), "ANONYMOUS"])}),
}


@pytest.mark.parametrize("odd", ODD_ROWS)
def test_a_hospital_takes_part_whatever_one_image_is(make_hospital, odd):
    """That image counts as nothing, whatever is odd about it, and all others as if it were not there."""
    hospital = make_hospital()
    key, value, more = ODD_ROWS[odd]
    arrays = dict(np.load(hospital.folder / "images.npz"))
    column = arrays[key].astype(float) / (255 if key == "images" else 1)
    column[-1] = value
    spoil(hospital, **{key: column, **more})
    cohorts = Cohorts(hospital.service.config, hospital.service.identity)
    found = cohorts.task(hospital.offer)
    assert status(hospital) == "ready"
    spoil(
        hospital,
        **{
            name: array[:-1]
            for name, array in dict(np.load(hospital.folder / "images.npz")).items()
            if len(array) == 60 and name != "patient_names"
        },
    )
    alone = Cohorts(hospital.service.config, hospital.service.identity).task(hospital.offer)
    assert len(found.dataset) == len(alone.dataset) == 59
    np.testing.assert_array_equal(found.features, alone.features)
    np.testing.assert_array_equal(found.degraded, alone.degraded)
    np.testing.assert_array_equal(found.dataset.patients, alone.dataset.patients)
    np.testing.assert_array_equal(found.dataset.split, alone.dataset.split)


@pytest.mark.parametrize("kind", ["RGBA", "RGB", "I;16", "torn", "table"])
def test_one_colour_file_keeps_no_hospital_out_and_moves_nobody(make_hospital, kind):
    """It decided the channels of the whole set: 3, where the study's are 1, and the seeds of all degraded views."""
    hospital = make_hospital()
    folder = hospital.folder
    rows = ["path,label,patient"]
    generator = np.random.default_rng(0)
    for number in range(20):
        pixels = generator.integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{('normal', 'ill')[number % 2]},p{number // 2}")
    shapes = {"RGBA": (12, 12, 4), "RGB": (12, 12, 3), "torn": (64, 64)}
    odd = generator.integers(0, 256, shapes.get(kind, (12, 12)), dtype=np.uint8)
    Image.fromarray(odd.astype(np.uint16) * 257 if kind == "I;16" else odd).save(folder / "odd.png")
    if kind == "torn":
        (folder / "odd.png").write_bytes((folder / "odd.png").read_bytes()[:2000])
    edit(folder / "site.toml", source='"images.csv"')
    tasks = []
    for line in ([], ["odd.png,ill,p99" if kind != "table" else "odd.png,ill"]):
        (folder / "images.csv").write_text("\n".join([rows[0], *line, *rows[1:]]))
        hospital.restart()
        assert status(hospital) == "ready"
        tasks.append(Cohorts(hospital.service.config, hospital.service.identity).task(hospital.offer))
    alone, both = tasks
    named = [both.dataset.image_names.index(name) for name in alone.dataset.image_names]
    np.testing.assert_array_equal(both.features[named], alone.features)
    np.testing.assert_array_equal(both.degraded[named], alone.degraded)
    np.testing.assert_array_equal(both.dataset.split[named], alone.dataset.split)


def test_a_hospitals_own_table_may_have_other_names(make_hospital):
    """Columns, layout and what is meant are each hospital's own; what images are brought to is the study's."""
    hospital = make_hospital()
    rows = ["Image Index,Finding Labels,Patient ID"]
    for number in range(8):
        Image.fromarray(np.full((9, 9), 20 * number, np.uint8)).save(hospital.folder / f"{number}.png")
        rows.append(f"{number}.png,{('normal', 'ill')[number % 2]},{('A1', 'a1')[number % 2]}{number}")
    (hospital.folder / "images.csv").write_text("\n".join(rows))
    columns = '{ path = "Image Index", label = "Finding Labels", patient = "Patient ID" }'
    edit(hospital.folder / "site.toml", source='"images.csv"', columns=columns)
    hospital.restart()
    assert status(hospital) == "ready"
    code, said = fedveil("site", "check", hospital.folder)
    assert code == 0, said
    study = hospital.offer.study.with_changes({"data": {"window": [9.0, 3.0], "columns": {"path": "x"}}})
    offered = Offer.make(study, hospital.offer.sites, Cohorts(*_of(hospital)).dataset())
    assert offered.study.data.window == (9.0, 3.0)
    assert not offered.study.data.columns.path


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
    with pytest.raises(Refused, match="leaves room for 999 units"):
        hospital.service.config.check(replace(hospital.offer, study=small).agreement())
    hospital.service.config.check(hospital.agreement)


def test_delta_must_be_small_for_the_most_patients_that_may_come(make_hospital, tmp_path):
    hospital = make_hospital()
    path = hospital.folder / "site.toml"
    edit(path, delta=0.5)
    with pytest.raises(InvalidValue, match="publishing one unit's data"):
        SiteConfig.load(hospital.folder)
    edit(path, delta=1e-3)
    listed = hospital.service.studies.read(hospital.agreement.digest)
    assert review(SiteConfig.load(hospital.folder), listed).objection is None
    edit(path, max_units=1001, delta=1e-4)
    assert "publishing one unit's data" in review(SiteConfig.load(hospital.folder), listed).objection
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
    record_withdrawal(hospital.service, hospital.agreement.digest)
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
