"""Three hospitals over NVFlare as real processes with mutual TLS: training, kills, strangers, the same model."""

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare", reason="fedveil[nvflare] is not installed")

from tests.deploy.hospital import SITES, edit
from tests.deploy.test_federation import in_one_process
from tests.deploy.town import Town, open_town, same_model, wait_until
from typer.testing import CliRunner

from fedveil.cli.deploy import federation
from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.nvflare.node import Node, NodeSettings, trouble
from fedveil.deploy.provisioning.certificates import Authority
from fedveil.deploy.provisioning.kits import make_kits
from fedveil.deploy.receipts import Receipts
from fedveil.errors import FederationError, InvalidValue
from fedveil.privacy import Head, verify_ledger


@pytest.fixture(scope="module")
def opened() -> Iterator[Town]:
    with open_town("nvflare") as made:
        yield made


@pytest.fixture
def town(opened) -> Iterator[Town]:
    """The module's federation; what a test has stopped or changed is as before for the next one."""
    settings = opened.coordinator / "federation.toml"
    before = settings.read_bytes()
    yield opened
    settings.write_bytes(before)
    if "coordinator" in opened.processes:
        opened.kill("coordinator")
    for name in SITES:
        for program, start in (("service", opened.serve), ("node", opened.connect)):
            if opened.processes[f"{name}.{program}"].poll() is not None:
                start(name)


def test_a_study_goes_on_through_kills(town):
    """Under secure aggregation, where of three hospitals none can be spared, each program is killed in a round."""
    rounds, run, trust = 16, "kills", "secure-aggregation"
    edit(town.coordinator / "federation.toml", wait_for_absent=140)
    town.coordinate(run, rounds=rounds, trust=trust)
    town.approve(run)
    town.in_round(run, 1)
    town.kill("north.node")
    town.connect("north")
    town.in_round(run, 2, "south")
    town.kill("south.service")
    town.serve("south")
    town.in_round(run, 3)
    town.kill("coordinator")
    town.coordinate(run, rounds=rounds, trust=trust, resume=True)
    result = town.finish(run)
    assert rounds - 3 <= result["rounds"] <= rounds, "what is charged twice is taken from the rounds"
    assert result["guarantee"]["epsilon"] <= 2.0 + 1e-9
    assert result["metrics"]["test"]["auroc"] > 0.7
    receipts = Receipts(town.coordinator / "receipts")
    for name in SITES:
        charged = Counter(town.charges(name, run))
        assert {("training", entry["round"]) for entry in town.rounds(run)} <= charged.keys()
        assert sum(charged.values()) - len(charged) <= 3, "each kill may have one round charged again"
        last = receipts.last(name)
        verify_ledger(town.site(name) / "ledger.jsonl", Head(last.seq, last.hash))


def test_strangers_stay_outside_and_studies_take_turns(town):
    """Nodes of another federation, one with a foreign certificate, and a hospital without a study."""
    other = Authority.create("other")
    key, certificate = other.certify_node("west")
    foreign = {"node.key": key, "node.pem": certificate}
    write_node(town, "stranger", **foreign)
    write_node(town, "misled", **foreign, **{"ca.pem": other.certificate})
    with Federation.load(town.coordinator).carrier() as first:
        for name in ("stranger", "misled"):
            town.connect(name, town.folder / name, name)
        town.connect("east")
        wait_until(lambda: town.processes["misled"].poll(), "the misled node to end")
        assert "is not trusted" in town.log("misled")
        wait_until(lambda: town.processes["stranger"].poll(), "the stranger to end")
        assert "node.pem is not valid with ca.pem" in town.log("stranger")
        settings = NodeSettings.load(town.folder / "stranger", f"127.0.0.1:{town.port}")
        untrusted = "node.pem must be signed by an authority that the coordinator trusts"
        wait_until(lambda: untrusted in str(trouble(settings)), "the stranger's certificate to be named")
        wait_until(lambda: "does not admit 'east'" in town.log("east.node"), "east to be told")
        with pytest.raises(FederationError, match="another study of this federation runs"):
            Federation.load(town.coordinator).carrier().__enter__()
        wait_until(lambda: first.present().keys() == set(SITES), "the hospitals")
    town.kill("east.node")
    for name in ("misled", "stranger", "east.node", "north.node"):
        assert "Traceback" not in town.log(name)


def write_node(town: Town, name: str, **files: bytes) -> None:
    """The folder of west's node with some other files."""
    folder, kit = town.folder / name, town.kits / "west" / "node"
    folder.mkdir()
    for part in ("ca.pem", "node.key", "node.pem", "node.toml"):
        (folder / part).write_bytes(files.get(part) or (kit / part).read_bytes())


def test_the_wire_changes_nothing(town):
    """Without noise a federation over NVFlare releases the very model of the same study in one process."""
    town.coordinate("plain", trust="none")
    town.approve("plain")
    town.finish("plain")
    _, folder = in_one_process(town, "plain", trust="none")
    same_model(town.folder / "plain", folder)


PROJECT = """
api_version: 3
name: consortium
participants:
  - {name: fl.example.org, type: server, org: coordinator, fed_learn_port: 1, admin_port: 1, host_names: [127.0.0.1]}
  - {name: north, type: client, org: north}
  - {name: admin@example.org, type: admin, org: coordinator, role: project_admin}
builders:
  - {path: nvflare.lighter.impl.workspace.WorkspaceBuilder}
  - {path: nvflare.lighter.impl.cert.CertBuilder}
"""


def test_certificates_of_nvflares_own_provisioning_are_accepted(tmp_path):
    (tmp_path / "project.yml").write_text(PROJECT)
    command = [sys.executable, "-m", "nvflare.cli", "provision", "-p", "project.yml", "-w", "work"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    made = tmp_path / "work" / "consortium" / "prod_00"
    town = Town(tmp_path / "town", engine="nvflare")
    copies = {
        town.coordinator / "ca.pem": made / "fl.example.org" / "startup" / "rootCA.pem",
        town.coordinator / "superlink.pem": made / "fl.example.org" / "startup" / "server.crt",
        town.coordinator / "superlink.key": made / "fl.example.org" / "startup" / "server.key",
        town.kits / "north" / "node" / "ca.pem": made / "north" / "startup" / "rootCA.pem",
        town.kits / "north" / "node" / "node.pem": made / "north" / "startup" / "client.crt",
        town.kits / "north" / "node" / "node.key": made / "north" / "startup" / "client.key",
    }
    for path, source in copies.items():
        path.write_bytes(Path(source).read_bytes())
    try:
        town.connect("north")
        with Federation.load(town.coordinator).carrier() as carrier:
            wait_until(lambda: list(carrier.present()) == ["north"], "the node")
    finally:
        town.close()


def test_kits_for_nvflare(tmp_path):
    """Certificates in place of Flower's keys, and instructions without a SuperLink."""
    kits = tmp_path / "kits"
    invoked = CliRunner().invoke(
        federation,
        ["init", str(kits), "--hospital", "north", "--address", "fl.example.org", "--engine", "nvflare"],
    )
    assert invoked.exit_code == 0, invoked.output
    node = kits / "north" / "node"
    assert {path.name for path in node.iterdir()} == {"ca.pem", "node.key", "node.pem", "node.toml"}
    assert (node / "node.key").stat().st_mode & 0o077 == 0
    settings = NodeSettings.load(node, "fl.example.org:9443")
    assert settings.name == "north"
    settings.cell().check()
    assert not list((kits / "coordinator").glob("*superlink.service"))
    assert "superlink" not in (kits / "coordinator" / "fedveil-study@.service").read_text()
    guides = [(kits / part / "README.md").read_text() for part in ("coordinator", "north")]
    assert all("fedveil[nvflare" in guide and "SuperLink" not in guide for guide in guides)
    refused = CliRunner().invoke(federation, ["serve", str(kits / "coordinator")])
    assert refused.exit_code == 2
    assert "the engine of this federation is nvflare" in refused.output


def test_a_node_says_once_that_no_study_runs(tmp_path, caplog):
    """Until it has had a connection; that nothing listens is no warning, and trouble of another kind is one."""
    town = Town(tmp_path, engine="nvflare")
    settings = NodeSettings.load(town.kits / "north" / "node", f"127.0.0.1:{town.port}")
    one, sessions = (
        Node(settings, SimpleNamespace(), SimpleNamespace()),
        iter([None, None, "one", None, None]),
    )
    one._cell = SimpleNamespace(session=lambda _: next(sessions))
    with caplog.at_level("INFO", "fedveil.node"):
        for _ in range(5):
            one._away_since = -math.inf
            one._watch()
    said = [record for record in caplog.records if "nothing listens" in record.getMessage()]
    assert [record.levelname for record in said] == ["INFO", "INFO"]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("name", ["server", "a.b"])
def test_kits_with_names_that_cells_cannot_have_are_refused(tmp_path, name):
    with pytest.raises(InvalidValue, match="over NVFlare a name has"):
        make_kits(tmp_path / "kits", name="f", hospitals=[name], hosts=["h"], port=1, engine="nvflare")
    assert not (tmp_path / "kits").exists()


@pytest.mark.parametrize("host", ["::1", "fl.example.org:9443"])
def test_kits_with_addresses_that_cells_cannot_connect_to_are_refused(tmp_path, host):
    command = ["init", str(tmp_path / "kits"), "--hospital", "north", "--engine", "nvflare"]
    refused = CliRunner().invoke(federation, [*command, "--address", "fl.example.org", "--address", host])
    assert refused.exit_code == 2
    assert "a host's name or an IPv4 address" in " ".join(refused.output.split())
    assert not (tmp_path / "kits").exists()


@pytest.mark.parametrize("name", ["superlink.pem", "superlink.key", "ca.pem"])
def test_a_damaged_certificate_is_named(tmp_path, name):
    town = Town(tmp_path, engine="nvflare")
    path = town.coordinator / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidValue, match=r"superlink\.pem with superlink\.key and ca\.pem cannot be used"):
        Federation.load(town.coordinator).carrier().__enter__()
