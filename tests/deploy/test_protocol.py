"""Ends of different versions work together if they speak a common protocol, and only then."""

import pytest

from fedveil import __version__
from fedveil.deploy import protocol
from fedveil.deploy.coordinator.transport import _state
from fedveil.deploy.protocol import common, mismatch
from fedveil.federation.wire import Frame, encode


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        ((1, 1), None, 1),
        ((1, 1), [1, 1], 1),
        ((1, 1), [1, 5], 1),
        ((1, 3), [2, 5], 3),
        ((2, 3), [1, 2], 2),
        ((2, 3), None, None),
        ((2, 3), [1, 1], None),
        ((1, 1), [2, 5], None),
        *(
            ((1, 1), bad, None)
            for bad in ([], [1], [2, 1], [0, 1], ["1", "1"], [True, True], "1-1", {}, [1, 1.0])
        ),
        ((1, 1), [1, 10**400], None),
    ],
)
def test_the_newest_common_protocol_is_spoken(monkeypatch, ours, theirs, found):
    monkeypatch.setattr(protocol, "PROTOCOLS", ours)
    assert common(theirs) == found
    said = mismatch({"version": "9" * 1000, "protocols": theirs})
    assert (said is None) is (found is not None)
    assert said is None or len(said) < 200


def greeting(**head: object) -> Frame:
    return Frame("hello", {"site": "west", "study": "ab" * 32, "status": "ready", **head})


def test_a_hospital_of_another_version_takes_part():
    """Version 0.1.0 stated no protocols, and was refused by any other version."""
    assert _state("west", greeting(version="0.1.0"), "ab" * 32) == "ready"
    assert _state("west", greeting(version="9.9", protocols=[1, 4]), "ab" * 32) == "ready"
    assert _state("west", greeting(version="9.9", protocols=[2, 4]), "ab" * 32) == "on fedveil 9.9"


def test_a_hospital_states_what_it_speaks(hospital):
    head = {"study": hospital.agreement.digest, "nonce": "n", "receipt": None}
    answer = hospital.ask(encode(Frame("hello", head)))
    assert (answer.head["version"], answer.head["protocols"]) == (__version__, list(protocol.PROTOCOLS))
