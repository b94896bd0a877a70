"""Three hospitals over Flower as real processes, TLS and node authentication on: training, kills, strangers."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.deploy.hospital import SITES
from tests.deploy.town import Town, wait_until

from fedveil.deploy.certificates import Authority, node_keys
from fedveil.deploy.receipts import Receipts
from fedveil.privacy import Head, verify_ledger

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc")


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    town = Town(tmp_path_factory.mktemp("town"))
    try:
        town.open()
        yield town
    finally:
        town.close()


def test_three_hospitals_train_and_strangers_stay_outside(town):
    town.coordinate("first", rounds=4, trust="secure-aggregation")
    town.approve("first", by_command=True)
    stranger = write_node(town, "stranger", authority=None, key=node_keys()[0])
    town.connect("stranger", stranger, "stranger")
    impostor = write_node(town, "impostor", authority=Authority.create("impostor").certificate, key=None)
    town.connect("impostor", impostor, "impostor")
    assert town.processes["impostor"].wait(60) != 0
    assert "is not trusted" in town.log("impostor")
    assert "Traceback" not in town.log("impostor")
    wait_until(lambda: "does not admit this node" in town.log("stranger"), "the stranger to be turned away")
    town.kill("stranger")
    result = town.finish("first")
    assert result["rounds"] == 4
    assert result["metrics"]["test"]["auroc"] > 0.7
    receipts = Receipts(town.coordinator / "receipts")
    for name in SITES:
        charged = Counter(town.charges(name, "first"))
        assert {number for label, number in charged if label == "training"} == {1, 2, 3, 4}
        assert set(charged.values()) == {1}
        last = receipts.last(name)
        verify_ledger(town.site(name) / "ledger.jsonl", Head(last.seq, last.hash))


def write_node(town: Town, name: str, *, authority: bytes | None, key: bytes | None) -> Path:
    """The folder of a node that lacks the right key, or trusts another authority."""
    folder, kit = town.folder / name, town.kits / "west" / "node"
    folder.mkdir()
    (folder / "ca.pem").write_bytes(authority or (kit / "ca.pem").read_bytes())
    (folder / "node.key").write_bytes(key or (kit / "node.key").read_bytes())
    (folder / "node.toml").write_bytes((kit / "node.toml").read_bytes())
    return folder


def test_the_wire_changes_nothing(town):
    """Without noise, each step of a federation is that of the same study in one process, bit for bit."""
    from fedveil.deploy.config import SiteConfig
    from fedveil.deploy.coordinate import load_test_set
    from fedveil.deploy.hosting import Cohorts
    from fedveil.deploy.identity import Identity
    from fedveil.deploy.offer import Offer
    from fedveil.federation import InProcess
    from fedveil.privacy import Budget, Ledger
    from fedveil.study import RunDirectory, Silent, train
    from fedveil.study.task import make_task

    town.coordinate("plain", rounds=4, trust="none")
    town.approve("plain")
    town.finish("plain")
    run = RunDirectory(town.folder / "plain")
    study = run.study()
    offer = Offer.make(study, SITES, load_test_set(study))
    terms = offer.terms()
    sites, ledgers = [], []
    for name in SITES:
        identity = Identity.load(town.site(name) / "identity.key")
        ledgers.append(Ledger(town.folder / f"{name}.jsonl", Budget(30.0, 1e-3)))
        sites.append(Cohorts(SiteConfig.load(town.site(name)), identity).open(offer, terms, ledgers[-1]))
    task = make_task(study, load_test_set(study), Silent())
    local = RunDirectory.create(town.folder / "local", study)
    with local:
        trained = train(
            study, terms, task.model, InProcess(sites), local, evaluate=lambda *_: None, progress=Silent()
        )
    for ledger in ledgers:
        ledger.close()
    here = [
        json.loads(line)["update_norm"] for line in (local.path / "rounds.jsonl").read_text().splitlines()
    ]
    assert here == [entry["update_norm"] for entry in town.rounds("plain")]
    with (town.folder / "plain" / "predictions.csv").open() as file:
        there = [float(row["prob:ill"]) for row in csv.DictReader(file)]
    probabilities = task.probabilities(trained.parameters, task.dataset.test)[
        :, task.dataset.classes.index("ill")
    ]
    np.testing.assert_allclose(there, probabilities, atol=1e-6)


def test_a_study_goes_on_through_every_kill(town):
    rounds = 16
    town.coordinate("kills", rounds=rounds)
    town.approve("kills")
    town.after_round("kills", 1)
    town.kill("north.service")
    town.serve("north")
    town.after_round("kills", 3)
    town.kill("south.node")
    town.connect("south")
    town.after_round("kills", 6)
    town.kill_superlink()
    town.after_round("kills", 9)
    town.kill("coordinator")
    town.coordinate("kills", rounds=rounds, resume=True)
    town.after_round("kills", 10)
    town.kill("west.service")
    town.kill("west.node")  # unplugged for good
    result = town.finish("kills")
    log = town.rounds("kills")
    assert [entry["round"] for entry in log] == list(range(1, result["rounds"] + 1))
    # What is charged twice is taken from the rounds: the guarantee holds, and the study ends a little early.
    assert rounds - 4 <= result["rounds"] <= rounds
    assert result["guarantee"]["epsilon"] <= 2.0 + 1e-9
    assert all(len(entry["sites"]) >= 2 for entry in log)
    assert log[-1]["sites"] == ["north", "south"]
    for name in SITES:
        charged = Counter(town.charges(name, "kills"))
        took_part = {("training", entry["round"]) for entry in log if name in entry["sites"]}
        assert took_part <= charged.keys(), "a charge was lost"
        assert sum(charged.values()) - len(charged) <= 4, "each kill may have one round charged twice"
        assert max(charged.values()) <= 2
