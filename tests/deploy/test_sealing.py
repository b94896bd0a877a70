"""What passes a node and the SuperLink: only the receiver reads it, and nobody else can write, alter or redirect it."""

import struct
import time
from dataclasses import replace

import numpy as np
import pytest
from tests.deploy.hospital import SITES

from fedveil.deploy import sealing
from fedveil.deploy.identity import Identity
from fedveil.deploy.sealing import FROM_COORDINATOR, FROM_SITE, introduction, new_id, seal, unseal
from fedveil.deploy.site.keys import Peers
from fedveil.errors import FederationError
from fedveil.federation import Declined, Reply
from fedveil.federation.messages import SecureReply, SecureRequest
from fedveil.federation.secure_rounds import session_of
from fedveil.federation.wire import Frame, encode, pack, unpack

BODY = b"what nobody else may read, of any length"


@pytest.fixture
def parties(tmp_path) -> dict[str, Identity]:
    return {name: Identity.create(tmp_path / f"{name}.key") for name in ("coordinator", "north", "stranger")}


def sent(parties, body: bytes = BODY, sender: str = "coordinator", to: str = "north") -> bytes:
    return seal(
        body, parties[sender], to=parties[to].public, purpose=FROM_COORDINATOR, message=b"0123456789abcdef"
    )


def opened(parties, data: bytes, by: str = "north", sender: str = "coordinator", purpose=FROM_COORDINATOR):
    return unseal(data, parties[by], sender=parties[sender].public, purpose=purpose)


def pieces(data: bytes, size: int = 12) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data) - size + 1, size)]


@pytest.mark.parametrize("trust", ["site", "server", "secure-aggregation", "none"])
def test_what_passes_the_superlink_holds_no_parameters_sums_or_names(make_hospital, trust, tmp_path):
    """Under every trust, both ways; a node could read exact sums of trust server while messages were only signed."""
    settings = {"trust": f'["{trust}"]', "min_sites": 2}
    values = {"trust": trust, "min_sites": 3 if trust == "secure-aggregation" else 2}
    hospital = make_hospital(settings=settings, **values)
    parameters = hospital.start()
    parameters[-3:] = np.random.default_rng(1).normal(size=3)
    body = pack(hospital.request(parameters=parameters))
    if trust == "secure-aggregation":  # the set-up's answer holds keys
        others = {name: Identity.create(tmp_path / f"{name}.key").public for name in SITES[1:]}
        Peers(hospital.folder / "peers").confirm(others)
        session = session_of(hospital.agreement, SITES, 1, 4)
        body = pack(SecureRequest(study=hospital.agreement.digest, body=session.to_bytes()))
    asked = hospital.seal(body)
    answer = hospital.service.answer(asked)
    frame = hospital.open(answer)
    inner = unpack(frame.blobs["answer"], Reply | Declined | SecureReply)
    expected = {"none": Declined, "secure-aggregation": SecureReply}.get(trust, Reply)  # the budget is finite
    assert isinstance(inner, expected)
    secrets = [body, encode(frame), hospital.agreement.digest.encode(), b"training", b"secure"]
    if isinstance(inner, Reply):
        secrets.append(inner.vector.tobytes())
    for secret in secrets:
        for piece in [secret, *pieces(secret)]:
            assert piece not in asked
            assert piece not in answer


def test_only_the_receiver_opens_a_message(parties):
    data = sent(parties)
    assert opened(parties, data).body == BODY
    for name in ("stranger", "coordinator"):
        with pytest.raises(FederationError, match="a message for"):
            opened(parties, data, by=name)


def test_a_right_header_does_not_open_what_is_encrypted_to_somebody_else(parties):
    """A receiver's key in the header is no proof: without the private key that belongs to it nothing comes out."""
    data = sent(parties)
    own = bytes.fromhex(parties["stranger"].public)
    redirected = data[:68] + own + data[132:]
    with pytest.raises(FederationError, match="wrong signature"):
        opened(parties, redirected, by="stranger")
    ciphertext = data[196:]
    sender = bytes.fromhex(parties["coordinator"].public)
    statement = sealing._statement(FROM_COORDINATOR, sender, own, ciphertext)
    resigned = redirected[:132] + parties["coordinator"].key.sign(statement) + ciphertext
    with pytest.raises(FederationError, match="wrong signature"):
        opened(parties, resigned, by="stranger")


def test_every_byte_of_a_message_is_bound(parties):
    data = sent(parties)
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(FederationError):
            opened(parties, changed)
    for cut in (data[:-1], data + b"\0", data[:196], data[:100], b""):
        with pytest.raises(FederationError):
            opened(parties, cut)


def test_nobody_puts_their_own_name_on_a_message_of_others(parties):
    data = sent(parties)
    own = bytes.fromhex(parties["stranger"].public)
    statement = sealing._statement(FROM_COORDINATOR, own, data[68:132], data[196:])
    stolen = data[:4] + own + data[68:132] + parties["stranger"].key.sign(statement) + data[196:]
    with pytest.raises(FederationError, match="wrong signature"):
        opened(parties, stolen, sender="stranger")


def test_a_message_is_for_one_direction(parties):
    with pytest.raises(FederationError, match="wrong signature"):
        opened(parties, sent(parties), purpose=FROM_SITE)


def test_the_encryption_key_alone_or_the_signing_key_alone_is_nobody(parties):
    """Half a key of one party beside half a key of another is a third party, to the receiver and the sender."""
    mixed = parties["coordinator"].public[:64] + parties["stranger"].public[64:]
    with pytest.raises(FederationError, match="is trusted here"):
        unseal(sent(parties), parties["north"], sender=mixed, purpose=FROM_COORDINATOR)


def test_the_same_body_is_never_encrypted_alike(parties):
    one, other = sent(parties), sent(parties)
    assert one[196:228] != other[196:228]
    assert not set(pieces(one[196:])) & set(pieces(other[196:]))


def test_messages_of_earlier_versions_are_refused_by_name(parties):
    with pytest.raises(FederationError, match="signed but not encrypted"):
        opened(parties, b"FVSG" + bytes(400))


def test_an_introduction_carries_nothing(parties):
    data = introduction(parties["coordinator"], new_id())
    assert opened(parties, data).body is None
    with pytest.raises(FederationError):
        opened(parties, data + b"x")


# Freshness


def held_back(hospital, seconds: float, body: bytes, monkeypatch) -> bytes:
    """A message that was sent some seconds ago, and arrives now."""
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(sealing.time, "time", lambda: now - seconds)
        return hospital.seal(body)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_request_that_was_held_back_is_stale_and_nothing_is_charged(hospital, sign, monkeypatch, caplog):
    most = hospital.service.config.policy.max_message_age
    body = pack(hospital.request())
    frame = hospital.open(hospital.service.answer(held_back(hospital, sign * (most + 5), body, monkeypatch)))
    assert frame.kind == "stale"
    assert abs(frame.head["clock"] - time.time()) < 60
    assert not hospital.ledger.charges
    assert "policy.max_message_age" in caplog.text
    fresh = hospital.open(hospital.service.answer(held_back(hospital, sign * (most - 60), body, monkeypatch)))
    assert isinstance(unpack(fresh.blobs["answer"], Reply | Declined), Reply)


def test_every_kind_of_message_goes_stale(hospital, monkeypatch):
    most = hospital.service.config.policy.max_message_age
    greeting = encode(Frame("hello", {"study": hospital.agreement.digest, "nonce": "n", "receipt": None}))
    offer = encode(Frame("offer", {**hospital.offer.to_dict(), "nonce": "n"}))
    model = encode(Frame("model", {"study": hospital.agreement.digest, "nonce": "n"}))
    secure = pack(SecureRequest(study=hospital.agreement.digest, body=b"{"))
    for body in (greeting, offer, model, secure):
        late = held_back(hospital, most + 5, body, monkeypatch)
        assert hospital.open(hospital.service.answer(late)).kind == "stale"


def test_what_was_answered_in_time_is_sent_again_however_late(hospital, monkeypatch):
    """It says nothing new: without this a coordinator whose answer was lost for long would pay twice."""
    asked = hospital.seal(pack(hospital.request()))
    first = hospital.service.answer(asked)
    later = time.time() + hospital.service.config.policy.max_message_age + 60
    monkeypatch.setattr(sealing.time, "time", lambda: later)
    assert hospital.service.answer(asked) == first
    assert len(hospital.ledger.charges) == 1


def test_a_date_is_bound_to_the_message(parties):
    """Whoever holds a message back cannot give it another date: it is inside the ciphertext."""
    data = sent(parties)
    stamp = struct.pack(">Q", round(opened(parties, data).sent * 1000))
    assert stamp[2:] not in data


def test_an_answer_names_what_it_answers(hospital):
    first, second = (hospital.seal(encode(Frame("nonsense"))) for _ in range(2))
    site, own = hospital.service.identity.public, hospital.coordinator
    ids = [
        unseal(one, hospital.service.identity, sender=own.public, purpose=FROM_COORDINATOR).id
        for one in (first, second)
    ]
    answers = [
        unseal(hospital.service.answer(one), own, sender=site, purpose=FROM_SITE) for one in (first, second)
    ]
    assert [one.id for one in answers] == ids
    assert replace(answers[0], id=ids[1], sent=0).digest == replace(answers[1], sent=1).digest
