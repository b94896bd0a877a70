"""What others send is printed as text: one event, one line, no markup, nothing that steers a terminal."""

import io
import logging
import threading

import numpy as np
import pytest
from tests.deploy.test_transport import make  # noqa: F401

from fedveil import __version__
from fedveil.cli import deploy as verbs
from fedveil.cli.output import console
from fedveil.cli.output.console import OneLine, fail
from fedveil.cli.output.logs import log_to_stderr
from fedveil.deploy.coordinator.transport import _state
from fedveil.deploy.receipts import Receipt
from fedveil.errors import FederationError, FedveilError, Refused
from fedveil.federation.messages import Request
from fedveil.federation.wire import Frame, encode, pack

FORGED = "training\n09:10:23 fedveil.site INFO: nothing was charged\x1b[2J\r\u202e"


@pytest.fixture
def journal():
    """The log as `site serve` and `coordinate` write it, of this test's thread alone.

    A hospital loads its images in a thread, and that of an earlier test may still say that it is ready.
    """
    written, log, here = io.StringIO(), logging.getLogger("fedveil"), threading.get_ident()
    handler = logging.StreamHandler(written)
    handler.addFilter(lambda record: record.thread == here)
    handler.setFormatter(OneLine("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield written
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


def events(journal) -> list[str]:
    return journal.getvalue().splitlines()


@pytest.mark.parametrize("field", ["release", "participants", "study"])
def test_a_request_forges_no_line_in_a_hospitals_log(hospital, journal, field):
    """By its messages alone, and by whatever is logged of them."""
    value = ("north", FORGED, "west") if field == "participants" else FORGED
    answer = hospital.ask(pack(hospital.request(**{field: value})))
    assert answer.kind == "refused"
    assert len(events(journal)) == 1
    assert all(line.isprintable() for line in events(journal))
    direct = Request(
        study=hospital.agreement.digest,
        release=FORGED if field == "release" else "training",
        round=1,
        attempt=1,
        participants=("north", FORGED) if field == "participants" else ("north", "south"),
        parameters=np.zeros(3),
    )
    site = hospital.service._approved(hospital.agreement.digest).site
    before = len(events(journal))
    site.handle(direct)
    assert len(events(journal)) == before + 1
    assert all(line.isprintable() for line in events(journal))
    assert not hospital.ledger.charges


@pytest.mark.parametrize("version", [FORGED, "[bold red]x", 10**30, None, ["x"]])
def test_a_greetings_version_forges_no_line(hospital, journal, caplog, version):
    head = {
        "study": hospital.agreement.digest,
        "nonce": "n",
        "receipt": None,
        "version": version,
        "protocols": [7, 9],
    }
    hospital.ask(encode(Frame("hello", head)))
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert sum("upgrade the older one" in line for line in events(journal)) == 1


def test_a_log_event_is_one_line_whatever_it_holds(journal):
    logging.getLogger("fedveil.coordinator").warning("%s is given up: %s", "north", FORGED)
    assert len(events(journal)) == 1
    assert events(journal)[0].isprintable()


def test_the_programs_log_through_that_formatter(monkeypatch):
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        log_to_stderr()
        assert [type(handler.formatter) for handler in root.handlers] == [OneLine]
    finally:
        root.handlers[:] = before
        root.setLevel(level)


@pytest.mark.parametrize("kind", [FederationError, Refused, FedveilError])
def test_an_error_is_one_line_whatever_it_quotes(kind):
    assert str(kind(FORGED, FORGED, FORGED)).isprintable()


@pytest.mark.parametrize("text", ["[bold red]ready[/]", "[/]", "a[b", "\\[/x]"])
def test_an_error_is_printed_as_it_is_not_as_markup(text, monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(console.errors, "_file", written)
    fail(f"north says {text}")
    assert f"error: north says {text}" in written.getvalue()


STATES = [
    "[/]",
    "[bold]ready",
    FORGED,
    "x" * 10**6,
    "ready ",
    "Ready",
    "",
    None,
    1,
    True,
    ["ready"],
    {"ready": 1},
]


@pytest.mark.parametrize("status", STATES, ids=lambda one: str(one)[:20])
@pytest.mark.parametrize("kind", ["hello", "offered"])
def test_a_status_that_is_no_status_becomes_the_word_invalid(status, kind, caplog):
    """A status with markup ended the coordinator's program when it was printed."""
    frame = Frame(kind, {"site": "west", "study": "ab" * 32, "status": status, "version": __version__})
    assert _state("west", frame, "ab" * 32) == "invalid"
    assert all(
        record.getMessage().isprintable() and len(record.getMessage()) < 300 for record in caplog.records
    )
    verbs._say({"west": _state("west", frame, "ab" * 32)})


@pytest.mark.parametrize("version", ["[/]", FORGED, "9" * 100, None, 7])
def test_a_version_that_is_no_version_is_not_repeated(version):
    head = {"site": "west", "study": "ab" * 32, "status": "ready", "version": version, "protocols": [7, 9]}
    frame = Frame("hello", head)
    assert _state("west", frame, "ab" * 32) == "on fedveil of an unreadable version"


RECEIPT = {
    "site": "north",
    "study": "ab" * 32,
    "release": "training",
    "round": 1,
    "attempt": 1,
    "answer": "ab" * 32,
    "cost": None,
    "seq": 3,
    "hash": "ab" * 32,
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, FORGED) for name in ("site", "study", "release", "answer", "hash")),
        *(
            (name, value)
            for name in ("round", "attempt", "seq")
            for value in (-1, 2**63, True, 1.0, "1", None)
        ),
        ("site", "../north"),
        ("hash", "AB" * 32),
        *(("cost", value) for value in ({}, {"x": FORGED}, [], "x", {"noise_multiplier": 10**400}, 3)),
    ],
)
def test_a_receipt_holds_what_a_ledger_can_and_nothing_else(field, value):
    assert Receipt.from_dict(RECEIPT).seq == 3
    with pytest.raises(FederationError, match="is not a receipt"):
        Receipt.from_dict({**RECEIPT, field: value})


@pytest.mark.parametrize("clock", [10**400, -1, True, 1e300, "now", None, 2**62])
def test_a_clock_that_is_none_does_not_end_the_program(make, clock):  # noqa: F811
    """A whole number of 400 digits has no difference from a float."""
    body = encode(Frame("stale", {"site": "west", "clock": clock}))
    town = make.build(
        north=None,
        south=None,
        west=lambda sealed: make.sealed_by("west", body, make.opened("west", sealed).id),
    )
    assert town.transport._patience.answer < 5
    found = town.transport.deliver(("west",), "ab" * 32, {})
    assert found == ("west",)
