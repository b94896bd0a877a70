"""Real messages, changed at random by the thousand, at both ends: no traceback, little memory, the study ends well."""

import json
import logging
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from tests.deploy.hospital import SITES
from tests.deploy.test_transport import COST, REQUEST, make  # noqa: F401
from tests.federation.conftest import federate  # noqa: F401
from tests.federation.toy import DIMENSION, make_agreement

from fedveil import __version__
from fedveil.deploy.protocol import stated
from fedveil.errors import FederationError, FedveilError
from fedveil.federation import Coordinator, Declined, InProcess, Reply, Request
from fedveil.federation.messages import SecureReply, SecureRequest
from fedveil.federation.wire import Frame, decode, encode, pack, unpack

MEMORY = 16 * 2**20
"""Nothing that a message of up to half a megabyte says makes either end allocate more."""
PREFIX = struct.Struct("<4sHI")
SHAPES = (
    [0, 2**31], [2**31, 0], [0, 2**31, 2**31, 2**31], [-1], [2**63], [2**31 - 1], [2**16] * 4, [1.5], ["3"], [True],
    [[3]], [None], [10**400], {"0": 3}, "3", None, [1] * 9, [0] * 4,
)  # fmt: skip
VALUES = (
    None, True, -1, 0, 2**31, 2**63, 2**64, 10**400, -(10**400), 1e308, 0.5, "", "x" * 100_000, "[bold red]ready[/]",
    "\x1b[2J\x1b[31m", "a\nERROR forged", "\u202egnirts", "../../x", [], {}, [[]] * 50, {"a": {"b": {}}},
    "training", "ready", "invalid", "over-budget", [1, 2], ["north"] * 5000, "\x00", "ab" * 32,
)  # fmt: skip


def header_changed(generator: np.random.Generator, data: bytes) -> bytes:
    """The frame with one value, key or part of its header replaced, everything else in order."""
    magic, version, length = PREFIX.unpack_from(data)
    header = json.loads(data[PREFIX.size : PREFIX.size + length])
    places = []

    def walk(value: object) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in list(items):
            places.append((value, key))
            if isinstance(inner, dict | list):
                walk(inner)

    walk(header)
    where, key = places[generator.integers(len(places))]
    choices = SHAPES if key == "shape" else VALUES
    match generator.integers(4):
        case 0 if isinstance(where, dict):
            del where[key]
        case 1 if isinstance(where, dict):
            where[f"{key}\x1b"] = where[key]
        case _:
            where[key] = choices[generator.integers(len(choices))]
    text = json.dumps(header).encode()
    return PREFIX.pack(magic, version, len(text)) + text + data[PREFIX.size + length :]


def bytes_changed(generator: np.random.Generator, data: bytes) -> bytes:
    """The bytes flipped, cut, doubled, or filled at a random place."""
    place, size = int(generator.integers(len(data))), int(generator.integers(1, 40))
    some = (
        bytes([data[place] ^ (1 << int(generator.integers(8)))]),
        b"",
        data[place : place + size] * 2,
        generator.bytes(size),
        b"\xff" * 8,
    )[generator.integers(5)]
    return data[:place] + some + data[place + int(generator.integers(1, 9)) :]


def nested(generator: np.random.Generator, data: bytes) -> bytes:
    """A header that nests deeper than a parser's stack, or as long as a header may be."""
    text = (b"[" * 100_000, b"{" * 3, b'{"kind":"' + b"x" * 2**19 + b'"', b"9" * 5000)[generator.integers(4)]
    return PREFIX.pack(*PREFIX.unpack_from(data)[:2], len(text)) + text


def changed(generator: np.random.Generator, data: bytes) -> bytes:
    """A real frame changed in one way or another, or in two."""
    for _ in range(1 + generator.integers(2)):
        try:
            how = (header_changed, header_changed, header_changed, bytes_changed, bytes_changed, nested)
            data = how[generator.integers(len(how))](generator, data)
        except (ValueError, RecursionError, struct.error):  # what is no frame any more is changed as bytes
            data = bytes_changed(generator, data) if data else b"\0"
        data = data or b"\0"
    return data


@pytest.fixture
def within():
    """Calls a function; fails where it allocates more than `MEMORY` at once."""
    tracemalloc.start()

    def call(function, *words):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = function(*words)
        assert tracemalloc.get_traced_memory()[1] - before < MEMORY
        return result

    yield call
    tracemalloc.stop()


def real_messages(hospital) -> list[bytes]:
    offer = {**hospital.offer.to_dict(), "nonce": "n"}
    greeting = {"study": hospital.agreement.digest, "nonce": "n", "receipt": None, **stated()}
    receipt = dict.fromkeys(("study", "answer", "hash"), "ab" * 32)
    receipt |= {"site": "north", "release": "training", "round": 1, "attempt": 1, "seq": 2, "cost": COST}
    model = {"parameters": np.ones(10), "frequencies": np.full(2, 0.5)}
    return [
        pack(hospital.request(1, 1)),
        pack(hospital.request(2, 2)),
        pack(SecureRequest(study=hospital.agreement.digest, body=b'{"study": "x"}')),
        encode(Frame("hello", greeting)),
        encode(Frame("hello", greeting | {"receipt": receipt})),
        encode(Frame("offer", offer)),
        encode(Frame("model", {"study": hospital.agreement.digest, "nonce": "n"}, model)),
    ]


def test_a_hospital_survives_what_a_coordinator_may_send(hospital, within, caplog):
    """Every answer is sealed and of a closed kind, every line in the log is one line, and rounds go on."""
    generator, messages = np.random.default_rng(20261127), real_messages(hospital)
    hospital.hello()
    hospital.round(1, 1)
    caplog.clear()
    for number in range(2000):
        body = changed(generator, messages[number % len(messages)])
        answer = within(hospital.ask, body)
        assert answer.kind in ("refused", "answer", "hello", "offered", "kept")
        assert set(answer.head) <= {
            "site",
            "receipt",
            "signature",
            "study",
            "status",
            "nonce",
            "version",
            "protocols",
        }
    assert all(record.exc_info is None for record in caplog.records)
    forged = [record.getMessage() for record in caplog.records if not record.getMessage().isprintable()]
    assert not forged
    assert isinstance(hospital.round(2, 2**40), Reply | Declined)
    assert hospital.ledger.spent() <= 20.0


def test_changed_frames_are_messages_of_their_closed_types_or_refused(hospital, within):
    """Whatever is unpacked could be packed, and so holds only what its types allow."""
    generator, whole = np.random.default_rng(2), 0
    texts: list[str] = []
    ids = {"site": "north", "study": "ab" * 32}
    messages = [
        pack(hospital.request()),
        pack(SecureRequest(study="ab" * 32, body=b"body")),
        pack(SecureReply(**ids, keys=b"keys")),
        pack(Reply(**ids, release="training", round=1, attempt=1, vector=np.ones(4))),
        pack(Declined(**ids, release="training", round=1, attempt=1, code="failed")),
    ]
    kinds = Request | SecureRequest | SecureReply | Reply | Declined
    for number in range(4000):
        data = changed(generator, messages[number % 5])
        try:
            message = within(unpack, data, kinds)
        except FedveilError as error:
            texts.append(str(error))
            continue
        assert unpack(pack(message), kinds).study == message.study
        whole += 1
    assert 20 < whole < 2000
    assert all(text.isprintable() and len(text) < 600 for text in texts)


def test_sealed_bytes_changed_at_random_are_refused(hospital):
    generator = np.random.default_rng(1)
    sealed = hospital.seal(pack(hospital.request()))
    for _ in range(1000):
        data = bytes_changed(generator, sealed)
        if data != sealed:
            assert hospital.open(hospital.service.answer(data)).kind == "refused"
    assert not hospital.ledger.charges


@pytest.fixture
def answers(make):  # noqa: F811
    """What a hospital really answers, by the question: bodies before they are sealed."""
    raw = decode(make.opened_by_coordinator("west", make.honest("west")(asked(make)))).blobs["answer"]
    head = make.opened_by_coordinator("west", make.honest("west")(asked(make)))
    reply = unpack(raw, Reply)
    declined = Declined(
        site="west", study=reply.study, release="training", round=1, attempt=1, code="refused"
    )
    states = {"site": "west", "study": "ab" * 32, "status": "ready", "nonce": "n", **stated()}
    return {
        "round": [
            head,
            encode(Frame("answer", {"site": "west", "receipt": None}, {}, {"answer": pack(declined)})),
            encode(Frame("refused", {"site": "west"})),
            encode(Frame("stale", {"site": "west", "clock": 10})),
        ],
        "state": [encode(Frame("hello", states)), encode(Frame("stale", {"site": "west", "clock": 10}))],
    }


def asked(make):  # noqa: F811
    return make.to("west", pack(REQUEST))


def test_a_coordinator_survives_what_a_hospital_may_answer(make, answers, within, caplog):  # noqa: F811
    """A changed answer is taken as it is, or its sender is named; the others' answers are there."""
    generator, found = np.random.default_rng(7), {"Reply": 0, "Declined": 0}
    for number in range(250):
        body = changed(generator, answers["round"][number % 4])
        town = make.build(
            north=make.honest("north", seq=number + 1),
            south=make.honest("south", seq=number + 1),
            west=lambda sealed, body=body: make.sealed_by("west", body, make.opened("west", sealed).id),
        )
        if decode_or_none(body) == "stale":
            continue  # asked again until patience ends
        result = within(town.transport.exchange, dict.fromkeys(SITES, REQUEST))
        assert isinstance(result["north"], Reply)
        assert isinstance(result["south"], Reply)
        found[type(result["west"]).__name__] += 1
    assert found["Declined"] > 200
    check_log(caplog)


def test_statuses_of_every_kind_become_one_of_few_words(make, answers, within, caplog):  # noqa: F811
    generator, seen = np.random.default_rng(8), set()
    for number in range(300):
        body = changed(generator, answers["state"][number % 2])
        if decode_or_none(body) == "stale":
            continue
        town = make.build(
            north=None,
            south=None,
            west=lambda sealed, body=body: make.sealed_by("west", body, make.opened("west", sealed).id),
        )
        seen.add(within(town.transport.greet, ("west",), "ab" * 32, {})["west"])
    words = {
        "ready",
        "refused",
        "invalid",
        "unknown",
        f"on fedveil {__version__}",
        "on fedveil of an unreadable version",
    }
    assert seen - words <= {f"on fedveil {one}" for one in VALUES if isinstance(one, str)}
    assert {"ready", "invalid"} <= seen
    check_log(caplog)


def decode_or_none(body: bytes) -> str | None:
    try:
        return decode(body).kind
    except FederationError:
        return None


def check_log(caplog) -> None:
    assert all(record.exc_info is None for record in caplog.records)
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert all(len(record.getMessage()) < 2000 for record in caplog.records)


class Wire(InProcess):
    """Sites in process behind real frames; what one of them sends is changed at random with some probability."""

    def __init__(self, federation, generator, bad, share):
        super().__init__(list(federation.sites.values()))
        self.federation, self.generator, self.bad, self.share = federation, generator, bad, share

    @property
    def signing_keys(self):
        return dict(self.federation.sites[self.bad]._identity.pinned)

    def exchange(self, requests):
        return {site: self.one(site, request) for site, request in requests.items()}

    def one(self, site, request):
        message = unpack(pack(request), Request | SecureRequest)
        data = pack(self._sites[site].handle(message))
        if site == self.bad and self.generator.random() < self.share:
            data = self.spoilt(data)
        try:
            return unpack(data, Reply | SecureReply | Declined)
        except FedveilError:  # as the transport between hospitals does
            ids = {name: getattr(request, name, 0) for name in ("round", "attempt")}
            release = getattr(request, "release", "secure-aggregation")
            return Declined(site=site, study=request.study, release=release, code="invalid", **ids)

    def spoilt(self, data):
        inner = decode(data)
        if "keys" in inner.blobs and self.generator.random() < 0.7:
            keys = bytes_changed(self.generator, inner.blobs["keys"] or b"\0")
            return encode(replace(inner, blobs={"keys": keys}))
        return changed(self.generator, data)


@pytest.mark.parametrize("trust", ["site", "secure-aggregation"])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_study_with_a_hospital_that_sends_rubbish_is_finished_by_the_others(
    federate,  # noqa: F811
    trust,
    share,
    monkeypatch,
):
    monkeypatch.setattr("fedveil.federation.secure_rounds.SESSION_ROUNDS", 4)
    logging.getLogger("fedveil").setLevel(logging.CRITICAL)
    agreement = make_agreement(trust, rounds=1500)
    federation = federate(agreement, epsilon=1e6)
    generator, release, zero = np.random.default_rng(11), agreement.release("training"), np.zeros(DIMENSION)
    left_out, studies = 0, 80 if trust == "site" else 25
    attempt = 0
    for number in range(studies):
        coordinator = Coordinator(
            agreement, Wire(federation, generator, f"site-{1 + number % 5}", share), attempt=attempt
        )
        for round_number in (1, 2):
            collected = coordinator.collect(release, round_number, zero)
            assert len(collected.survivors) >= 4
            assert np.isfinite(collected.total).all()
        assert set(coordinator.left_out) <= {f"site-{1 + number % 5}"}
        left_out += bool(coordinator.left_out)
        attempt = coordinator.attempt + 8
    assert left_out > studies * share / 2
    logging.getLogger("fedveil").setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    "shape", [shape for shape in SHAPES if shape != [0] * 4], ids=str
)  # that one is an empty array
def test_a_shape_is_refused_before_anything_is_made_of_it(shape, within):
    header = {
        "kind": "reply",
        "head": {},
        "parts": [{"name": "vector", "dtype": "<f8", "shape": shape}],
    }
    text = json.dumps(header).encode()
    data = PREFIX.pack(b"FVWR", 2, len(text)) + text + bytes(24)
    with pytest.raises(FederationError, match=r"shape|JSON|cut short"):
        within(decode, data)


def test_an_array_where_a_word_belongs_is_refused():
    """`in` of a closed list asks an array for its truth, which has none."""
    ids = {"site": "west", "study": "ab" * 32, "release": "training", "round": 1, "attempt": 1}
    data = encode(Frame("declined", ids, {"code": np.ones(3)}))
    with pytest.raises(FederationError, match=r"declined\.code is a ndarray"):
        unpack(data, Declined)
