"""The site service against hostile and broken callers: refused, logged in one line, nothing charged, still up."""

import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.deploy.hospital import record_approval, record_withdrawal

from fedveil.deploy.identity import Identity
from fedveil.deploy.protocol import stated
from fedveil.deploy.sealing import FROM_SITE
from fedveil.errors import Refused
from fedveil.federation import Declined, Reply
from fedveil.federation.wire import Frame, encode, pack, unpack


def refused(hospital, answer):
    """Nothing was charged, and the service answers the next proper request."""
    assert not hospital.ledger.charges
    if isinstance(answer, Frame):
        assert answer.kind == "refused"
        assert set(answer.head) == {"site"}
    else:
        assert isinstance(answer, Declined)
    assert isinstance(hospital.round(1, 99), Reply)
    return True


def test_an_approved_round_is_answered_charged_and_receipted(hospital):
    frame = hospital.ask(pack(hospital.request()))
    receipt = frame.head["receipt"]
    assert len(hospital.ledger.charges) == 1
    assert (receipt["seq"], receipt["hash"]) == hospital.ledger.head
    assert receipt["cost"] == hospital.agreement.release("training").mechanism.with_steps(1).to_dict()


def test_reply_fields_are_charged_or_public(hospital):
    frame = hospital.ask(pack(hospital.request()))
    assert set(frame.head) == {"site", "receipt", "signature"}
    assert set(frame.blobs) == {"answer"}
    assert not frame.arrays
    named = {"site", "study", "release", "round", "attempt", "answer", "cost", "seq", "hash"}
    assert set(frame.head["receipt"]) == named


def test_a_request_that_is_not_approved_is_refused(make_hospital, caplog):
    hospital = make_hospital(approve=False)
    with caplog.at_level(logging.WARNING):
        answer = hospital.round()
    assert isinstance(answer, Declined)
    assert answer.code == "refused"
    assert not hospital.ledger.charges
    assert "not approved" in caplog.text
    assert sum(one.getMessage().startswith("refused") for one in caplog.records) == 1


def test_a_withdrawn_approval_counts_at_once(hospital):
    assert isinstance(hospital.round(1, 1), Reply)
    record_withdrawal(hospital.service, hospital.agreement.digest)
    assert isinstance(hospital.round(2, 2), Declined)
    assert len(hospital.ledger.charges) == 1


def test_a_study_changed_after_approval_is_unknown(hospital):
    changed = hospital.offer.study.with_changes({"privacy": {"epsilon": 3.0}})
    offer = replace(hospital.offer, study=changed)
    hospital.ask(encode(Frame("offer", {**offer.to_dict(), "nonce": "n"})))
    answer = hospital.round(study=offer.agreement().digest)
    assert refused(hospital, answer)


def test_an_edited_offer_file_is_noticed(hospital, caplog):
    path = hospital.folder / "studies" / f"{hospital.agreement.digest}.json"
    path.write_text(path.read_text().replace("epsilon = 2.0", "epsilon = 9.0"))
    assert isinstance(hospital.round(), Declined)
    assert not hospital.ledger.charges
    assert "approved by its digest" in caplog.text


def test_a_message_of_another_signer_is_refused(hospital, tmp_path, caplog):
    stranger = Identity.create(tmp_path / "stranger.key")
    assert refused(hospital, hospital.ask(pack(hospital.request()), signer=stranger))
    assert "only" in caplog.text


def test_an_altered_message_is_refused(hospital):
    sealed = bytearray(hospital.seal(pack(hospital.request())))
    for place in (0, 10, 50, 120, len(sealed) - 1):
        changed = bytes(sealed[:place]) + bytes([sealed[place] ^ 1]) + bytes(sealed[place + 1 :])
        assert hospital.open(hospital.service.answer(changed)).kind == "refused"
    assert not hospital.ledger.charges


def test_an_answer_sent_back_as_a_request_is_refused(hospital):
    echo = hospital.service.answer(hospital.seal(pack(hospital.request())))
    spent = len(hospital.ledger.charges)
    assert hospital.open(hospital.service.answer(echo)).kind == "refused"
    own = hospital.seal(pack(hospital.request(2, 2)), purpose=FROM_SITE)
    assert hospital.open(hospital.service.answer(own)).kind == "refused"
    assert len(hospital.ledger.charges) == spent


@given(data=st.binary(max_size=400))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_is_refused(hospital, data):
    assert hospital.open(hospital.service.answer(data)).kind == "refused"
    assert hospital.ask(data).kind == "refused"
    assert not hospital.ledger.charges


def test_garbage_leaves_the_service_up(hospital):
    assert hospital.ask(b"\0" * 100).kind == "refused"
    assert isinstance(hospital.round(), Reply)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_refused(hospital, bad):
    size = hospital.agreement.release("training").parameters
    assert refused(hospital, hospital.round(parameters=np.full(size, bad)))


def test_giant_parameters_are_refused(make_hospital):
    hospital = make_hospital(settings={"max_dimension": 1000})
    assert refused(hospital, hospital.ask(pack(hospital.request(parameters=np.zeros(2**20)))))


@pytest.mark.parametrize("study", ["", "../../../etc/passwd", "0" * 63, "A" * 64, "0" * 64 + "/.."])
def test_a_study_that_is_no_digest_never_becomes_a_path(hospital, study):
    assert refused(hospital, hospital.ask(pack(hospital.request(study=study))))


def test_a_study_beyond_the_budget_is_refused(make_hospital):
    hospital = make_hospital(epsilon=30.0)
    answer = hospital.round()
    assert isinstance(answer, Declined)
    assert not hospital.ledger.charges


@pytest.mark.parametrize(
    ("settings", "study"),
    [
        ({"min_sites": 3}, {}),
        ({"trust": '["secure-aggregation"]'}, {}),
        ({"methods": '["one-shot"]'}, {}),
        ({"unit": '"site"'}, {}),
        ({"max_dimension": 10}, {}),
        ({}, {"trust": "none"}),
    ],
)
def test_policy_holds_even_for_an_approved_study(make_hospital, settings, study):
    hospital = make_hospital(settings=settings, **study)
    assert isinstance(hospital.round(), Declined)
    assert not hospital.ledger.charges


def test_policy_says_how_many_hospitals_a_guarantee_may_count_on(make_hospital):
    hospital = make_hospital(settings={"max_honest": 1}, trust="secure-aggregation", min_sites=3)
    with pytest.raises(Refused, match="assumes 2 honest hospitals among 3"):
        hospital.service.config.check(hospital.agreement)
    assert isinstance(hospital.round(), Declined)


def test_two_studies_at_once_share_one_ledger(make_hospital):
    """Rounds of both are answered in any order; what is spent on one is missing to the other."""
    hospital = make_hospital(rounds=2, epsilon=12.0)
    changed = hospital.offer.study.with_changes({"study": {"name": "other"}})
    other = replace(hospital.offer, study=changed)
    hospital.ask(encode(Frame("offer", {**other.to_dict(), "nonce": "n"})))
    digest = other.agreement().digest
    record_approval(hospital.service, digest)
    answers = [
        hospital.round(1, 1),
        hospital.round(1, 1, study=digest),
        hospital.round(2, 2),
        hospital.round(2, 2, study=digest),
    ]
    assert [type(answer) for answer in answers[:2]] == [Reply, Reply]
    assert {charge.study.split()[0] for charge in hospital.ledger.charges} == {"toy", "other"}
    more = [hospital.round(1 + attempt % 2, attempt, study=digest) for attempt in range(3, 9)]
    assert more[-1].code == "over-budget"
    assert hospital.ledger.spent() <= 20.0


def test_site_refuses_over_budget_request(make_hospital):
    hospital = make_hospital(rounds=2, epsilon=19.0)
    answers = [hospital.round(1 + attempt % 2, attempt) for attempt in range(1, 8)]
    assert isinstance(answers[0], Reply)
    assert isinstance(answers[-1], Declined)
    assert answers[-1].code == "over-budget"
    assert hospital.ledger.spent() <= 20.0


def test_the_same_request_gets_the_very_same_bytes(hospital):
    sealed = hospital.seal(pack(hospital.request()))
    first = hospital.service.answer(sealed)
    assert hospital.service.answer(sealed) == first
    hospital.restart()
    assert hospital.service.answer(sealed) == first
    assert len(hospital.ledger.charges) == 1


def test_noise_is_not_reproducible_by_asking_again(hospital):
    first = hospital.round(1, 1)
    moved = hospital.start()
    moved[-1] = 1.0
    other = hospital.round(1, 1, parameters=moved)
    assert isinstance(other, Declined)
    second = hospital.round(1, 2)
    assert len(hospital.ledger.charges) == 2
    assert not np.array_equal(first.vector, second.vector)


def test_old_rounds_cannot_be_replayed_after_a_restart(hospital):
    sealed = [hospital.seal(pack(hospital.request(number, number))) for number in (1, 2, 3, 4)]
    more = hospital.seal(pack(hospital.request(1, 5)))
    for message in [*sealed, more]:
        hospital.service.answer(message)
    hospital.restart()
    again = hospital.open(hospital.service.answer(sealed[0]))
    assert again.head["receipt"] is None
    assert len(hospital.ledger.charges) == 5


def test_a_ledger_that_went_back_is_refused(hospital, tmp_path, caplog):
    ledger = hospital.folder / "ledger.jsonl"
    old = tmp_path / "old"
    old.mkdir()
    hospital.round(1, 1)
    for file in (ledger, ledger.with_name("ledger.jsonl.head")):
        shutil.copy(file, old)
    receipt = hospital.ask(pack(hospital.request(2, 2))).head["receipt"]
    assert hospital.hello(receipt=receipt).kind == "hello"
    hospital.service.ledger.close()
    for file in old.iterdir():
        shutil.copy(file, hospital.folder)
    hospital.restart()
    assert hospital.hello(receipt=receipt).kind == "refused"
    assert "rolled back" in caplog.text


def test_a_greeting_tells_how_a_study_stands(make_hospital):
    hospital = make_hospital(approve=False)
    assert hospital.hello("abc").head == {
        "site": "north",
        "nonce": "abc",
        "study": hospital.agreement.digest,
        "status": "pending",
        **stated(),
    }
    record_approval(hospital.service, hospital.agreement.digest)
    assert hospital.hello().head["status"] in ("loading", "ready")
    assert isinstance(hospital.round(), Reply)
    assert hospital.hello().head["status"] == "ready"


def test_offers_do_not_pile_up(make_hospital, monkeypatch):
    hospital = make_hospital(approve=False)
    monkeypatch.setattr("fedveil.deploy.site.approvals._MAX_PENDING", 1)
    other = replace(hospital.offer, study=hospital.offer.study.with_changes({"study": {"name": "other"}}))
    assert hospital.ask(encode(Frame("offer", {**other.to_dict(), "nonce": "n"}))).kind == "refused"


def test_an_offer_without_this_hospital_is_refused(hospital):
    offer = replace(hospital.offer, sites=("a", "b", "c"))
    assert hospital.ask(encode(Frame("offer", {**offer.to_dict(), "nonce": "n"}))).kind == "refused"


def test_what_breaks_in_the_cohort_stays_there(hospital, caplog):
    (hospital.folder / "images.npz").unlink()
    frame = hospital.ask(pack(hospital.request()))
    assert "images.npz" not in str(frame)
    assert "images.npz" in caplog.text
    assert isinstance(unpack(frame.blobs["answer"], Reply), Reply)
    assert len(hospital.ledger.charges) == 1
