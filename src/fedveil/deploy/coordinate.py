"""The coordinator's end of a study between real hospitals: `fedveil.study.run`, with hospitals at the end of a wire.

The coordinator holds no training images. Its study file names a test set of its own; the model, the classes
and the channels that the hospitals are offered are those of that set.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from fedveil.data import TEST, Dataset, load
from fedveil.deploy.federation import Federation
from fedveil.deploy.flower.link import Link
from fedveil.deploy.flower.transport import FlowerTransport
from fedveil.deploy.offer import Offer
from fedveil.errors import FederationError
from fedveil.federation import Terms
from fedveil.privacy import Budget, Charge, Head, LedgerState
from fedveil.study import Hospitals, Joined, Prepared, RunDirectory, Study, Trained
from fedveil.study.task import Task

__all__ = ["RealHospitals", "load_test_set", "wait_for_sites"]

log = logging.getLogger("fedveil.coordinator")

_LOOK = 2.0

Say = Callable[[Mapping[str, str]], None]


@final
@dataclass(frozen=True, slots=True)
class RealHospitals(Hospitals):
    """The hospitals of a federation, reached through its SuperLink.

    Attributes:
        federation: the coordinator's folder.
        say: told how the study stands at each hospital, whenever that changes.
    """

    federation: Federation
    say: Say = lambda _: None

    def prepare(self, study: Study) -> Prepared:
        """The coordinator's own images, all for testing; of the hospitals' images nothing is known here."""
        nothing = {site: np.empty(0, dtype=np.int64) for site in self.federation.table.sites}
        return Prepared(study=study, dataset=load_test_set(study), sites=nothing, simulated=False)

    @contextmanager
    def join(self, prepared: Prepared, task: Task, directory: RunDirectory) -> Iterator[Joined]:
        """Start or join the SuperLink, offer the study, and wait until enough hospitals have approved it.

        Raises:
            FederationError: there is no line, or too few hospitals are ready in time.
        """
        del task, directory
        federation = self.federation
        offer = Offer.make(prepared.study, federation.table.sites, prepared.dataset)
        terms = offer.terms()
        with Link(federation.link, federation.nodes()) as link:
            transport = FlowerTransport(
                link,
                federation.identity,
                federation.keys(),
                federation.receipts(),
                pin=federation.pin,
                patience=federation.patience,
            )
            patience = federation.table.wait_for_approval
            wait_for_sites(transport, offer, terms, patience=patience, say=self.say)
            yield Joined(terms=terms, transport=transport, ledgers=lambda trained: asked(terms, trained))


def load_test_set(study: Study) -> Dataset:
    """The coordinator's images, all of them for testing unless the data has a test split of its own."""
    settings = study.data
    dataset = load(
        settings.source,
        image_size=settings.image_size,
        positive=settings.positive or None,
        seed=study.study.seed,
        test_fraction=0.0,
        allow_patient_overlap=settings.allow_patient_overlap,
    )
    if len(dataset.test):
        return dataset
    return replace(dataset, split=np.full(len(dataset), TEST, dtype=np.int8))


def wait_for_sites(
    transport: FlowerTransport, offer: Offer, terms: Terms, *, patience: float, say: Say
) -> dict[str, str]:
    """Offer the study and wait until every hospital is ready, or until patience ends and enough are.

    Raises:
        FederationError: too few hospitals are ready in time, or one refused.
    """
    until = time.monotonic() + patience
    told: dict[str, str] = {}
    while True:
        status = transport.greet(
            terms.sites, terms.digest, offer.to_dict(), need_keys=terms.trust == "secure-aggregation"
        )
        if status != told:
            say(status)
            told = status
        ready = sum(state == "ready" for state in status.values())
        settled = all(state in ("ready", "refused") for state in status.values())
        if ready == len(status):
            return status
        if settled or time.monotonic() > until:
            if terms.enough(ready):
                log.warning("starting with %s of %s hospitals", ready, len(status))
                return status
            raise _not_ready(status, terms)
        time.sleep(_LOOK)


def _not_ready(status: Mapping[str, str], terms: Terms) -> FederationError:
    words = {
        "absent": "not connected",
        "unknown": "does not know the study",
        "pending": "has not approved the study",
        "loading": "is still reading its images",
        "refused": "refuses the study; its own log says why",
    }
    missing = [f"{site} {words.get(state, state)}" for site, state in status.items() if state != "ready"]
    return FederationError(
        f"{len(status) - len(missing)} of {len(status)} hospitals are ready: {'; '.join(missing)}",
        f"a round needs {terms.min_sites}",
        "have the others connect, approve, or repair what their log names, then give the same command again",
    )


def asked(terms: Terms, trained: Trained) -> dict[str, LedgerState]:
    """What each hospital's ledger holds of this study at most: one charge for every time that it was asked.

    The ledgers themselves stay with the hospitals; an attempt that one missed counts here all the same.
    """
    if terms.trust == "none":
        return {}
    target = terms.target
    charges = tuple(
        Charge(
            seq=number,
            time="",
            study=terms.title,
            round=None,
            label=name,
            trust=terms.trust,
            mechanism=terms.release(name).mechanism.with_steps(count),
            alone=terms.alone(terms.release(name).mechanism.with_steps(count)),
            previous="",
            hash="",
        )
        for number, (name, count) in enumerate(trained.coordinator.charged.items(), 1)
        if count
    )
    budget = Budget(target.epsilon, target.delta, target.unit)
    state = LedgerState(budget, charges, Head(0, ""))
    return dict.fromkeys(terms.sites, state)
