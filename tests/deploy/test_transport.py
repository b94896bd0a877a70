"""The coordinator's end against hostile and broken hospitals, over a SuperLink that is a dictionary."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.deploy.hospital import make_offer

from fedveil.deploy.carrier import Parcel
from fedveil.deploy.coordinator.asking import Patience
from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.coordinator.runner import wait_for_sites
from fedveil.deploy.coordinator.transport import SealedTransport
from fedveil.deploy.flower.node import _HEARTBEAT
from fedveil.deploy.identity import Identity
from fedveil.deploy.provisioning.kits import make_kits
from fedveil.deploy.receipts import Receipt, Receipts
from fedveil.deploy.sealing import FROM_COORDINATOR, FROM_SITE, new_id, seal, unseal
from fedveil.errors import FederationError
from fedveil.federation import Declined, Reply, Request
from fedveil.federation.wire import Frame, decode, encode, pack, unpack
from fedveil.privacy import Mechanism

SITES = ("north", "south", "west")
REQUEST = Request(
    study="ab" * 32, release="training", round=1, attempt=1, participants=SITES, parameters=np.zeros(3)
)
IDS = {"study": "ab" * 32, "release": "training", "round": 1, "attempt": 1}
COST = Mechanism(noise_multiplier=8.0, clip_norm=1.0, steps=1, sampling_rate=1.0).to_dict()
QUICK = Patience(away=0.2, answer=1.5, again=0.5)


class Lines:
    """A carrier that delivers at once; a site that is not in ``answer`` is absent, one that answers None is silent."""

    def __init__(self, answer: dict[str, Callable[[bytes], bytes | None]]) -> None:
        self.answer, self.replies, self.pushed = answer, {}, []
        self.sessions = dict.fromkeys(answer, "first")

    def present(self):
        return {site: self.sessions[site] for site in SITES if site in self.answer}

    def push(self, messages, seconds):
        names = {}
        for site, data in messages.items():
            names[site] = f"m{len(self.pushed)}"
            self.pushed.append(site)
            answered = self.answer[site](data)
            if answered is not None:
                self.replies[names[site]] = Parcel(names[site], answered)
        return names

    def pull(self, names):
        return [self.replies.pop(name) for name in list(names) if name in self.replies]


@pytest.fixture
def make(tmp_path):
    """Build a transport over hospitals; each is a function from a request to an answer, or one of the defaults."""
    identities = {site: Identity.create(tmp_path / f"{site}.key") for site in (*SITES, "coordinator")}

    def honest(site: str, /, *, seq: int = 1, **changes: object) -> Callable[[bytes], bytes]:
        def answer(sealed: bytes) -> bytes:
            asked = opened(site, sealed)
            request = unpack(asked.body, Request)
            ids = {"study": request.study, "release": request.release, "round": request.round}
            values = {"site": site, **ids, "attempt": request.attempt, "vector": np.ones(3), **changes}
            reply = Reply(**values)
            raw = pack(reply)
            receipt = Receipt(
                site=site,
                **ids,
                attempt=request.attempt,
                answer=hashlib.sha256(raw).hexdigest(),
                cost=COST,
                seq=seq,
                hash="0" * 64,
            )
            signature = receipt.signed(identities[site])
            head = {"site": site, "receipt": receipt.to_dict(), "signature": signature}
            frame = Frame("answer", head, {}, {"answer": raw})
            return sealed_by(site, encode(frame), asked.id)

        return answer

    def opened(site: str, sealed: bytes):
        sender = identities["coordinator"].public
        return unseal(sealed, identities[site], sender=sender, purpose=FROM_COORDINATOR)

    def sealed_by(site: str, body: bytes, message: bytes) -> bytes:
        to = identities["coordinator"].public
        return seal(body, identities[site], to=to, purpose=FROM_SITE, message=message)

    def to(site: str, body: bytes) -> bytes:
        key = identities[site].public
        return seal(body, identities["coordinator"], to=key, purpose=FROM_COORDINATOR, message=new_id())

    def opened_by_coordinator(site: str, sealed: bytes) -> bytes:
        sender = identities[site].public
        return unseal(sealed, identities["coordinator"], sender=sender, purpose=FROM_SITE).body

    def build(**answers):
        chosen = {site: answers.get(site, honest(site)) for site in SITES if answers.get(site, True)}
        link = Lines(chosen)
        keys = {site: identities[site].public for site in SITES}
        receipts = Receipts(tmp_path / "receipts")
        transport = SealedTransport(
            link, identities["coordinator"], keys, receipts, pin=lambda *_: None, patience=QUICK
        )
        return SimpleNamespace(transport=transport, link=link, receipts=receipts)

    return SimpleNamespace(
        build=build,
        honest=honest,
        identities=identities,
        opened=opened,
        sealed_by=sealed_by,
        to=to,
        opened_by_coordinator=opened_by_coordinator,
    )


def exchange(town):
    return town.transport.exchange(dict.fromkeys(SITES, REQUEST))


def test_every_hospital_answers(make):
    town = make.build()
    answers = exchange(town)
    assert {site: type(answer) for site, answer in answers.items()} == dict.fromkeys(SITES, Reply)
    assert town.link.pushed == list(SITES)
    assert [town.receipts.last(site).seq for site in SITES] == [1, 1, 1]


def test_a_hospital_that_is_not_connected_is_absent(make):
    assert set(exchange(make.build(west=False))) == {"north", "south"}


def test_a_hospital_that_says_nothing_is_absent_and_asked_again(make):
    town = make.build(west=lambda _: None)
    assert set(exchange(town)) == {"north", "south"}
    assert town.link.pushed.count("west") >= 2
    assert town.link.pushed.count("north") == 1


def patience_of_kits(folder: Path) -> Patience:
    """As the coordinator's folder has it that `fedveil federation init` writes."""
    make_kits(folder / "kits", name="town", hospitals=SITES, hosts=["127.0.0.1"], port=9443)
    return Federation.load(folder / "kits" / "coordinator").patience


class Clock:
    """The time that a transport sees: it passes only while it sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_an_absent_hospital_costs_seconds_and_later_rounds_fewer(make, monkeypatch, tmp_path):
    """Its node is known to be gone after twice its heartbeat; that, and the wait, stay below 30 s; then below 5 s."""
    clock = Clock()
    monkeypatch.setattr("fedveil.deploy.coordinator.asking.time", clock)
    town = make.build(west=False)
    town.transport._patience = patience_of_kits(tmp_path)
    used = []
    for seq in (1, 2, 3):
        for site in ("north", "south"):
            town.link.answer[site] = make.honest(site, seq=seq)
        before = clock.now
        assert set(exchange(town)) == {"north", "south"}
        used.append(clock.now - before)
    assert used[0] + 2 * _HEARTBEAT <= 30
    assert max(used[1:]) <= 5
    town.link.answer["west"], town.link.sessions["west"] = make.honest("west"), "first"
    for site in ("north", "south"):
        town.link.answer[site] = make.honest(site, seq=4)
    assert set(exchange(town)) == set(SITES)
    del town.link.answer["west"]
    for site in ("north", "south"):
        town.link.answer[site] = make.honest(site, seq=5)
    before = clock.now
    exchange(town)
    assert clock.now - before == pytest.approx(used[0], abs=2.0), "once it was back, it is waited for again"


@pytest.mark.parametrize(
    "answer",
    [
        lambda make: lambda _: b"garbage",
        lambda make: lambda sealed: sealed,
        lambda make: lambda _: make.sealed_by("west", b"garbage", new_id()),
        lambda make: lambda _: make.sealed_by("north", b"garbage", new_id()),
    ],
)
def test_what_is_not_the_hospitals_own_answer_is_dropped_and_the_hospital_asked_again(make, answer, caplog):
    """Anybody in between can send it, so the hospital is not to blame: it does not answer, and others do."""
    town = make.build(west=answer(make))
    assert set(exchange(town)) == {"north", "south"}
    assert town.link.pushed.count("west") > 1
    assert "an answer from west is refused" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"site": "north"},
        {"round": 2},
        {"attempt": 2},
        {"study": "cd" * 32},
        {"release": "statistics"},
        {"body": b"garbage"},
        {"body": encode(Frame("answer", {"site": "west"}))},
        {"body": encode(Frame("kept", {"site": "west"}))},
        {"body": encode(Frame("answer", {"site": "west"}, {}, {"answer": b"FVWR"}))},
    ],
)
def test_what_the_hospital_itself_signed_and_the_protocol_does_not_allow_is_its_own(make, change, caplog):
    """It is named at once, and never asked again: the coordinator leaves it out for the rest of the study."""
    body = change.get("body")
    honest = make.honest("west", **change) if body is None else None
    town = make.build(
        west=honest or (lambda sealed: make.sealed_by("west", body, make.opened("west", sealed).id))
    )
    answers = exchange(town)
    assert answers["west"] == Declined(**IDS, site="west", code="invalid")
    assert isinstance(answers["north"], Reply)
    assert town.link.pushed.count("west") == 1
    assert "west broke the protocol" in caplog.text


def test_nan_and_wrong_shapes_reach_the_coordinators_own_check(make):
    """The transport carries what is well formed; `Coordinator` excludes and names the site (tests/federation)."""
    for vector in (np.full(3, np.nan), np.ones(5)):
        answers = exchange(make.build(west=make.honest("west", seq=9 + len(vector), vector=vector)))
        np.testing.assert_array_equal(answers["west"].vector, vector)


def test_a_node_that_signs_on_anew_is_asked_again(make):
    lost = []

    def lose_the_first(sealed: bytes) -> bytes | None:
        lost.append(sealed)
        if len(lost) == 1:
            town.link.sessions["west"] = "second"
            return None
        return make.honest("west")(sealed)

    town = make.build(west=lose_the_first)
    assert isinstance(exchange(town)["west"], Reply)
    first, second = (make.opened("west", one) for one in lost)
    assert first.digest == second.digest, "the same message, so that the site can answer from its spool"
    assert first.sent < second.sent, "with another date, so that it is not held for one that was withheld"


def test_a_ledger_that_goes_back_is_caught(make, caplog):
    town = make.build(west=make.honest("west", seq=5))
    exchange(town)
    town.link.answer["west"] = make.honest("west", seq=4)
    for site in ("north", "south"):
        town.link.answer[site] = make.honest(site, seq=2)
    answers = exchange(town)
    assert isinstance(answers["west"], Declined)
    assert isinstance(answers["north"], Reply)
    assert "a ledger may only grow" in caplog.text


def test_a_finished_model_reaches_those_who_confirm_it(make):
    """Old confirmations, other words and silence do not count; the others are not disturbed."""
    arrays = {"parameters": np.arange(3.0), "frequencies": np.array([0.5, 0.5])}
    seen = []

    def answering(site: str, kind: str, nonce: str | None = None) -> Callable[[bytes], bytes]:
        def answer(sealed: bytes) -> bytes:
            asked = make.opened(site, sealed)
            frame = decode(asked.body)
            seen.append((frame.kind, frame.head["study"], frame.arrays["parameters"].tolist()))
            head = {"site": site, "nonce": nonce or frame.head["nonce"]}
            return make.sealed_by(site, encode(Frame(kind, head)), asked.id if nonce is None else new_id())

        return answer

    answers = {"north": answering("north", "kept"), "south": answering("south", "refused")}
    town = make.build(**answers, west=answering("west", "kept", nonce="old"))
    assert town.transport.deliver(SITES, "ab" * 32, arrays) == ("south", "west")
    assert set(map(str, seen)) == {str(("model", "ab" * 32, [0.0, 1.0, 2.0]))}
    assert make.build(north=False, south=answering("south", "kept"), west=lambda _: None).transport.deliver(
        SITES, "ab" * 32, arrays
    ) == ("north", "west")


def test_a_hospital_that_answers_rubbish_when_greeted_keeps_nobody_waiting(tmp_path):
    """The study begins with the others at once, not when patience for approvals ends."""
    offer = make_offer(tmp_path)
    found = {"north": "ready", "south": "ready", "west": "invalid"}
    greetings = iter([found])
    transport = SimpleNamespace(greet=lambda *_, **__: next(greetings))
    assert wait_for_sites(transport, offer, offer.agreement(), patience=1e9, say=lambda _: None) == found
    greetings = iter([found | {"south": "stale"}])
    with pytest.raises(FederationError, match="west sends answers that the protocol does not allow"):
        wait_for_sites(transport, offer, offer.agreement(), patience=-1.0, say=lambda _: None)
