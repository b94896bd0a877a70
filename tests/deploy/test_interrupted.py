"""A renewal that was interrupted, or whose files were lost since: it is completed, or it is refused with a remedy."""

from pathlib import Path

import pytest
from tests.deploy.hospital import record_withdrawal
from tests.deploy.test_renewal import held_out, renewed, run, stop

from fedveil.deploy.identity import Identity
from fedveil.deploy.provisioning import renewal
from fedveil.deploy.records.handover import HandOver, former_keys, keep_hand_over
from fedveil.errors import InvalidValue
from fedveil.privacy import verify_ledger


@pytest.mark.parametrize("left", ["patients.key", "decisions.jsonl"])
def test_without_its_hand_overs_a_renewed_site_reads_no_image(hospital, left):
    record_withdrawal(hospital.service, hospital.agreement.digest)
    stop(hospital)
    folder = hospital.folder
    renewed(folder)
    lost = {"patients.key", "decisions.jsonl"} - {left}
    for name in (*lost, *(f"{one}.head" for one in lost)):
        (folder / name).unlink(missing_ok=True)
    for lose in (lambda path: path.write_text(""), Path.unlink):
        lose(folder / "handovers.jsonl")
        with pytest.raises(
            InvalidValue, match=r"handovers\.jsonl is missing or empty, and this site's key was"
        ):
            held_out(folder)
        with pytest.raises(InvalidValue, match=r"handovers\.jsonl is missing or empty"):
            renewed(folder)
    assert not (folder / "identity.next.key").exists()


def test_a_renewal_that_was_interrupted_is_completed_with_the_same_key(hospital, monkeypatch):
    record_withdrawal(hospital.service, hospital.agreement.digest)
    stop(hospital)
    folder, old = hospital.folder, hospital.service.identity.public
    for name in ("keep_hand_over", "write_private", "write_json"):

        def broken(*_: object) -> None:
            raise OSError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(renewal, name, broken)
            with pytest.raises(OSError, match="full"):
                renewed(folder)
        assert Identity.load(folder / "identity.key").public == old
        held_out(folder)
    fresh = Identity.load(folder / "identity.next.key").public
    one, _ = renewed(folder)
    assert (one.old, one.new) == (old, fresh)
    assert Identity.load(folder / "identity.key").public == fresh
    decisions = verify_ledger(folder / "ledger.jsonl").decisions
    assert [one.act for one in decisions].count("renewed") == 1
    assert former_keys(folder / "handovers.jsonl", fresh) == (old,)


def test_the_second_renewal_names_the_first_hand_over_which_may_not_have_been_sent(hospital):
    record_withdrawal(hospital.service, hospital.agreement.digest)
    stop(hospital)
    _, first = renewed(hospital.folder)  # interrupted before it was printed
    said = ("--yes", "--by", "A", "--role", "B", "--reason", "C")
    code, text = run("site", "renew", hospital.folder, *said)
    assert code == 0, text
    assert f"who has not confirmed {first} needs it first" in text


@pytest.mark.parametrize("text", ["", "0123", "\x00"])
def test_an_unusable_next_key_that_no_hand_over_names_is_made_anew(hospital, text):
    record_withdrawal(hospital.service, hospital.agreement.digest)
    stop(hospital)
    folder, fresh = hospital.folder, hospital.folder / "identity.next.key"
    fresh.write_text(text)
    fresh.chmod(0o600)
    one, _ = renewed(folder)
    second = Identity.create(fresh)
    keep_hand_over(
        folder / "handovers.jsonl", HandOver.make("north", Identity.load(folder / "identity.key"), second)
    )
    fresh.write_text(text)
    with pytest.raises(InvalidValue, match="a hand-over names the key in this file"):
        renewed(folder)
    assert (fresh.read_text(), Identity.load(folder / "identity.key").public) == (text, one.new)


def test_a_disk_that_fails_leaves_no_key_and_no_hand_over_half_written(tmp_path, monkeypatch):
    path = tmp_path / "handovers.jsonl"
    old, new = (Identity.create(tmp_path / name) for name in ("old.key", "new.key"))
    keep_hand_over(path, HandOver.make("south", old, new))
    before = {one: one.read_bytes() for one in tmp_path.iterdir()}

    def full(_: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="full"):
        keep_hand_over(path, HandOver.make("south", new, old))
    with pytest.raises(OSError, match="full"):
        Identity.create(tmp_path / "third.key")
    assert {one: one.read_bytes() for one in tmp_path.iterdir()} == before
