"""The same federation when something breaks: kills, hospitals that leave or send nonsense, other users."""

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from tests.deploy.hospital import NO_IMAGES, SITES, edit
from tests.deploy.town import Town, open_town, same_model, wait_until

from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.flower.carrier import FlowerCarrier

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc")


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    with open_town() as made:
        yield made


UPGRADED = """
from fedveil.deploy import protocol
protocol.__version__, protocol.PROTOCOLS = "9.9", (1, 2)
"""


def test_a_study_goes_on_through_every_kill(town):
    """Each program is killed in the middle of a round, under secure aggregation, where of three none can be spared.

    One hospital comes back with a newer version, which still speaks the others' protocol.
    """
    rounds, run, trust = 12, "kills", "secure-aggregation"
    edit(town.coordinator / "federation.toml", wait_for_absent=30)
    town.coordinate(run, rounds=rounds, trust=trust)
    town.approve(run)
    town.in_round(run, 1)
    town.kill("north.service")
    town.serve("north", UPGRADED)
    town.in_round(run, 2, "south")
    town.kill("south.node")
    town.connect("south")
    town.in_round(run, 3)
    town.kill_superlink()
    town.in_round(run, 4)
    town.kill("coordinator")
    edit(town.coordinator / "federation.toml", wait_for_absent=4)
    town.coordinate(run, rounds=rounds, trust=trust, resume=True)
    town.in_round(run, 5, "west")
    town.kill("west.service")
    town.kill("west.node")  # unplugged: the study stops, and goes on once the hospital is back
    town.stopped("west (unreachable)", "needs 3", "reconnect the sites and resume")
    town.open(["west"])
    town.coordinate(run, rounds=rounds, trust=trust, resume=True)
    check_charges(town, run, town.finish(run), rounds)


def check_charges(town: Town, run: str, result: dict[str, object], rounds: int) -> None:
    log = town.rounds(run)
    assert [entry["round"] for entry in log] == list(range(1, result["rounds"] + 1))
    # What is charged twice is taken from the rounds: the guarantee holds, and the study ends a little early.
    assert rounds - 6 <= result["rounds"] <= rounds
    assert result["guarantee"]["epsilon"] <= 2.0 + 1e-9
    for name in SITES:
        charged = Counter(town.charges(name, run))
        took_part = {("training", entry["round"]) for entry in log if name in entry["sites"]}
        assert took_part <= charged.keys(), "a charge was lost"
        assert max(charged.values()) <= 2, "a round was charged more than twice"
        assert sum(charged.values()) - len(charged) <= 6, "each kill may have one round charged twice"


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's own
def test_without_a_hospital_that_can_be_spared_and_without_images_of_the_coordinators(town):
    """The rounds go on; hospitals' own results, with noise, are all that judges; the model is sent again later."""
    town.enrol((*SITES, "east"))
    town.open(["east"])
    template = NO_IMAGES.replace("[privacy]", "[privacy]\nevaluation_share = 0.2")
    town.coordinate("four", rounds=4, trust="secure-aggregation", min_sites=3, template=template)
    town.approve("four")
    town.in_round("four", 1, "east")
    town.kill("east.service")
    town.kill("east.node")
    result = town.finish("four")
    town.enrol(SITES)
    log = town.rounds("four")
    assert set(log[0]["sites"]) == {*SITES, "east"}
    assert log[-1]["sites"] == list(SITES)
    assert result["guarantee"]["epsilon"] <= 2.0 + 1e-9
    assert ("training", 1) in town.charges("east", "four")
    assert result["metrics"]["test"] is None
    assert all(entry["test"] is None for entry in log)
    assert not (town.folder / "four" / "predictions.csv").exists()
    assert "released histograms" in (town.folder / "four" / "report.html").read_text()
    assert any("east did not receive the finished model" in note for note in result["notes"])
    town.open(["east"])
    edit(town.coordinator / "federation.toml", wait_for_absent=60)
    federation = Federation.load(town.coordinator)
    with FlowerCarrier(federation.link, federation.nodes()):  # a SuperLink that runs already is joined
        said = town.send("four")
    assert "joining the SuperLink" in said
    assert said.count("has the model") == 4
    edit(town.coordinator / "federation.toml", wait_for_absent=4)
    for name in (*SITES, "east"):
        (kept,) = town.models(name, "four")
        same_model(town.folder / "four", kept)


AS_ANOTHER_USER = """
import os, socket, stat, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
def got_in(path):
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as line: line.connect(path)
        elif os.path.isdir(path): os.listdir(path)
        else: open(path, "rb").read(1)
    except PermissionError: return False
    return True
print("\\n".join(path for path in sys.argv[1:] if got_in(path)))
"""


def opened_by_another_user(paths: Iterable[Path]) -> set[Path]:
    """Those of the files, folders and sockets that the user nobody can open."""
    command = [sys.executable, "-I", "-c", AS_ANOTHER_USER, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return {Path(line) for line in done.stdout.splitlines() if line}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can try as another user")
def test_a_second_user_of_the_machine_gets_nothing(town):
    """Neither images, ledger, keys, answers, models and features on disk, nor the running service."""
    town.coordinate("before", rounds=1)
    town.approve("before")
    town.finish("before")
    site, node = town.site("north"), town.kits / "north" / "node"
    wait_until(lambda: list(site.glob("models/*/evaluation.json")), "a finished model to be judged")
    (site / "images.npz").write_bytes((town.cohorts / "north.npz").read_bytes())
    inside = {path.name for path in site.iterdir()}
    assert {"site.sock", "ledger.jsonl", "identity.key", "spool", "studies", "models", "images.npz"} <= inside
    found = [*site.rglob("*"), *node.rglob("*"), *town.coordinator.rglob("*.key"), site, node]
    assert opened_by_another_user(found) == set()
    features = [path for path in (town.folder / "cache").rglob("*") if path.is_file()]
    assert features
    assert opened_by_another_user(features) == set()
    # Somebody opens the folder by mistake: what fedveil wrote is closed by itself.
    found.remove(site / "images.npz")
    site.chmod(0o755)
    try:
        assert opened_by_another_user(found) <= {site, site / "site.toml", site / "identity.pub"}
    finally:
        site.chmod(0o700)


HOSTILE = """
from dataclasses import replace
from fedveil.federation import Reply, Site
honest = Site.handle
def handle(self, message):
    reply = honest(self, message)
    if not isinstance(reply, Reply):
        return reply
    nonsense = reply.vector[:-1] if reply.release == "statistics" else reply.vector * float("nan")
    return replace(reply, vector=nonsense)
Site.handle = handle
"""


def test_a_hospital_that_sends_nonsense_is_left_out_and_named(town):
    """Statistics of a wrong shape, gradients of NaN, well signed; and at another hospital garbage on the socket."""
    for key in ("east.service", "east.node"):
        if key in town.processes and town.processes[key].poll() is None:
            town.kill(key)
    town.enrol((*SITES, "east"))
    town.serve("east", HOSTILE)
    town.connect("east")
    wait_until((town.site("north") / "site.sock").exists, "north to listen")
    for rubbish in (os.urandom(5000), b"\xff" * 64, b"\x00" * 8 + b"{}", b""):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(town.site("north") / "site.sock"))
            line.sendall(rubbish)
    town.coordinate("nonsense", rounds=6, trust="site", min_sites=3)
    town.approve("nonsense")
    result = town.finish("nonsense")
    town.enrol(SITES)
    log = town.rounds("nonsense")
    assert [entry["sites"] for entry in log] == [list(SITES)] * 6
    assert not any(entry["dropped"] for entry in log), "it is not asked again"
    assert any("east was left out of the last rounds: it sent" in note for note in result["notes"])
    assert "east is left out for the rest of this run" in town.log("coordinator")
    assert len(town.charges("east", "nonsense")) == 1
    assert town.charges("east", "nonsense")[0][0] == "statistics", "it is charged for what it was asked"
    assert result["metrics"]["test"]["auroc"] > 0.7
    assert town.processes["north.service"].poll() is None
    assert "Traceback" not in town.log("north.service")
