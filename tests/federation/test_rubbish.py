"""What one hospital sends, whatever it is, does not end a study that has enough others: it is left out, and named."""

import itertools
import os
from dataclasses import replace

import numpy as np
import pytest
from tests.federation.toy import DIMENSION, make_agreement

from fedveil.errors import FederationError
from fedveil.federation import Coordinator, Declined, InProcess, Request
from fedveil.federation.messages import SecureReply
from fedveil.federation.secure_aggregation import Announcement, Ready, Recovery, SharesSent, suspects
from fedveil.federation.secure_aggregation.keys import sign
from fedveil.federation.secure_aggregation.messages import kind_of

ZERO = np.zeros(DIMENSION)
BAD = "site-2"


class Hostile(InProcess):
    """A transport to sites of which one answers what it likes, in the steps of secure aggregation that it likes.

    Args:
        change: from an honest answer (or its body) to what is sent; None sends nothing.
        kind: the protocol message whose body is changed; None changes whole answers to rounds.
    """

    def __init__(self, federation, change, kind=None, bad=BAD):
        super().__init__(list(federation.sites.values()))
        self.federation, self.change, self.kind, self.bad = federation, change, kind, bad

    @property
    def signing_keys(self):
        return dict(self.federation.sites[self.bad]._identity.pinned)

    def exchange(self, requests):
        answers = dict(super().exchange(requests))
        answer = answers.get(self.bad)
        if isinstance(answer, SecureReply) and self.kind is not None:
            if kind_of(answer.keys) == self.kind:
                answers[self.bad] = replace(answer, keys=self.change(answer.keys))
        elif answer is not None and self.kind is None and isinstance(requests[self.bad], Request):
            answers[self.bad] = self.change(answer)
        return answers


def study(federate, trust, change, kind=None, sites=5, rounds=6, **changes):
    agreement = make_agreement(trust, sites=sites, rounds=rounds + 2, **changes)
    federation = federate(agreement)
    return federation, Coordinator(agreement, Hostile(federation, change, kind))


def finish(coordinator, rounds=4):
    """Run rounds; the sums are near those of the survivors."""
    release = coordinator.agreement.release("training")
    return [coordinator.collect(release, number, ZERO) for number in range(1, rounds + 1)]


def near(federation, collected):
    exact = sum(federation.learners[name].contribution(ZERO, clip_norm=1.0) for name in collected.survivors)
    return (
        np.linalg.norm(collected.total - exact)
        < 60 * federation.agreement.release("training").mechanism.noise_std
    )


WRONG = {
    "NaN": lambda reply: replace(reply, vector=reply.vector * np.nan),
    "infinite": lambda reply: replace(reply, vector=np.full(DIMENSION, np.inf)),
    "huge": lambda reply: replace(reply, vector=np.full(DIMENSION, 1e300)),
    "long": lambda reply: replace(reply, vector=np.zeros(DIMENSION + 1)),
    "empty": lambda reply: replace(reply, vector=np.zeros(0)),
    "matrix": lambda reply: replace(reply, vector=np.zeros((DIMENSION, 1))),
    "integers": lambda reply: replace(reply, vector=np.zeros(DIMENSION, dtype=np.uint32)),
    "old": lambda reply: replace(reply, attempt=reply.attempt - 1),
    "other name": lambda reply: replace(reply, site="site-1"),
    "other study": lambda reply: replace(reply, study="0" * 64),
    "other kind": lambda reply: SecureReply(site=reply.site, study=reply.study, keys=b"x" * 9),
}


@pytest.mark.parametrize("trust", ["site", "server"])
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_wrong_answer_leaves_its_sender_out_and_the_study_goes_on(federate, trust, change, caplog):
    federation, coordinator = study(federate, trust, change)
    rounds = finish(coordinator)
    assert [(one.site, one.reason) for one in rounds[0].dropped] == [(BAD, "invalid")]
    assert all(near(federation, one) and BAD not in one.survivors for one in rounds)
    assert not any(one.dropped for one in rounds[1:]), "it is not asked again"
    assert set(coordinator.left_out) == {BAD}
    assert f"{BAD} is left out for the rest of this run" in caplog.text
    assert coordinator.charged == {"training": 4}


RUBBISH = {
    "nothing": lambda _: b"",
    "noise": lambda body: np.random.default_rng(len(body)).bytes(len(body)),
    "cut": lambda body: body[:-1],
    "long": lambda body: body + body,
    "flipped": lambda body: body[:-9] + bytes([body[-9] ^ 1]) + body[-8:],
    "giant lengths": lambda body: b"\xff" * len(body),
    "another name": lambda body: body.replace(BAD.encode(), b"site-1"),
}
KINDS = (Announcement.KIND, SharesSent.KIND, Ready.KIND, Recovery.KIND)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_at_any_step_of_secure_aggregation_does_not_end_the_study(federate, kind, change, caplog):
    federation, coordinator = study(federate, "secure-aggregation", change, kind)
    rounds = finish(coordinator)
    assert all(near(federation, one) for one in rounds)
    assert set(coordinator.left_out) == {BAD}
    assert all(BAD not in one.survivors for one in rounds[1:])
    assert f"{BAD} is left out for the rest of this run" in caplog.text
    assert coordinator.charged["training"] <= 5


def test_masked_words_of_a_wrong_shape_leave_their_sender_out(federate):
    federation, coordinator = study(
        federate, "secure-aggregation", lambda reply: replace(reply, vector=reply.vector[:-1])
    )
    rounds = finish(coordinator)
    assert all(near(federation, one) and BAD not in one.survivors for one in rounds)
    assert set(coordinator.left_out) == {BAD}


@pytest.mark.parametrize("weak", [True, False])
def test_a_key_of_small_order_or_a_foreign_signature_is_seen_before_the_others_refuse_it(federate, weak):
    """They would all decline, and seem to be at fault."""

    def change(body):
        one = Announcement.from_bytes(body)
        if not weak:
            return replace(one, signature=os.urandom(64)).to_bytes()
        keys, bad = (bytes(32), *one.round_keys[1:]), federation.sites[BAD]
        session = bad._secure[federation.agreement.digest].opened()._session
        statement = Announcement.statement(session.digest, one.site, one.channel_key, keys)
        signature = sign(bad._identity.private, *statement)
        return replace(one, round_keys=keys, signature=signature).to_bytes()

    federation, coordinator = study(federate, "secure-aggregation", change, Announcement.KIND)
    assert all(near(federation, one) for one in finish(coordinator))
    assert set(coordinator.left_out) == {BAD}


def boxes(names, change):
    """Changes some of the boxes of shares that are sent."""

    def changed(body):
        one = SharesSent.from_bytes(body)
        some = {name: change(box) if name in names else box for name, box in one.boxes.items()}
        return replace(one, boxes={name: box for name, box in some.items() if box is not None}).to_bytes()

    return changed


@pytest.mark.parametrize("names", [("site-4",), ("site-1", "site-3", "site-4", "site-5")])
@pytest.mark.parametrize("change", [lambda box: os.urandom(len(box)), lambda box: box[:-1], lambda _: None])
def test_boxes_that_cannot_be_read_leave_their_sender_out_not_their_readers(federate, names, change):
    federation, coordinator = study(federate, "secure-aggregation", boxes(names, change), SharesSent.KIND)
    rounds = finish(coordinator)
    assert all(near(federation, one) and len(one.survivors) == 4 for one in rounds)
    assert set(coordinator.left_out) == {BAD}


@pytest.mark.parametrize("victims", [1, 2, 4])
def test_a_hospital_that_complains_of_others_without_cause_is_the_one_that_is_out(federate, victims):
    """It can keep one other out until it complains of a second, or as long as it stays with one."""
    victim = itertools.cycle(f"site-{number}" for number in (1, 3, 4, 5)[:victims])

    def change(body):
        return replace(Ready.from_bytes(body), unreadable=(next(victim),)).to_bytes()

    federation, coordinator = study(federate, "secure-aggregation", change, Ready.KIND)
    rounds = finish(coordinator)
    assert all(near(federation, one) for one in rounds)
    assert set(coordinator.left_out) == {BAD}


def test_a_hospital_that_complains_of_sites_outside_its_session_is_out_at_once(federate):
    change = lambda body: replace(Ready.from_bytes(body), unreadable=("\x1b[2J",)).to_bytes()  # noqa: E731
    federation, coordinator = study(federate, "secure-aggregation", change, Ready.KIND)
    assert all(near(federation, one) for one in finish(coordinator))
    assert set(coordinator.left_out) == {BAD}


def pads(change):
    def changed(body):
        one = Recovery.from_bytes(body)
        return replace(one, pads={name: change(pad) for name, pad in one.pads.items()}).to_bytes()

    return changed


@pytest.mark.parametrize("place", [0, 40])
def test_wrong_pads_of_one_hospital_keep_no_lock_shut(federate, place):
    """Of five, four are needed: whatever one reveals, the rest open every lock. Wrong check bytes are seen."""
    flip = lambda pad: pad[:place] + bytes([pad[place] ^ 1]) + pad[place + 1 :]  # noqa: E731
    federation, coordinator = study(federate, "secure-aggregation", pads(flip), Recovery.KIND)
    rounds = finish(coordinator)
    assert all(near(federation, one) for one in rounds)
    assert coordinator.charged == {"training": 4}, "no round was repeated"
    assert set(coordinator.left_out) == ({BAD} if place == 40 else set())


def test_with_too_few_others_the_study_ends_with_the_names(federate):
    agreement = make_agreement("site", sites=3, min_sites=3)
    federation = federate(agreement)
    coordinator = Coordinator(agreement, Hostile(federation, WRONG["NaN"]))
    with pytest.raises(FederationError, match=r"site-2 \(invalid\)"):
        coordinator.collect(agreement.release("training"), 1, ZERO)


def test_what_a_hospital_says_of_itself_is_never_taken_for_another(federate):
    """An answer in another's name leaves out its sender, not whom it names."""
    forged = lambda reply: Declined(  # noqa: E731
        site="site-1", study=reply.study, release="training", round=1, attempt=1, code="over-budget"
    )
    _, coordinator = study(federate, "site", forged)
    rounds = finish(coordinator)
    assert all("site-1" in one.survivors for one in rounds)
    assert set(coordinator.left_out) == {BAD}


@pytest.mark.parametrize(
    ("disputes", "out"),
    [
        ([], []),
        ([("a", "b")], ["b"]),
        ([("a", "b"), ("b", "a")], ["a"]),
        ([("a", "b"), ("a", "c")], ["a"]),
        ([("a", "x"), ("b", "x"), ("c", "x")], ["x"]),
        ([("x", "a"), ("x", "b"), ("y", "a"), ("y", "c"), ("x", "c")], ["x", "y"]),
        ([("a", "x"), ("b", "x"), ("c", "x"), ("a", "y"), ("b", "y")], ["x", "y"]),
    ],
)
def test_who_is_left_out_of_a_dispute(disputes, out):
    assert sorted(suspects(disputes)) == out


def test_no_dispute_is_left_among_those_who_go_on():
    generator = np.random.default_rng(3)
    for _ in range(200):
        pairs = {tuple(map(int, generator.choice(9, 2, replace=False))) for _ in range(12)}
        named = {(str(one), str(other)) for one, other in pairs}
        out = suspects(named)
        assert all(one in out or other in out for one, other in named)
        assert out == suspects(sorted(named)), "it does not depend on the order"
