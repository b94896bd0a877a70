"""Statements of hospitals in the coordinator's run: verified before they are shown, and named if they cannot be."""

import html
import json
import math
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.deploy.hospital import Hospital, record_withdrawal
from tests.deploy.test_gate import found
from tests.deploy.test_renewal import receipt, run
from tests.deploy.test_statement import stated  # noqa: F401
from tests.report.conftest import write_run

from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.identity import Identity, fingerprint
from fedveil.deploy.provisioning.renewal import renew_identity
from fedveil.deploy.records import statement
from fedveil.report import write_report


class Town(NamedTuple):
    hospital: Hospital
    page: Path
    home: Federation
    run: Path

    def take(self, *files: Path) -> tuple[int, str]:
        return run("federation", "statements", self.run, *files, "--federation", self.home.folder)

    def shown(self) -> str:
        return re.sub(r"<[^>]*>|\s+", " ", (self.run / "report.html").read_text())


@pytest.fixture
def town(stated, tmp_path) -> Town:  # noqa: F811
    """A hospital's statement, and the finished run that it is about, with a second hospital that made none."""
    hospital, page = stated

    def named(result: dict) -> None:
        result["sites"][0]["name"], result["sites"][1]["name"] = "north", "south"

    path = write_run(tmp_path / "run", sites=2, rounds=1, images=30, trust="site", change=named)
    provenance = json.loads((path / "provenance.json").read_text())
    provenance["study_digest"] = hospital.agreement.digest
    (path / "provenance.json").write_text(json.dumps(provenance))
    home = found(tmp_path)
    home.pin("north", hospital.service.identity.public)
    return Town(hospital, page, home, path)


def test_a_valid_statement_is_shown_with_what_it_says(town):
    code, text = town.take(town.page)
    assert code == 0, text
    assert "north: valid" in text
    shown, spent = town.shown(), town.hospital.ledger.spent()
    (mine,) = json.loads((town.run / "statements.json").read_text())["valid"]
    assert (mine["decision"], mine["charges"], mine["early"], mine["former"]) == ("approved", 1, False, False)
    assert mine["epsilon"] == mine["spent"] == pytest.approx(spent)
    assert (town.run / "statements" / "north.html").read_bytes() == town.page.read_bytes()
    assert fingerprint(town.hospital.service.identity.public) in shown
    assert re.search(r"south\s+none that is valid", shown)
    before = (town.run / "statements.json").read_bytes()
    (town.run / "result.json").unlink()
    code, text = town.take(town.page)
    assert (code, (town.run / "statements.json").read_bytes()) == (2, before)
    assert "holds no finished run" in text


def changed(town: Town, tmp_path: Path) -> Path:
    path = tmp_path / "changed.html"
    path.write_bytes(town.page.read_bytes().replace(b"approved", b"declined"))
    return path


def stranger(town: Town, tmp_path: Path) -> Path:
    """The same text, signed by somebody else."""
    body = town.page.read_bytes().rpartition(b"<!-- fedveil signature")[0]
    path = tmp_path / "stranger.html"
    path.write_bytes(body + statement._signature(body, Identity.create(tmp_path / "s.key")))
    return path


def resigned(town: Town, path: Path, old: bytes, new: bytes) -> Path:
    """Another text, which the hospital itself signed."""
    body = town.page.read_bytes().rpartition(b"<!-- fedveil signature")[0]
    assert old in body
    body = body.replace(old, new)
    path.write_bytes(body + statement._signature(body, town.hospital.service.identity))
    return path


def stating(town: Town, path: Path, signer: Identity | None = None, **facts: object) -> Path:
    """The same page with other facts for programs, signed by the hospital unless somebody else is named."""
    body = town.page.read_bytes().rpartition(b"<!-- fedveil signature")[0]
    found = re.search(rb'<meta name="fedveil-statement" content="([^"]*)">', body)
    values = {**json.loads(html.unescape(found[1].decode())), **facts}
    body = body[: found.start(1)] + html.escape(json.dumps(values)).encode() + body[found.end(1) :]
    path.write_bytes(body + statement._signature(body, signer or town.hospital.service.identity))
    return path


def valid(town: Town) -> list[dict]:
    return json.loads((town.run / "statements.json").read_text())["valid"]


def another_study(town: Town, tmp_path: Path) -> Path:
    return resigned(town, tmp_path / "other.html", town.hospital.agreement.digest.encode(), b"ab" * 32)


def another_site(town: Town, tmp_path: Path) -> Path:
    """North speaks in south's name, whose key is not known."""
    return resigned(town, tmp_path / "south.html", b"&#34;site&#34;:&#34;north", b"&#34;site&#34;:&#34;south")


def without_facts(town: Town, tmp_path: Path) -> Path:
    return resigned(town, tmp_path / "old.html", b'<meta name="fedveil-statement"', b'<meta name="x"')


def no_statement(town: Town, tmp_path: Path) -> Path:
    (tmp_path / "photo.html").write_bytes(b"\x00\xff")
    return tmp_path / "photo.html"


def missing(town: Town, tmp_path: Path) -> Path:
    return tmp_path / "missing.html"


WRONG = {
    changed: "was changed after",
    stranger: "was expected",
    another_study: "is about study abababababab at north",
    another_site: "the key of south is not known",
    without_facts: "no part that programs read",
    no_statement: "is not a signed statement",
    missing: "cannot be read",
}


def test_what_cannot_be_verified_is_named_and_replaces_nothing(town, tmp_path):
    assert town.take(town.page)[0] == 0
    files = {make(town, tmp_path): words for make, words in WRONG.items()}
    code, text = town.take(*files)
    assert code == 1
    stored = json.loads((town.run / "statements.json").read_text())
    (mine,) = stored["valid"]
    assert mine["site"] == "north"
    reasons = {one["file"]: one["reason"] for one in stored["unverified"]}
    assert set(reasons) == {path.name for path in files}
    _, _, named = town.shown().partition("Not valid, and not shown above:")
    for path, words in files.items():
        assert words in reasons[path.name]
        assert f"{path.name} is not valid: {reasons[path.name]}" in text
        assert path.name in named
        assert words in named
    assert str(tmp_path) not in named, "a report names no folders"
    assert (town.run / "statements" / "north.html").read_bytes() == town.page.read_bytes()


def test_a_ledger_that_a_receipt_contradicts_is_not_taken_in(town):
    identity, head = town.hospital.service.identity, town.hospital.ledger.head
    one = receipt(head.seq)
    town.home.receipts().keep(one, one.signed(identity), after=None)
    code, text = town.take(town.page)
    assert code == 1
    assert "its receipt for that line says abababababab" in text


def test_fewer_charges_than_receipts_show_are_not_taken_in(town, tmp_path):
    identity, digest, head = (
        town.hospital.service.identity,
        town.hospital.agreement.digest,
        town.hospital.ledger.head,
    )
    later = [replace(receipt(head.seq + more), study=digest, hash=head.hash) for more in (0, 1)]
    free, other = replace(receipt(0), study=digest, cost=None), receipt(head.seq - 1)
    for one in (free, other, *later):
        town.home.receipts().keep(one, one.signed(identity), after=None)
    code, text = town.take(stating(town, tmp_path / "none.html", charges=0))
    assert code == 1
    assert f"counts 0 charges up to line {head.seq} of its ledger; its receipts show 1 or more" in text
    assert town.take(town.page)[0] == 0, "charges after its line are not missing"


def test_a_copy_that_was_changed_later_is_shown_as_valid_no_more(town):
    town.take(town.page)
    with (town.run / "statements" / "north.html").open("a") as file:
        file.write(" ")
    write_report(town.run)
    shown = re.sub(" +", " ", town.shown())
    assert re.search(r"north\s+none that is valid", shown)
    assert "north.html : the file is missing, or was changed after it was verified" in shown


def test_a_statement_with_a_key_that_was_renewed_since_stays_valid(town, tmp_path):
    hospital, home = town.hospital, town.home
    old = hospital.service.identity.public
    record_withdrawal(hospital.service, hospital.agreement.digest)
    hospital.service.finish()
    hospital.service.ledger.close()
    one, path = renew_identity(hospital.folder, by="A", role="B", reason="C")
    home.pin("north", one.new)
    assert "was expected" in town.take(town.page)[1], "without the hand-over it is a stranger's"
    home.pin("north", old)
    said = f"north={fingerprint(one.new)}"
    assert run("federation", "confirm", path, home.folder, "--yes", "--key", said)[0] == 0
    code, text = town.take(town.page)
    assert code == 0, text
    assert f"{fingerprint(old)} (renewed since)" in town.shown()


IMPOSSIBLE = [
    *({name: value} for name in ("epsilon", "spent", "budget") for value in (-1.0, math.nan, math.inf)),
    *({"delta": value} for value in (-3.0, 1.0, math.nan, math.inf)),
    *({name: value} for name in ("charges", "line") for value in (-1, 2**53 + 1, 10**30)),
    *({"made": one} for one in ("-", "9999", "2026-13-45T99:99:99+00:00", "2026-01-01T00:00:00")),
    {"made": "0001-01-01T00:00:00+23:59"},
    {"decision": "aaaa"},
]


def test_what_no_ledger_can_hold_is_refused_though_the_hospital_signed_it(town, tmp_path):
    assert town.take(town.page)[0] == 0
    before = valid(town)
    files = {stating(town, tmp_path / f"{at}.html", **one): one for at, one in enumerate(IMPOSSIBLE)}
    code, text = town.take(*files)
    assert code == 1, text
    for path, facts in files.items():
        (name,) = facts
        assert re.search(rf"{path.name} is not valid: [^;]*: {name} is ", text), (facts, text)
    future = (datetime.now(UTC) + timedelta(days=2)).isoformat(timespec="seconds")
    code, text = town.take(stating(town, tmp_path / "future.html", made=future))
    assert (code, valid(town)) == (1, before)
    assert "that time has not come" in text
    assert town.take(stating(town, tmp_path / "open.html", epsilon=None, spent=None, budget=None))[0] == 0
    write_report(town.run)


def test_a_stolen_earlier_key_replaces_no_statement(town, tmp_path):
    hospital, home = town.hospital, town.home
    old = hospital.service.identity
    record_withdrawal(hospital.service, hospital.agreement.digest)
    hospital.service.finish()
    hospital.service.ledger.close()
    one, _ = renew_identity(hospital.folder, by="A", role="B", reason="C")
    home.accept(one)
    said = {
        "decision": "approved",
        "charges": 0,
        "epsilon": 0.0,
        "spent": 0.0,
        "line": 999,
        "hash": "ab" * 32,
    }
    later = (datetime.fromisoformat(one.time) + timedelta(seconds=1)).isoformat()
    code, text = town.take(stating(town, tmp_path / "later.html", old, made=later, **said))
    assert (code, valid(town)) == (1, [])
    assert "with a key that it handed over at" in text
    assert town.take(town.page)[0] == 0, "made before the hand-over"
    assert town.take(stating(town, tmp_path / "same.html", old, made=one.time, **said))[0] == 0
    assert [each["charges"] for each in valid(town)] == [1], "it replaces no other one of that key"
    shutil.rmtree(tmp_path / "out")
    code, text = run(
        "site", "statement", hospital.agreement.digest, hospital.folder, "--out", tmp_path / "out"
    )
    assert code == 0, text
    assert town.take(*(tmp_path / "out").glob("*.html"))[0] == 0
    current = valid(town)
    assert [(each["former"], each["decision"], each["charges"]) for each in current] == [
        (False, "withdrawn", 1)
    ]
    assert town.take(tmp_path / "same.html")[0] == 0
    assert valid(town) == current


def test_the_current_key_replaces_what_an_earlier_one_dated_ahead(town, tmp_path):
    hospital = town.hospital
    ahead = (datetime.now(UTC) + timedelta(hours=12)).isoformat(timespec="seconds")
    assert town.take(stating(town, tmp_path / "ahead.html", made=ahead, charges=0))[0] == 0
    record_withdrawal(hospital.service, hospital.agreement.digest)
    hospital.service.finish()
    hospital.service.ledger.close()
    town.home.accept(renew_identity(hospital.folder, by="A", role="B", reason="C")[0])
    code, text = run(
        "site", "statement", hospital.agreement.digest, hospital.folder, "--out", tmp_path / "new"
    )
    assert code == 0, text
    assert town.take(*(tmp_path / "new").glob("*.html"))[0] == 0
    assert [(each["former"], each["charges"]) for each in valid(town)] == [(False, 1)]


def test_a_report_names_no_folders_beside_a_name_that_cannot_be_printed(town, tmp_path):
    code, _ = town.take(tmp_path / "a\u202eb.html")
    assert code == 1
    assert "a\ufffdb.html" in town.shown()
    assert str(tmp_path) not in (town.run / "statements.json").read_text()
