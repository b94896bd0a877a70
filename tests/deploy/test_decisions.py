"""Decisions are evidence: who, in which role, why; nothing is deleted, and every charge comes after its approval."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.deploy.hospital import WHO, Hospital, record_approval, record_withdrawal
from typer.testing import CliRunner

from fedveil.cli.main import app
from fedveil.deploy.records.decisions import Decisions
from fedveil.deploy.site.service import SiteService
from fedveil.errors import InvalidValue, LedgerError, Refused
from fedveil.federation import Declined, Reply
from fedveil.federation.wire import pack
from fedveil.privacy import Budget, Decision, Ledger

SAID = ["--by", WHO["by"], "--role", WHO["role"]]


def site(*words: str, answers: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(app, ["site", *words], input=answers)
    return done.exit_code, " ".join((done.output + done.stderr).split())


def acts(hospital: Hospital) -> list[tuple[str, str, str, str]]:
    """The decisions in the ledger."""
    return [(one.act, one.by, one.role, one.reason) for one in hospital.ledger.decisions]


def kinds(hospital: Hospital) -> list[str]:
    lines = (hospital.folder / "ledger.jsonl").read_text().splitlines()
    return [json.loads(line)["kind"] for line in lines]


def test_every_charge_comes_after_the_line_that_approves_it(make_hospital):
    hospital = make_hospital(approve=False)
    code, text = site("approve", hospital.agreement.digest, str(hospital.folder), "--yes", *SAID)
    assert code == 0, text
    assert isinstance(hospital.round(1, 1), Reply)
    assert kinds(hospital) == ["budget", "decision", "charge"]
    assert acts(hospital) == [("approved", WHO["by"], WHO["role"], "")]
    assert hospital.ledger.decisions[0].subject == hospital.agreement.digest


def test_a_withdrawal_deletes_nothing(hospital):
    digest = hospital.agreement.digest
    assert isinstance(hospital.round(1, 1), Reply)
    code, text = site("withdraw", digest, str(hospital.folder), "--yes", *SAID, "--reason", "a new law")
    assert code == 0, text
    assert isinstance(hospital.round(2, 2), Declined)
    hospital.hello()
    assert [act for act, *_ in acts(hospital)] == ["approved", "withdrawn"]
    assert acts(hospital)[1][3] == "a new law"
    assert hospital.service.studies.read(digest).state == "withdrawn"
    assert site("withdraw", digest, str(hospital.folder), "--yes", *SAID, "--reason", "again")[0] == 2
    assert site("approve", digest, str(hospital.folder), "--yes", *SAID)[0] == 0
    assert isinstance(hospital.round(2, 3), Reply)
    assert [act for act, *_ in acts(hospital)] == ["approved", "withdrawn", "approved"]


def test_a_site_whose_very_first_decision_was_killed_starts_with_none(make_hospital):
    """The head's file is made before the decisions'; a kill between the two leaves it empty."""
    hospital = make_hospital(approve=False)
    head = hospital.folder / "decisions.jsonl.head"
    head.touch()
    assert hospital.hello().head["status"] == "pending"
    code, text = site("approve", hospital.agreement.digest, str(hospital.folder), "--yes", *SAID)
    assert code == 0, text
    assert isinstance(hospital.round(1, 1), Reply)
    (hospital.folder / "decisions.jsonl").unlink()
    head.write_bytes(b"")
    with pytest.raises(Refused, match="lacks 1 decisions that the ledger holds"):
        Decisions(hospital.folder / "decisions.jsonl").copy_to(hospital.service.ledger)


@pytest.mark.parametrize("quiet", [False, True])
def test_a_coordinator_learns_that_a_study_is_declined_and_nothing_more(make_hospital, quiet):
    hospital = make_hospital(approve=False)
    words = ["--yes", *SAID, "--reason", "no legal basis", *(["--quiet"] if quiet else [])]
    code, text = site("decline", hospital.agreement.digest, str(hospital.folder), *words)
    assert code == 0, text
    head = hospital.hello().head
    assert head["status"] == ("pending" if quiet else "declined")
    assert "legal" not in json.dumps(dict(head))
    assert acts(hospital) == [("declined", WHO["by"], WHO["role"], "no legal basis")]


@pytest.mark.parametrize("missing", ["--by", "--role", "--reason"])
def test_without_a_name_a_role_or_a_reason_nothing_is_decided(make_hospital, missing):
    hospital = make_hospital(approve=False)
    said = {"--by": "A", "--role": "B", "--reason": "C"}
    del said[missing]
    words = [word for pair in said.items() for word in pair]
    code, text = site("decline", hospital.agreement.digest, str(hospital.folder), "--yes", *words)
    assert code == 2
    assert f"give {missing}" in text
    assert not hospital.service.studies.decisions.all()


def test_the_account_does_not_follow_from_the_environment(hospital, monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "the-director")
    record_withdrawal(hospital.service, hospital.agreement.digest)
    accounts = {one.account for one in hospital.service.studies.decisions.all()}
    assert len(accounts) == 1
    assert "the-director" not in accounts


def test_an_older_copy_of_the_decisions_cannot_undo_a_withdrawal(hospital):
    files = [hospital.folder / name for name in ("decisions.jsonl", "decisions.jsonl.head")]
    hospital.hello()
    for file in files:
        shutil.copy(file, file.with_suffix(".old"))
    record_withdrawal(hospital.service, hospital.agreement.digest)
    hospital.hello()
    for file in files:
        shutil.copy(file.with_suffix(".old"), file)
    assert hospital.hello().kind == "refused"
    assert hospital.ask(pack(hospital.request())).kind == "refused"
    assert not hospital.ledger.charges
    with pytest.raises(Refused, match="lacks 1 decisions that the ledger holds"):
        SiteService(hospital.service.config, hospital.service.identity, hospital.service.ledger)


def test_a_decision_file_that_was_edited_is_refused(hospital):
    path = hospital.folder / "decisions.jsonl"
    path.write_text(path.read_text().replace("approved", "declined"))
    with pytest.raises(LedgerError):
        Decisions(path).all()
    path.unlink()
    with pytest.raises(LedgerError, match="does not exist any more"):
        Decisions(path).all()


@pytest.mark.parametrize("text", ["", "two\nlines", "x" * 501, "\x1b[2J"])
def test_a_name_is_one_line_of_plain_text(text):
    with pytest.raises(InvalidValue, match="by of the decision"):
        Decision(act="approved", subject="ab", by=text, role="officer")


def test_an_amended_budget_names_who_decided(tmp_path):
    with Ledger(tmp_path / "ledger.jsonl", Budget(1.0, 1e-5)):
        pass
    command = [
        "ledger",
        "amend",
        str(tmp_path / "ledger.jsonl"),
        "--epsilon",
        "3",
        "--reason",
        "ethics board",
    ]
    assert CliRunner().invoke(app, command).exit_code == 2
    assert CliRunner().invoke(app, [*command, *SAID]).exit_code == 0
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        (decision,) = ledger.state.decisions
        assert ledger.budget.epsilon == 3
    assert (decision.act, decision.by, decision.role) == ("amended", WHO["by"], WHO["role"])
    assert "ethics board" in decision.reason


def test_one_unreadable_file_takes_out_no_other_study(make_hospital, tmp_path):
    hospital = make_hospital()
    other = hospital.folder / "studies" / f"{'ab' * 32}.json"
    for content in ("{", "[]", '{"study": 1}'):
        other.write_text(content)
        assert [one.digest for one in hospital.service.studies.all()] == [hospital.agreement.digest]
        code, text = site("studies", str(hospital.folder))
        assert code == 0
        assert "problem study abababababab" in text
        assert "budget epsilon" in text
    other.unlink()
    other.mkdir()
    hospital.restart()
    hospital.service.resume()
    assert hospital.hello().head["status"] in ("loading", "ready")
    other.rmdir()


def test_offers_that_were_declined_make_room(make_hospital, monkeypatch):
    monkeypatch.setattr("fedveil.deploy.site.approvals._MAX_PENDING", 1)
    hospital = make_hospital(approve=False)
    second = hospital.offer.study.with_changes({"study": {"description": "another"}})
    offer = type(hospital.offer)(
        study=second,
        sites=hospital.offer.sites,
        classes=hospital.offer.classes,
        channels=hospital.offer.channels,
    )
    with pytest.raises(Refused, match="wait for a decision"):
        hospital.service.studies.add(offer)
    hospital.service.studies.decide(
        Decision(act="declined", subject=hospital.agreement.digest, reason="no", **WHO)
    )
    assert hospital.service.studies.add(offer) == offer.agreement().digest


RUN = [sys.executable, "-c", "from fedveil.cli import main; main()"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can try as another user")
@pytest.mark.parametrize("who", ["root", "another"])
def test_approving_as_the_wrong_user_is_refused_at_the_command(make_hospital, tmp_path, who):
    """A file that the service cannot read would leave the study pending for ever, and the service unable to start."""
    hospital = make_hospital(approve=False)
    hospital.service.ledger.close()
    for path in [hospital.folder, *hospital.folder.rglob("*")]:
        os.chown(path, 65534, 65534)
    before = {path: path.stat().st_uid for path in hospital.folder.rglob("*")}
    command = [*RUN, "site", "approve", hospital.agreement.digest, str(hospital.folder), "--yes", *SAID]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "belongs to the user nobody, and this command runs as the user root" in done.stderr
    assert "sudo -u nobody" in done.stderr
    assert {path: path.stat().st_uid for path in hospital.folder.rglob("*")} == before
    if who == "another":
        for path in [hospital.folder, *hospital.folder.rglob("*")]:
            os.chown(path, 0, 0)
        os.chown(hospital.folder / "studies", 65534, 65534)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "studies belongs to the user nobody" in done.stderr
        assert f"chown -R root: {hospital.folder}" in done.stderr


def test_an_approval_of_version_0_1_counts_until_something_is_decided(make_hospital):
    hospital = make_hospital(approve=False)
    path: Path = hospital.folder / "studies" / f"{hospital.agreement.digest}.approved"
    path.write_text('{"by": "me", "at": "now"}')
    assert isinstance(hospital.round(1, 1), Reply)
    assert hospital.service.studies.read(hospital.agreement.digest).approved == "me at now"
    record_withdrawal(hospital.service, hospital.agreement.digest)
    assert isinstance(hospital.round(2, 2), Declined)
    record_approval(hospital.service, hospital.agreement.digest)
    assert isinstance(hospital.round(2, 3), Reply)
