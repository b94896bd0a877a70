"""What people decide while the service waits or reads images is in force before anything is computed."""

import threading
from collections.abc import Callable

import pytest
from tests.deploy.hospital import OWN_MODELS, Hospital, record_approval, record_withdrawal
from tests.deploy.test_forgotten import SAID, patients
from tests.deploy.test_models import kept, model_for, send
from typer.testing import CliRunner

from fedveil.cli.main import app
from fedveil.federation import Declined, Reply
from fedveil.federation.messages import SecureRequest
from fedveil.federation.wire import pack


class Waiting:
    """The service's lock, which another study holds until a person has decided.

    Args:
        lock: the service's own.
        decide: what happens before the lock is obtained for the ``turn``-th time.
    """

    def __init__(self, lock: object, turn: int, decide: Callable[[], object]) -> None:
        self._lock, self._left, self._decide = lock, turn, decide

    def __enter__(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._decide()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def decided(self) -> bool:
        return self._left <= 0


def while_opening(hospital: Hospital, decide: Callable[[], object]) -> None:
    """Have a person decide while the service reads the images of its study for the first time."""
    real = hospital.service._cohorts.open

    def opening(*args: object) -> object:
        opened = real(*args)
        hospital.service._cohorts.open = real
        thread = threading.Thread(target=decide)
        thread.start()
        thread.join()
        return opened

    hospital.service._cohorts = Slow(hospital.service._cohorts, opening)


class Slow:
    """The hospital's images, whose opening is another function; Cohorts has slots."""

    def __init__(self, real: object, opening: Callable[..., object]) -> None:
        self._real, self.open = real, opening

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_a_request_that_waits_is_not_answered_after_a_withdrawal(hospital, turn):
    assert isinstance(hospital.round(1, 1), Reply)
    charges = hospital.ledger.charges
    service, digest = hospital.service, hospital.agreement.digest
    service._busy = Waiting(service._busy, turn, lambda: record_withdrawal(service, digest))
    answer = hospital.round(2, 2)
    if service._busy.decided:
        assert isinstance(answer, Declined)
        assert hospital.ledger.charges == charges
    else:
        assert turn > 1
        assert isinstance(answer, Reply), "nothing was withdrawn: nobody waits so often"


def test_a_study_that_is_withdrawn_while_it_is_opened_is_not_charged(hospital):
    service, digest = hospital.service, hospital.agreement.digest
    while_opening(hospital, lambda: record_withdrawal(service, digest))
    assert isinstance(hospital.round(1, 1), Declined)
    assert not hospital.ledger.charges
    assert not service._sites, "nothing of it stays in memory"
    record_approval(service, digest)
    assert isinstance(hospital.round(1, 2), Reply)


def test_a_masked_study_that_is_withdrawn_while_it_is_opened_is_not_set_up(make_hospital, caplog):
    hospital = make_hospital(trust="secure-aggregation", min_sites=3)
    service, digest = hospital.service, hospital.agreement.digest
    while_opening(hospital, lambda: record_withdrawal(service, digest))
    assert hospital.ask(pack(SecureRequest(study=digest, body=b"{}"))).kind == "refused"
    assert "nobody here approved it" in caplog.text


def test_no_own_model_is_made_of_a_study_that_is_withdrawn_while_it_is_opened(make_hospital):
    hospital = make_hospital(template=OWN_MODELS)
    service, digest = hospital.service, hospital.agreement.digest
    while_opening(hospital, lambda: record_withdrawal(service, digest))
    assert send(hospital, model_for(hospital)).kind == "kept"
    service.finish()
    assert kept(hospital).own() is None
    assert not hospital.ledger.charges


def test_a_patient_who_withdraws_while_the_images_are_read_is_in_no_sum(hospital):
    words = ["site", "forget", "7", str(hospital.folder), *SAID]
    while_opening(hospital, lambda: CliRunner().invoke(app, words))
    assert isinstance(hospital.round(1, 1), Reply)
    assert "7" not in patients(hospital)
