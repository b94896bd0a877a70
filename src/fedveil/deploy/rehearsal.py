"""A federation of real programs on this machine, for as long as a study takes: what an audit attacks over the network.

Every hospital of a simulated study gets a folder with its cohort, its key and a ledger, a site service and a Flower
node, each a process of its own; the coordinator is this process. All of it is deleted afterwards: no ledger of a real
hospital is touched, and nothing leaves the loopback interface. The hospitals get features that this process computed,
in place of images.
"""

import contextlib
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.coordinator.runner import RealHospitals
from fedveil.deploy.provisioning.kits import init_site, make_kits
from fedveil.deploy.site.approvals import Studies
from fedveil.deploy.site.keys import Peers
from fedveil.errors import FederationError
from fedveil.privacy import Decision
from fedveil.study import Hospitals, Joined, Prepared, RunDirectory, Study
from fedveil.study.pipeline import LinearTask, Task
from fedveil.study.prepare import prepare

__all__ = ["Rehearsal", "held_port"]

_END = 20.0
"""Seconds that a program may take to end."""
_SETTINGS = """[site]
name = "{name}"
coordinator = "{coordinator}"
[data]
source = "cohort.npz"
[budget]
epsilon = {epsilon!r}
delta = {delta!r}
unit = "{unit}"
max_units = {max_units}
[policy]
trust = ["site", "secure-aggregation", "server", "none"]
min_sites = 1
max_honest = {max_honest}
methods = ["gradient", "averaging", "one-shot"]
"""
_WAIT = "\nwait_for_approval = 600\n"


@final
@dataclass(frozen=True, slots=True)
class Rehearsal(Hospitals):
    """The hospitals of a simulated study as real services on this machine, which approve it at once."""

    def prepare(self, study: Study) -> Prepared:
        """The study's data, split among its hospitals."""
        return prepare(study)

    @contextmanager
    def join(self, prepared: Prepared, task: Task, directory: RunDirectory) -> Iterator[Joined]:
        """Start all programs, offer and approve the study; stop them at the end.

        Raises:
            FederationError: too few services are ready in time.
        """
        assert isinstance(task, LinearTask)  # see `fedveil.audit.arena.embedded`
        with tempfile.TemporaryDirectory(prefix="fedveil-") as name, contextlib.ExitStack() as stack:
            kits = Path(name) / "kits"
            port = stack.enter_context(held_port())
            public = make_kits(
                kits, name="audit", hospitals=tuple(prepared.sites), hosts=["127.0.0.1"], port=port
            )
            settings = kits / "coordinator" / "federation.toml"
            settings.write_text(settings.read_text(encoding="utf-8") + _WAIT, encoding="utf-8")
            for site in prepared.sites:
                _set_up(kits / site / "site", site, public, prepared, task)
                _start(
                    stack, kits / site, "site", ["-m", "fedveil", "site", "serve", str(kits / site / "site")]
                )
                _start(
                    stack,
                    kits / site,
                    "node",
                    ["-m", "fedveil.deploy.flower.node", str(kits / site / "node")],
                )
            hospitals = RealHospitals(
                Federation.load(kits / "coordinator"), say=lambda status: _approve(kits, status)
            )
            with _telling(kits), hospitals.join(prepared, task, directory) as joined:
                yield joined


@contextmanager
def _telling(kits: Path) -> Iterator[None]:
    """Name what the services said in an error, since their logs are deleted."""
    try:
        yield
    except FederationError as error:
        lines = [
            path.read_text(errors="replace").strip().splitlines()[-1:] for path in kits.glob("*/site.log")
        ]
        said = "; ".join(sorted({line for last in lines for line in last})) or "nothing"
        raise FederationError(
            f"{error.found}; the services said: {said[:1000]}", error.rule, error.remedy
        ) from None


def _set_up(folder: Path, site: str, coordinator: str, prepared: Prepared, task: LinearTask) -> None:
    """A hospital's folder: its cohort, settings, key, and a ledger that affords the study."""
    data, rows, privacy = prepared.dataset, prepared.sites[site], prepared.study.privacy
    known = isinstance(privacy.epsilon, float) and privacy.trust != "none"
    np.savez(
        folder / "cohort.npz",
        features=task.features[rows],
        labels=data.labels[rows],
        patient=data.patients[rows],
        split=np.zeros(len(rows), dtype=np.int8),
        classes=np.array(data.classes),
    )
    text = _SETTINGS.format(
        name=site,
        coordinator=coordinator,
        epsilon=2 * privacy.epsilon if known else math.inf,
        delta=privacy.delta,
        unit=privacy.unit,
        max_units=prepared.study.federation.max_units,
        max_honest=len(prepared.sites),
    )
    (folder / "site.toml").write_text(text, encoding="utf-8")
    init_site(folder)


def _start(stack: contextlib.ExitStack, folder: Path, name: str, arguments: list[str]) -> None:
    """A program that ends with the stack; its output goes to a file beside its settings."""
    log = stack.enter_context((folder / f"{name}.log").open("wb"))
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(os.environ)
    )
    stack.callback(_stop, process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _approve(kits: Path, status: Mapping[str, str]) -> None:
    """Decide for each hospital as its privacy officer would, once it was offered the study."""
    for site in (site for site, state in status.items() if state == "pending"):
        folder = kits / site / "site"
        studies = Studies(folder / "studies")
        for listed in studies.all():
            if listed.decision is not None:
                continue
            if listed.agreement.trust == "secure-aggregation":
                peers = Peers(folder / "peers")
                peers.confirm(peers.unconfirmed(listed.agreement.sites, listed.offer.keys, site))
            studies.decide(
                Decision(act="approved", subject=listed.digest, by="audit", role="rehearsal on this machine")
            )


@contextmanager
def held_port() -> Iterator[int]:
    """A free port of this machine, which no other program is given while the context is open.

    A socket stays bound to it. On Linux a program that reuses addresses, as servers do, may listen there all the same;
    elsewhere the socket is closed first, and another program may come in between.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port = int(holder.getsockname()[1])
        if sys.platform != "linux":
            holder.close()
        yield port
