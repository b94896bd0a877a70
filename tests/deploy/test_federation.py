"""Three hospitals over Flower as real processes, TLS and node authentication on: training, strangers."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.deploy.cohorts import LUNGS, deal_lungs, join
from tests.deploy.hospital import IMAGES, NETWORK, OWN_MODELS, SITES, edit
from tests.deploy.town import Town, open_town, same_model, wait_until

from fedveil.deploy.coordinator.progress import progress
from fedveil.deploy.provisioning.certificates import Authority, node_keys
from fedveil.deploy.receipts import Receipts
from fedveil.privacy import Head, verify_ledger
from fedveil.study import RunDirectory, Study, TrainedModel, run

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc")


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    with open_town() as made:
        yield made


def test_three_hospitals_train_and_strangers_stay_outside(town):
    town.coordinate("first", rounds=4, trust="secure-aggregation")
    town.approve("first", by_command=True)
    stranger = write_node(town, "stranger", authority=None, key=node_keys()[0])
    town.connect("stranger", stranger, "stranger")
    impostor = write_node(town, "impostor", authority=Authority.create("impostor").certificate, key=None)
    town.connect("impostor", impostor, "impostor")
    assert town.processes["impostor"].wait(150) != 0
    assert "is not trusted" in town.log("impostor")
    assert "Traceback" not in town.log("impostor")
    wait_until(lambda: "does not admit this node" in town.log("stranger"), "the stranger to be turned away")
    town.kill("stranger")
    result = town.finish("first")
    assert result["rounds"] == 4
    assert result["metrics"]["test"]["auroc"] > 0.7
    assert result["sites"][0]["patients"] is None, "the coordinator cannot know"
    page = (town.folder / "first" / "report.html").read_text()
    assert all(name in page for name in SITES)
    followed = {one.name: one for one in progress(town.coordinator)}["first"]
    assert (followed.state, followed.rounds, followed.planned) == ("finished", 4, 4)
    assert followed.hospitals == dict.fromkeys(SITES, "ready")
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


def in_one_process(town: Town, name: str, **study: object) -> tuple[dict[str, object], Path]:
    """The same study without a wire: the same hospitals' images in one file, through the same `run`."""
    whole = join(town.cohorts, SITES)
    changes = {"data": {"source": str(whole)}}
    local = Study.load(town.study(f"{name}-local", **study)).with_changes(changes)
    directory = RunDirectory.create(town.folder / f"{name}-local", local)
    return run(directory), directory.path


def test_hospitals_judge_the_model_at_home_and_make_their_own(town):
    """Nothing judges at the coordinator; at home the own model is charged once, within what the result states."""
    edit(town.site("north") / "site.toml", test_fraction=0.3)
    town.kill("north.service")
    town.serve("north")
    template = OWN_MODELS.replace(*IMAGES)
    town.coordinate("own", rounds=2, template=template)
    town.approve("own")
    result = town.finish("own")
    assert not any(result["metrics"].values())
    assert any("The model was not evaluated" in note for note in result["notes"])
    assert "Accuracy is unknown" in (town.folder / "own" / "report.html").read_text()
    for name in SITES:
        wait_until(lambda name=name: town.models(name, "own"), f"{name} to judge the model")
        (kept,) = town.models(name, "own")
        same_model(town.folder / "own", kept)
        found = json.loads((kept / "evaluation.json").read_text())
        assert (found["common"] is None) is (name != "north")
        own = TrainedModel.load(kept / "personal")
        assert not np.array_equal(own.parameters, TrainedModel.load(kept).parameters)
        assert town.charges(name, "own").count(("personal", 1)) == 1
        ledger = town.ledger(name)
        (title,) = {charge.study for charge in ledger.charges if charge.study.startswith("own ")}
        assert ledger.spent(title, delta=1e-3) == pytest.approx(result["guarantee"]["epsilon"])
    assert result["guarantee"]["epsilon"] <= 2.0 + 1e-9
    edit(town.site("north") / "site.toml", test_fraction=0.0)
    town.kill("north.service")
    town.serve("north")


def test_a_calibrated_study_is_approved_at_its_maximum_and_charged_at_its_level(town):
    """Over the wire and masked: hospitals recompute the rule, and all of them charge the level that it picks."""
    calibrated = '"calibrated"\nmax_epsilon = 16.0\npilot_epsilon = 4.0\ntolerance = 0.45'
    town.coordinate("calibrated", rounds=3, trust="secure-aggregation", epsilon=calibrated)
    town.approve("calibrated")
    result = town.finish("calibrated")
    found = result["calibrated"]
    level = f"-level-{found['level']}"
    wanted = ["statistics", "pilot", f"statistics{level}", *[f"training{level}"] * 3, f"calibration{level}"]
    for name in SITES:
        assert [label for label, _ in town.charges(name, "calibrated")] == wanted
        ledger = town.ledger(name)
        (title,) = {charge.study for charge in ledger.charges if charge.study.startswith("calibrated ")}
        assert ledger.spent(title, delta=1e-3) == pytest.approx(found["charged"])
    assert (
        found["charged"] <= found["epsilon"] < result["guarantee"]["epsilon"] == pytest.approx(16.0, rel=1e-3)
    )


def test_the_wire_changes_nothing(town):
    """Without noise a federation releases the very model of the same study in one process."""
    town.coordinate("plain", trust="none")
    town.approve("plain")
    town.finish("plain")
    _, folder = in_one_process(town, "plain", trust="none")
    same_model(town.folder / "plain", folder)


NETWORKS = {
    "gradient": NETWORK.replace("[privacy]", "sampling_rate = 1\n[privacy]"),
    "averaging": NETWORK.replace(
        "[privacy]", 'method = "averaging"\nlocal_steps = 2\nunits = 180\nsampling_rate = 1\n[privacy]'
    ),
}


@pytest.mark.parametrize("method", NETWORKS)
def test_the_wire_changes_nothing_about_a_network(town, method):
    """Its parameters, and what sites make of them, are the same; threads may sum in another order."""
    settings = {"template": NETWORKS[method], "trust": "none", "rounds": 3}
    town.coordinate(method, **settings)
    town.approve(method)
    town.finish(method)
    _, folder = in_one_process(town, method, **settings)
    first, second = (load_file(path / "model.safetensors") for path in (town.folder / method, folder))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        np.testing.assert_allclose(tensor, second[name], atol=1e-3)


def test_a_network_is_trained_over_the_wire_under_secure_aggregation(town):
    settings = {"template": NETWORK, "trust": "secure-aggregation", "rounds": 2, "epsilon": 4.0}
    town.coordinate("network", **settings)
    town.approve("network")
    result = town.finish("network")
    assert result["rounds"] == 2
    assert 0 < result["guarantee"]["epsilon"] <= 4
    for name in SITES:
        charged = Counter(town.charges(name, "network"))
        assert {number for label, number in charged if label == "training"} == {1, 2}
        assert set(charged.values()) == {1}


def test_chest_x_rays_are_learnt_as_well_over_the_wire(shared_data, tmp_path, monkeypatch):
    """The main job at a fraction of its size: the same accuracy within noise. The benchmark has it whole."""
    deal_lungs(shared_data / "kermany_cxr" / "kermany_cxr_64.npz", tmp_path, SITES, patients=60)
    town = Town(tmp_path, cohorts=tmp_path, delta=1e-4)
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / "cache"))
    settings = {"template": LUNGS, "rounds": 6, "epsilon": 20.0, "trust": "secure-aggregation"}
    try:
        town.open()
        town.coordinate("lungs", **settings)
        town.approve("lungs")
        wire = town.finish("lungs")["metrics"]["test"]["auroc"]
    finally:
        town.close()
    here = [in_one_process(town, f"lungs{number}", **settings)[0] for number in range(3)]
    found = [result["metrics"]["test"]["auroc"] for result in here]
    assert min(found) > 0.8
    assert wire == pytest.approx(np.mean(found), abs=0.08)
