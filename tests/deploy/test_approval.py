"""A person approves: by the whole digest, keys that were compared, images that they know of."""

from dataclasses import replace

import numpy as np
import pytest
from tests.deploy.hospital import SITES, WHO, Hospital, MakeHospital, record_withdrawal
from typer.testing import CliRunner

from fedveil.cli.main import app
from fedveil.deploy.identity import Identity, fingerprint
from fedveil.deploy.site.approvals import Listed
from fedveil.deploy.site.keys import Peers
from fedveil.deploy.site.review import review
from fedveil.federation.wire import Frame, encode


@pytest.fixture
def keys(tmp_path) -> dict[str, str]:
    """The other hospitals' public keys."""
    return {name: Identity.create(tmp_path / f"{name}.key").public for name in SITES[1:]}


@pytest.fixture
def masked(make_hospital: MakeHospital, keys) -> Hospital:
    """A hospital that was offered a study with secure aggregation, and has confirmed no key yet."""
    hospital = make_hospital(approve=False, trust="secure-aggregation", min_sites=3)
    offered = {**hospital.offer.to_dict(), "keys": keys, "nonce": "n"}
    (hospital.folder / "studies" / f"{hospital.agreement.digest}.json").unlink()
    assert hospital.ask(encode(Frame("offer", offered))).kind == "offered"
    return hospital


def approve(hospital: Hospital, *words: str, answers: str = "", study: str | None = None) -> tuple[int, str]:
    command = ["site", "approve", study or hospital.agreement.digest, str(hospital.folder), *words]
    command += ["--by", WHO["by"], "--role", WHO["role"]]
    done = CliRunner().invoke(app, command, input=answers)
    return done.exit_code, " ".join((done.output + done.stderr).split())


def said(keys: dict[str, str], **changes: str) -> list[str]:
    read = {name: fingerprint(key) for name, key in keys.items()} | changes
    return [word for name, text in read.items() for word in ("--key", f"{name}={text}")]


def is_approved(hospital: Hospital) -> bool:
    return hospital.service.studies.is_approved(hospital.agreement.digest)


def test_without_a_question_no_key_is_confirmed_that_nobody_compared(masked, keys):
    code, text = approve(masked, "--yes")
    assert (code, is_approved(masked)) == (2, False)
    assert "nobody here has confirmed the key of south" in text
    assert not Peers(masked.folder / "peers").known()


def test_fingerprints_as_they_were_read_confirm_the_keys(masked, keys):
    code, text = approve(
        masked, "--yes", *said(keys, south=fingerprint(keys["south"]).upper().replace("-", " "))
    )
    assert (code, is_approved(masked)) == (0, True), text
    assert Peers(masked.folder / "peers").known() == keys
    record_withdrawal(masked.service, masked.agreement.digest)
    assert approve(masked, "--yes")[0] == 0


@pytest.mark.parametrize("digits", [20, 31])
def test_part_of_a_fingerprint_confirms_nothing(masked, keys, digits):
    code, text = approve(masked, "--yes", *said(keys, south=keys["south"][:digits]))
    assert (code, is_approved(masked)) == (2, False)
    assert "the fingerprint of south is not the one that the coordinator gives" in text


def test_another_hospitals_fingerprint_is_a_warning(masked, keys):
    code, text = approve(masked, "--yes", *said(keys, south=fingerprint(keys["west"])))
    assert (code, is_approved(masked)) == (2, False)
    assert "somebody intercepts the messages" in text


@pytest.mark.parametrize("text", ["south", "=", "east=0123", "south=", "south=xyz"])
def test_what_is_no_fingerprint_says_so(masked, keys, text):
    code, answer = approve(masked, "--yes", *said({"west": keys["west"]}), "--key", text)
    assert (code, is_approved(masked)) == (2, False)
    assert "NAME=FINGERPRINT" in answer


def test_a_person_is_asked_for_each_key_and_then_for_the_study(masked, keys):
    assert approve(masked, answers="y\nn\n")[0] == 1
    assert not is_approved(masked)
    assert not Peers(masked.folder / "peers").known()
    code, text = approve(masked, answers="y\ny\ny\n")
    assert (code, is_approved(masked)) == (0, True)
    assert all(fingerprint(key) in text for key in keys.values())


def test_a_fingerprint_has_128_bits_and_is_of_both_keys(keys):
    """Nobody can keep the key that signs and replace the one that messages are encrypted to, or the reverse."""
    one, other = keys["south"], keys["west"]
    mixed = {fingerprint(key) for key in (one, other, one[:64] + other[64:], other[:64] + one[64:])}
    assert len(mixed) == 4
    assert all(len(text.replace("-", "")) == 32 for text in mixed)


@pytest.mark.parametrize("name", ["toy", "beginning"])
def test_without_a_question_a_study_is_named_by_its_whole_digest(make_hospital, name):
    hospital = make_hospital(approve=False)
    study = "toy" if name == "toy" else hospital.agreement.digest[:12]
    code, text = approve(hospital, "--yes", study=study)
    assert (code, is_approved(hospital)) == (2, False)
    assert hospital.agreement.digest in text
    assert approve(hospital, answers="y\n", study=study)[0] == 0


def test_images_that_cannot_be_used_are_told_to_who_approves(make_hospital):
    hospital = make_hospital(approve=False)
    path = hospital.folder / "images.npz"
    arrays = dict(np.load(path))
    arrays |= {"labels": np.array([0, 1] * 29 + [0, 2]), "classes": np.array(["normal", "ill", "rare"])}
    np.savez(path, **arrays)
    code, text = approve(hospital, "--yes")
    assert (code, is_approved(hospital)) == (2, False)
    assert "the class rare is unknown" in text
    assert "--leave-out" in text
    assert approve(hospital, "--yes", "--leave-out")[0] == 0
    assert is_approved(hospital)


def test_a_source_that_is_gone_is_told_too(make_hospital):
    hospital = make_hospital(approve=False)
    (hospital.folder / "images.npz").unlink()
    code, text = approve(hospital, "--yes")
    assert (code, is_approved(hospital)) == (2, False)
    assert "images.npz" in text


def test_what_a_round_needs_is_said_of_many_hospitals_too(make_hospital):
    """Beyond 64 hospitals the default guarantee asks for more of them than two thirds."""
    hospital = make_hospital(trust="secure-aggregation", min_sites=3)
    offer = replace(hospital.offer, sites=("north", *(f"site-{number}" for number in range(99))))
    found = review(hospital.service.config, Listed("0" * 64, offer, offer.agreement(), None))
    assert any("a round needs 73" in line for line in found.sentences)
