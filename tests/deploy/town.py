"""A whole federation as real programs on this machine: services, nodes, SuperLink, coordinator; all killable."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tests.deploy.hospital import SITES, STUDY, WHO, edit, record_approval, study_text, write_images
from tests.deploy.ports import free_port

from fedveil.deploy.identity import fingerprint
from fedveil.deploy.provisioning.kits import init_site, make_kits
from fedveil.deploy.site.approvals import Studies
from fedveil.deploy.site.keys import Peers
from fedveil.privacy import LedgerState, verify_ledger

DEADLINE = 150.0
_CLI = "from fedveil.cli import deploy; import typer; app = typer.Typer(); app.add_typer(deploy.site, name='site'); "
_CLI += (
    "app.add_typer(deploy.federation, name='federation'); app.command('coordinate')(deploy.coordinate); app()"
)


def wait_until(happened: Callable[[], object], what: str) -> None:
    until = time.monotonic() + DEADLINE
    while not happened():
        assert time.monotonic() < until, f"waited {DEADLINE:.0f} s for {what}"
        time.sleep(0.1)


class Town:
    """Hospitals and a coordinator, each program a process of its own.

    Args:
        folder: where everything lies.
        names: the hospitals that have kits; the first three take part in studies unless `enrol` says otherwise.
        cohorts: a folder with an image file NAME.npz for each hospital and a test.npz; small drawn ones by default.
        engine: what carries messages.
        settings: lines of every site.toml.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] = SITES,
        cohorts: Path | None = None,
        engine: str = "flower",
        **settings: object,
    ) -> None:
        self.folder, self.enrolled, self.engine = folder, tuple(names[:3]), engine
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.port = free_port()
        self.kits = folder / "kits"
        make_kits(self.kits, name="town", hospitals=names, hosts=["127.0.0.1"], port=self.port, engine=engine)
        self.coordinator = self.kits / "coordinator"
        edit(self.coordinator / "federation.toml", wait_for_absent=6, ask_again=3, wait_for_approval=400)
        self.enrol(self.enrolled)
        self.cohorts = cohorts or folder
        if cohorts is None:
            write_images(folder / "test.npz", 60, seed=9)
        for number, name in enumerate(names):
            site = self.site(name)
            if cohorts is None:
                write_images(folder / f"{name}.npz", 60, seed=number)
            source = f'"{self.cohorts / name}.npz"'
            chosen = {
                "source": source,
                "epsilon": 30.0,
                "delta": 1e-3,
                "max_units": 1000,
                "test_fraction": 0.0,
            }
            trust = '["site", "secure-aggregation", "none"]'
            edit(site / "site.toml", **{**chosen, "trust": trust, **settings})
            init_site(site)

    def enrol(self, names: Sequence[str]) -> None:
        """Choose the hospitals of the studies that are started from now on."""
        self.enrolled = tuple(names)
        edit(self.coordinator / "federation.toml", sites=json.dumps(names))

    def site(self, name: str) -> Path:
        return self.kits / name / "site"

    def start(self, key: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a program; its output goes to KEY.log."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        environment["HTTPS_PROXY"] = environment["ALL_PROXY"] = "http://127.0.0.1:9"  # nothing listens there
        environment["FEDVEIL_CACHE"] = str(self.folder / "cache")
        with (self.folder / f"{key}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        self.processes[key] = process
        return process

    def serve(self, name: str, before: str = "") -> None:
        """Start a site service; ``before`` is run in its process first."""
        command = [sys.executable, "-c", before + _CLI, "site", "serve", str(self.site(name))]
        self.start(f"{name}.service", command)

    def connect(self, name: str, node: Path | None = None, key: str | None = None) -> None:
        folder = node or self.kits / name / "node"
        command = [sys.executable, "-m", f"fedveil.deploy.{self.engine}.node", str(folder)]
        self.start(key or f"{name}.node", command)

    def open(self, names: Sequence[str] | None = None) -> None:
        """Start both programs of these hospitals, or of those that take part in studies."""
        for name in names or self.enrolled:
            self.serve(name)
            self.connect(name)

    def study(self, run: str, template: str = STUDY, **study: object) -> Path:
        """A study file whose test set is the coordinator's."""
        path = self.folder / f"{run}.toml"
        source = str(self.cohorts / "test.npz")
        path.write_text(study_text(name=run, source=source, template=template, **study))
        return path

    def coordinate(self, run: str, *, resume: bool = False, **study: object) -> subprocess.Popen[bytes]:
        path = self.study(run, **study)
        command = [sys.executable, "-c", _CLI, "coordinate", str(path), "--federation", str(self.coordinator)]
        command += ["--out", str(self.folder / run), "--json", *(["--resume"] if resume else [])]
        return self.start("coordinator", command)

    def send(self, run: str) -> str:
        """Send a finished run's model again; return what the command says."""
        command = [sys.executable, "-c", _CLI, "federation", "send", str(self.folder / run)]
        command += ["--federation", str(self.coordinator)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def approve(self, run: str, *, by_command: bool = False) -> None:
        """Wait for the offer and approve it everywhere; with the real command, or with what that command calls."""
        for name in self.enrolled:
            wait_until(lambda name=name: self._offered(name, run), f"{run} to be offered to {name}")
            if by_command:
                listed = Studies(self.site(name) / "studies").find(run)
                keys = {
                    other: (self.site(other) / "identity.pub").read_text().strip() for other in self.enrolled
                }
                said = [f"--key={other}={fingerprint(key)}" for other, key in keys.items() if other != name]
                said = said if listed.agreement.trust == "secure-aggregation" else []
                command = [sys.executable, "-c", _CLI, "site", "approve", listed.digest, str(self.site(name))]
                command += ["--yes", "--by", WHO["by"], "--role", WHO["role"], *said]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=DEADLINE)
                continue
            studies = Studies(self.site(name) / "studies")
            listed = studies.find(run)
            if listed.agreement.trust == "secure-aggregation":
                peers = Peers(self.site(name) / "peers")
                peers.confirm(peers.unconfirmed(listed.agreement.sites, listed.offer.keys, name))
            record_approval(studies, listed.digest)

    def _offered(self, name: str, run: str) -> bool:
        offers = (self.site(name) / "studies").glob("*.json")
        assert not self.ended(), self.log("coordinator")
        return any(f'name = "{run}"' in json.loads(path.read_text())["study"] for path in offers)

    def rounds(self, run: str) -> list[dict[str, object]]:
        path = self.folder / run / "rounds.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def after_round(self, run: str, number: int) -> None:
        wait_until(lambda: len(self.rounds(run)) >= number or self.ended(), f"round {number} of {run}")
        assert len(self.rounds(run)) >= number, self.log("coordinator")

    def in_round(self, run: str, after: int, site: str = "north") -> None:
        """Wait until a hospital is at work on a round behind that one: its charge is there, its answer is not."""
        self.after_round(run, after)
        ledger = self.site(site) / "ledger.jsonl"
        before = ledger.stat().st_size
        until = time.monotonic() + DEADLINE
        while ledger.stat().st_size == before:
            assert not self.ended(), self.log("coordinator")
            assert time.monotonic() < until, f"{site} was not asked for a round"
            time.sleep(0.002)

    def ended(self) -> bool:
        return self.processes["coordinator"].poll() is not None

    def finish(self, run: str) -> dict[str, object]:
        """Wait for the coordinator; return the run's result."""
        wait_until(self.ended, f"the coordinator to end:\n{self.log('coordinator')[-3000:]}")
        assert self.processes["coordinator"].returncode == 0, self.log("coordinator")[-5000:]
        return json.loads((self.folder / run / "result.json").read_text())

    def stopped(self, *words: str) -> None:
        """Wait until the coordinator has given up, with one sentence that holds these words."""
        wait_until(self.ended, "the coordinator to give up")
        assert self.processes["coordinator"].returncode == 2, self.log("coordinator")[-5000:]
        last = self.log("coordinator").splitlines()[-1]
        assert last.startswith("error: "), last
        assert all(word in last for word in words), last
        assert "Traceback" not in self.log("coordinator")

    def log(self, key: str) -> str:
        return (self.folder / f"{key}.log").read_text()

    def ledger(self, name: str) -> LedgerState:
        return verify_ledger(self.site(name) / "ledger.jsonl")

    def charges(self, name: str, run: str) -> list[tuple[str, int | None]]:
        """What a hospital was charged for a run: label without attempt, and round."""
        found = [charge for charge in self.ledger(name).charges if charge.study.startswith(f"{run} ")]
        return [(charge.label.split(" ")[0], charge.round) for charge in found]

    def models(self, name: str, run: str) -> list[Path]:
        """The folder of a study's finished model at a hospital, once all that follows is done."""
        done = [path.parent for path in self.site(name).glob("models/*/evaluation.json")]
        return [path for path in done if f'name = "{run}"' in (path / "study.toml").read_text()]

    def kill(self, key: str) -> None:
        """kill -9."""
        self.processes[key].kill()
        self.processes[key].wait()

    def superlink(self) -> int:
        """The SuperLink's process id."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"fedveil.deploy.flower.superlink" in words and str(self.port).encode() in words:
                return int(folder.name)
        raise AssertionError("no SuperLink runs")

    def kill_superlink(self) -> None:
        os.kill(self.superlink(), signal.SIGKILL)

    def close(self) -> None:
        """Stop everything that was started."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def same_model(one: Path, other: Path) -> None:
    """Every released number is the same, bit for bit."""
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor, second[name])


@contextmanager
def open_town(engine: str = "flower") -> Iterator[Town]:
    """A federation in a folder that every user of the machine may enter, so that only its own modes protect it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        # An infinite budget: studies without privacy fit into no other.
        methods = '["gradient", "averaging"]'
        town = Town(folder, names=(*SITES, "east"), engine=engine, methods=methods, epsilon=math.inf)
        try:
            town.open()
            yield town
        finally:
            town.close()
