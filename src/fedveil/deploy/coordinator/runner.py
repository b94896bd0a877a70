"""The coordinator's end of a study between real hospitals: `fedveil.study.run`, with hospitals reached over a network.

The coordinator holds no training images. Its study file names its own test set, whose classes and channels are
offered to the hospitals; or it names none, and states them itself.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np

from fedveil import __version__
from fedveil.data import TEST, Dataset, Settings, load
from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.coordinator.progress import finished_run, noted
from fedveil.deploy.coordinator.transport import SealedTransport
from fedveil.deploy.offer import Offer
from fedveil.errors import FederationError
from fedveil.federation import Agreement
from fedveil.privacy import Budget, Charge, Head, LedgerState
from fedveil.study import HandedOver, Hospitals, Joined, Prepared, RunDirectory, Study, Trained, TrainedModel
from fedveil.study.pipeline import Task
from fedveil.study.prepare import pinned
from fedveil.study.settings.schema import NOTHING

__all__ = ["RealHospitals", "load_test_set", "send_again", "wait_for_sites"]

log = logging.getLogger("fedveil.coordinator")

_LOOK = 2.0

Say = Callable[[Mapping[str, str]], None]


@final
@dataclass(frozen=True, slots=True)
class RealHospitals(Hospitals):
    """The hospitals of a federation, reached through its carrier.

    Attributes:
        federation: the coordinator's folder.
        say: receives the study's state at each hospital whenever it changes.
    """

    federation: Federation
    say: Say = lambda _: None

    def prepare(self, study: Study) -> Prepared:
        """The coordinator's own images, all for testing; the hospitals' images are not known here."""
        dataset = load_test_set(study)
        return Prepared(study=pinned(study, dataset), dataset=dataset, sites={}, simulated=False)

    @contextmanager
    def join(self, prepared: Prepared, task: Task, directory: RunDirectory) -> Iterator[Joined]:
        """Start or join the carrier, offer the study, and wait until enough hospitals have approved it.

        Raises:
            FederationError: there is no connection, or too few hospitals are ready in time.
        """
        table, settings = self.federation.table, prepared.study
        offer = Offer.make(prepared.study, table.sites, prepared.dataset)
        agreement = offer.agreement()

        def hand_over(trained: Trained) -> HandedOver:
            model = task.trained(trained.parameters, trained.statistics)
            return HandedOver(missing=deliver(transport, agreement.sites, agreement.digest, model))

        started = noted(
            self.federation.folder,
            name=settings.study.name,
            digest=agreement.digest,
            run=directory.path,
            planned=settings.training.rounds,
        )
        with started as note, reach(self.federation) as transport:

            def say(states: Mapping[str, str]) -> None:
                note(states)
                self.say(states)

            note(dict.fromkeys(agreement.sites, "absent"))
            wait_for_sites(transport, offer, agreement, patience=table.wait_for_approval, say=say)
            yield Joined(
                agreement=agreement,
                transport=transport,
                ledgers=lambda trained: asked(agreement, trained),
                hand_over=hand_over,
            )


@contextmanager
def reach(federation: Federation) -> Iterator[SealedTransport]:
    """Start or join the carrier; a connection to the hospitals while the context is open."""
    with federation.carrier() as carrier:
        yield SealedTransport(
            carrier,
            federation.identity,
            federation.keys(),
            federation.receipts(),
            pin=federation.pin,
            patience=federation.patience,
        )


def deliver(
    transport: SealedTransport, sites: Sequence[str], study: str, model: TrainedModel
) -> tuple[str, ...]:
    """Send each hospital the finished model of a study; return those that did not receive it."""
    arrays = {"parameters": model.parameters, "frequencies": model.frequencies}
    return transport.deliver(sites, study, arrays)


def send_again(federation: Federation, run: Path) -> dict[str, bool]:
    """Send the model of a finished run to every hospital of its study; a hospital that already has it confirms again.

    Returns:
        whether each hospital has it now, by name.

    Raises:
        StudyError: the folder holds no finished run.
    """
    study, sites = finished_run(run, "a model must be sent from the run that made it")
    model = TrainedModel.load(run)
    with reach(federation) as transport:
        missing = deliver(transport, sites, study, model)
    return {site: site not in missing for site in sites}


def load_test_set(study: Study) -> Dataset:
    """The coordinator's images, all for testing unless the data has its own test split."""
    settings = study.data
    if settings.source == NOTHING:
        return Dataset.empty(
            settings.classes,
            channels=settings.channels or 1,
            image_size=settings.image_size,
            task=settings.meaning,
        )
    asked: Settings = {**settings.settings, "seed": study.study.seed, "test_fraction": 0.0}
    dataset = load(settings.source, **asked)
    if len(dataset.test):
        return dataset
    return replace(dataset, split=np.full(len(dataset), TEST, dtype=np.int8))


def wait_for_sites(
    transport: SealedTransport, offer: Offer, agreement: Agreement, *, patience: float, say: Say
) -> dict[str, str]:
    """Offer the study and wait until every hospital is ready, or until the waiting time ends and enough are.

    Raises:
        FederationError: too few hospitals are ready in time, or one refused.
    """
    until = time.monotonic() + patience
    told: dict[str, str] = {}
    while True:
        status = transport.greet(
            agreement.sites,
            agreement.digest,
            offer.to_dict(),
            need_keys=agreement.trust == "secure-aggregation",
        )
        if status != told:
            say(status)
            told = status
        ready = sum(state == "ready" for state in status.values())
        settled = all(
            state in ("ready", "refused", "declined", "invalid") or state.startswith("on ")
            for state in status.values()
        )
        if ready == len(status):
            return status
        if settled or time.monotonic() > until:
            if agreement.enough(ready):
                log.warning("starting with %s of %s hospitals", ready, len(status))
                return status
            raise _not_ready(status, agreement)
        time.sleep(_LOOK)


def _not_ready(status: Mapping[str, str], agreement: Agreement) -> FederationError:
    words = {
        "absent": "not connected",
        "unknown": "does not know the study",
        "pending": "has not approved the study",
        "declined": "has declined the study",
        "loading": "is still reading its images",
        "refused": "refuses the study; see its own log",
        "stale": "rejects messages as too old: synchronise its clock and this machine's by NTP",
        "invalid": "sends answers that the protocol does not allow",
    }
    other = (
        f"; here runs fedveil {__version__}, which has no protocol in common with it: upgrade the older one"
    )
    words |= {state: state + other for state in status.values() if state.startswith("on ")}
    missing = [f"{site} {words.get(state, state)}" for site, state in status.items() if state != "ready"]
    return FederationError(
        f"{len(status) - len(missing)} of {len(status)} hospitals are ready: {'; '.join(missing)}",
        f"a round needs {agreement.min_sites}",
        "have the others connect, approve, or correct what their log names, then repeat the command",
    )


def asked(agreement: Agreement, trained: Trained) -> dict[str, LedgerState]:
    """Upper bound on the charges in each hospital's ledger for this study: one charge per request.

    The ledgers themselves stay at the hospitals. An attempt that a hospital missed counts here too, and so does a
    personal model that it did not make.
    """
    if agreement.trust == "none":
        return {}
    target = agreement.target
    charged = trained.coordinator.charged | {
        own.name: own.mechanism.steps for own in agreement.releases if own.query.at_site
    }
    charges = tuple(
        Charge(
            seq=number,
            time="",
            study=agreement.title,
            round=None,
            label=name,
            trust=agreement.trust,
            mechanism=agreement.release(name).mechanism.with_steps(count),
            alone=agreement.alone(agreement.release(name), count),
            previous="",
            hash="",
        )
        for number, (name, count) in enumerate(charged.items(), 1)
        if count
    )
    budget = Budget(target.epsilon, target.delta, target.unit)
    state = LedgerState(budget, charges, Head(0, ""))
    return dict.fromkeys(agreement.sites, state)
