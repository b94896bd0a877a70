"""Stored receipts: evidence with the hospital's own signature, which survives a restart and names what it is for."""

import json
from dataclasses import replace

import pytest
from tests.deploy.test_transport import COST, exchange, make  # noqa: F401

from fedveil.deploy.identity import Identity
from fedveil.deploy.receipts import Receipt, Receipts
from fedveil.errors import FederationError
from fedveil.federation.wire import decode, encode


def test_receipts_survive_a_restart_and_a_torn_line(tmp_path):
    texts = dict.fromkeys(("study", "answer", "hash"), "ab" * 32)
    values = {"site": "a", "release": "r", "round": 1, "cost": COST, **texts}
    receipts = Receipts(tmp_path)
    signer = Identity.create(tmp_path / "a.key")
    first = Receipt(**values, attempt=1, seq=3)
    receipts.keep(first, first.signed(signer), after=None)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"site": "a", "seq"')
    again = Receipts(tmp_path)
    assert again.last("a").seq == 3
    with pytest.raises(FederationError):
        again.keep(Receipt(**values, attempt=2, seq=3), "", after=again.last("a"))
    second = Receipt(**values, attempt=2, seq=4)
    again.keep(second, second.signed(signer), after=again.last("a"))
    assert Receipts(tmp_path).last("a").seq == 4
    assert Receipts(tmp_path).verify("a", signer.public) == (2, 0)


def test_two_coordinators_store_receipts_of_one_hospital(tmp_path):
    """Answers to both arrive in any order; a ledger that was rolled back is found by either."""
    signer = Identity.create(tmp_path / "a.key")
    texts = dict.fromkeys(("study", "answer"), "ab" * 32)

    def receipt(seq: int, letter: str = "a") -> Receipt:
        values = {"site": "a", "release": "r", "round": 1, "attempt": seq, "cost": COST, **texts}
        return Receipt(**values, seq=seq, hash=letter * 64)

    def keep(receipts: Receipts, one: Receipt, after: Receipt | None) -> None:
        receipts.keep(one, one.signed(signer), after=after)

    first, second = Receipts(tmp_path / "r"), Receipts(tmp_path / "r")
    before = first.last("a"), second.last("a")
    keep(second, receipt(4), before[1])
    keep(first, receipt(3), before[0])
    keep(first, receipt(3), before[0])
    assert first.last("a") == second.last("a") == receipt(4)
    assert Receipts(tmp_path / "r").verify("a", signer.public) == (2, 0)
    for receipts in (first, second):
        with pytest.raises(FederationError, match="a ledger may only grow"):
            keep(receipts, receipt(2), receipts.last("a"))
        with pytest.raises(FederationError, match="a ledger may only grow"):
            keep(receipts, receipt(3, "b"), None)
    keep(first, receipt(5), first.last("a"))
    assert second.last("a").seq == 5


def test_stored_receipts_are_evidence_to_a_third_party(make, tmp_path):  # noqa: F811
    """Each line holds the hospital's signature; a changed line, or another's key, is found."""
    town = make.build()
    exchange(town)
    key = make.identities["west"].public
    stored = Receipts(tmp_path / "receipts")
    assert stored.verify("west", key) == (1, 0)
    with pytest.raises(FederationError, match="is not signed by"):
        stored.verify("west", make.identities["north"].public)
    path = tmp_path / "receipts" / "west.jsonl"
    path.write_text(path.read_text().replace('"seq": 1', '"seq": 2'))
    with pytest.raises(FederationError, match="is not signed by"):
        stored.verify("west", key)


def test_receipts_of_version_0_1_are_read_without_signatures(tmp_path):
    texts = dict.fromkeys(("study", "answer", "hash"), "ab" * 32)
    old = Receipt(site="a", release="r", round=1, cost=COST, attempt=1, seq=3, **texts)
    (tmp_path / "a.jsonl").write_text(json.dumps(old.to_dict()) + "\n")
    assert Receipts(tmp_path).last("a") == old
    assert Receipts(tmp_path).verify("a", Identity.create(tmp_path / "a.key").public) == (0, 1)


def test_an_answer_without_the_hospitals_own_receipt_is_not_used(make):  # noqa: F811
    """The message is the hospital's, and its receipt is signed with another's key."""

    def answer(sealed: bytes) -> bytes:
        asked = make.opened("west", sealed)
        frame = decode(make.opened_by_coordinator("west", make.honest("west")(sealed)))
        receipt = Receipt.from_dict(frame.head["receipt"])
        head = {**frame.head, "signature": receipt.signed(make.identities["north"])}
        return make.sealed_by("west", encode(replace(frame, head=head)), asked.id)

    assert exchange(make.build(west=answer))["west"].code == "invalid"
