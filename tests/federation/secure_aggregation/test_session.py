"""What a session may look like."""

import dataclasses
import json

import pytest

from fedveil.errors import FederationError, InvalidValue
from fedveil.federation import default_min_honest
from fedveil.federation.secure_aggregation import Session
from fedveil.federation.secure_aggregation.graph import isolated


def names(count):
    return tuple(f"site-{number}" for number in range(count))


@pytest.mark.parametrize("count", range(3, 120))
def test_defaults_keep_every_promise_at_once(count):
    """Two lists of survivors cannot both open, a round that opens holds the honest noise, a third may drop out."""
    session = Session.of("study", names(count), rounds=1)
    assert 2 * session.threshold > count + session.colluding
    assert session.min_survivors - session.colluding >= session.min_honest
    assert session.min_survivors == session.threshold <= 2 * count / 3 + 1


def test_few_sites_form_a_complete_graph_and_many_a_sparse_one():
    assert Session.of("study", names(64), rounds=1).edge_probability == 1
    assert Session.of("study", names(100), rounds=1).edge_probability < 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sites": names(2)}, "of two, each would learn the other's"),
        ({"sites": ("a", "b", "a")}, "different sites"),
        ({"sites": names(1001)}, "3 to 1,000"),
        ({"rounds": 0}, "1 to 4096 rounds"),
        ({"rounds": 5000}, "1 to 4096 rounds"),
        ({"threshold": 5}, "must be above"),
        ({"threshold": 10}, "must be above"),
        ({"colluding": 0}, "count as colluding"),
        ({"colluding": 5}, "must be above"),
        ({"min_honest": 0}, "must be between 1 and 8"),
        ({"min_honest": 9}, "must be between 1 and 8"),
    ],
)
def test_sessions_that_could_not_keep_their_promise_are_refused(settings, message):
    with pytest.raises(InvalidValue, match=message):
        Session.of(**{"study": "study", "sites": names(9), "rounds": 3, **settings})


def test_a_graph_sparser_than_the_analysis_allows_is_refused():
    session = Session.of("study", names(100), rounds=1)
    with pytest.raises(InvalidValue, match="sites could be cut off"):
        dataclasses.replace(session, edge_probability=session.edge_probability - 0.01)


def test_more_honest_shares_need_more_survivors():
    assert Session.of("study", names(10), rounds=1, min_honest=8).min_survivors == 9
    assert Session.of("study", names(10), rounds=1, min_honest=3).min_survivors == 7


def test_a_session_survives_the_journey():
    session = Session.of("study", names(5), rounds=3)
    assert Session.from_bytes(session.to_bytes()) == session


@pytest.mark.parametrize(
    ("key", "value"), [("rounds", 1.5), ("rounds", True), ("sites", [1, 2, 3]), ("sites", None), ("extra", 1)]
)
def test_a_session_of_the_wrong_types_is_refused(key, value):
    fields = {**json.loads(Session.of("study", names(5), rounds=3).to_bytes()), key: value}
    with pytest.raises(FederationError, match="cannot be read"):
        Session.from_bytes(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"garbage"])
def test_garbage_is_refused(data):
    with pytest.raises(FederationError, match="cannot be read"):
        Session.from_bytes(data)


def test_every_setting_changes_the_digest():
    session = Session.of("study", names(9), rounds=3)
    changed = [
        {"study": "other"},
        {"sites": names(9)[::-1]},
        {"first_round": 2},
        {"rounds": 4},
        {"threshold": 8},
        {"colluding": 2},
        {"min_honest": 3},
    ]
    digests = {dataclasses.replace(session, **change).digest for change in changed}
    assert len(digests | {session.digest}) == len(changed) + 1


@pytest.mark.parametrize(
    ("sites", "threshold", "lost", "min_honest"),
    [
        (3, 3, 0, 2),
        (5, 4, 1, 3),
        (10, 7, 3, 6),
        (50, 34, 16, 33),
        (64, 43, 21, 42),
        (65, 44, 17, 43),
        (100, 67, 27, 66),
        (200, 134, 52, 133),
    ],
)
def test_a_studys_session_loses_as_many_sites_as_the_documentation_says(sites, threshold, lost, min_honest):
    """The table of docs/secure-aggregation.md: a round needs max(T, h + c + a) survivors."""
    session = Session.of("study", names(sites), rounds=1, min_honest=default_min_honest(sites))
    cut_off = isolated(sites) if session.sparse else 0
    assert (session.threshold, session.min_honest) == (threshold, min_honest)
    assert session.min_survivors == sites - lost == max(threshold, min_honest + session.colluding + cut_off)
    smaller = Session.of("study", names(sites), rounds=1, min_honest=threshold - session.colluding - cut_off)
    assert smaller.min_survivors == threshold
