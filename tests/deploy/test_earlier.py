"""What earlier versions wrote is read: ledgers, messages, sealed messages and run directories, as files of each."""

import csv
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from fedveil.deploy.identity import Identity
from fedveil.deploy.offer import Offer
from fedveil.deploy.protocol import common
from fedveil.deploy.receipts import Receipt
from fedveil.deploy.sealing import FROM_COORDINATOR, FROM_SITE, unseal
from fedveil.federation import Reply, Request
from fedveil.federation.wire import decode, unpack
from fedveil.privacy import Ledger, verify_ledger
from fedveil.report import write_report
from fedveil.study import TrainedModel

VERSIONS = sorted(path for path in (Path(__file__).parent / "earlier").glob("v*") if path.is_dir())
MESSAGES = ("offer", "hello", "request")


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def files(request, tmp_path) -> Path:
    """A copy of what one version wrote; keys that only this user reads, as it left them."""
    copy = tmp_path / "files"
    shutil.copytree(request.param, copy)
    for path in copy.glob("*.key"):
        path.chmod(0o600)
    return copy


def test_there_are_files_of_the_present_version():
    assert [path.name for path in VERSIONS] == ["v0_1"]


def test_a_ledger_is_read_and_continued(files):
    state = verify_ledger(files / "ledger.jsonl")
    assert (state.budget.epsilon, state.budget.unit, len(state.charges)) == (20.0, "patient", 1)
    assert state.spent() == pytest.approx(0.64298441, abs=1e-6)
    with Ledger(files / "ledger.jsonl") as ledger:
        ledger.reserve(state.charges[0].mechanism, study="next", trust="site")
    assert len(verify_ledger(files / "ledger.jsonl").charges) == 2


@pytest.mark.parametrize("name", MESSAGES)
def test_sealed_messages_are_opened_and_hold_what_was_sent(files, name):
    coordinator, north = (Identity.load(files / f"{one}.key") for one in ("coordinator", "north"))
    asked = unseal(
        (files / f"{name}.sealed").read_bytes(), north, sender=coordinator.public, purpose=FROM_COORDINATOR
    )
    assert asked.body == (files / f"{name}.frame").read_bytes()
    answer = unseal(
        (files / f"{name}.answer.sealed").read_bytes(), coordinator, sender=north.public, purpose=FROM_SITE
    )
    assert answer.id == asked.id
    assert decode(answer.body) == decode((files / f"{name}.answer.frame").read_bytes())


def test_messages_are_read(files):
    greeting = decode((files / "hello.frame").read_bytes())
    answered = decode((files / "hello.answer.frame").read_bytes())
    assert common(greeting.head.get("protocols")) == common(answered.head.get("protocols")) == 1
    assert answered.head["status"] == "ready"
    offered = dict(decode((files / "offer.frame").read_bytes()).head)
    del offered["nonce"]
    offer = Offer.from_dict(offered)
    assert offer.sites == ("north", "south", "west")
    assert [release.name for release in offer.agreement().releases][:1] == ["statistics"]
    request = unpack((files / "request.frame").read_bytes(), Request)
    assert (request.study, request.release) == (greeting.head["study"], "statistics")
    frame = decode((files / "request.answer.frame").read_bytes())
    reply = unpack(frame.blobs["answer"], Reply)
    assert (reply.site, reply.release, reply.vector.ndim) == ("north", "statistics", 1)
    receipt = Receipt.from_dict(frame.head["receipt"])
    receipt.check(frame.head["signature"], Identity.load(files / "north.key").public)
    verify_ledger(files / "ledger.jsonl")
    assert receipt.seq <= 3


def test_a_run_directory_is_read(files):
    run = files / "run"
    model = TrainedModel.load(run)
    stored = load_file(run / "model.safetensors")
    assert model.parameters.size == sum(one.size for name, one in stored.items() if name != "frequencies")
    with (run / "predictions.csv").open(newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"normal", "ill"}
    page = write_report(run).read_text()
    assert "site-3" in page
    for path in run.glob("ledgers/*.jsonl"):
        assert verify_ledger(path).charges
