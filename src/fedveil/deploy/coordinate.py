"""The coordinator's run: the rounds of `fedveil.study`, with hospitals at the other end of a wire.

The coordinator holds no training images. Its study file names a test set of its own; the model, the classes
and the channels that the hospitals are offered are those of that set.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from fedveil.data import TEST, Dataset, load
from fedveil.deploy.federation import Federation
from fedveil.deploy.flower.link import Link
from fedveil.deploy.flower.transport import FlowerTransport
from fedveil.deploy.offer import Offer
from fedveil.errors import FederationError
from fedveil.federation import Terms
from fedveil.privacy import Budget, Charge, Head, LedgerState
from fedveil.study import Prepared, Progress, RunDirectory, Silent, Study, Trained, train
from fedveil.study.evaluation import TestSet
from fedveil.study.outcome import Outcome
from fedveil.study.task import make_task

__all__ = ["coordinate", "wait_for_sites"]

log = logging.getLogger("fedveil.coordinator")

_LOOK = 2.0

Say = Callable[[Mapping[str, str]], None]


def coordinate(
    directory: RunDirectory,
    federation: Federation,
    *,
    progress: Progress | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Run, or resume, a run directory's study with a federation's hospitals; return the result.

    Args:
        directory: the run's directory.
        federation: the coordinator's folder.
        progress: told of stages and rounds.
        say: told how the study stands at each hospital, whenever that changes.

    Raises:
        DataError, InvalidValue: the test set or the settings cannot be used; no hospital was asked.
        FederationError: too few hospitals are left; the run can be resumed.
    """
    started, seconds = datetime.now(UTC), {}
    listener = progress or Silent()
    with directory:
        study = directory.study()
        dataset = load_test_set(study)
        sites = federation.table.sites
        task = make_task(study, dataset, listener)
        offer = Offer.make(study, sites, dataset)
        terms = offer.terms()
        seconds["features"] = (datetime.now(UTC) - started).total_seconds()
        with Link(federation.link, federation.nodes()) as link:
            transport = FlowerTransport(
                link,
                federation.identity,
                federation.keys(),
                federation.receipts(),
                pin=federation.pin,
                patience=federation.patience,
            )
            wait_for_sites(
                transport,
                offer,
                terms,
                patience=federation.table.wait_for_approval,
                say=say or (lambda _: None),
            )
            began = time.perf_counter()
            trained = train(
                study,
                terms,
                task.model,
                transport,
                directory,
                evaluate=TestSet(task).point,
                progress=listener,
            )
            seconds["training"] = time.perf_counter() - began
        nothing = {site: np.empty(0, dtype=np.int64) for site in sites}
        return Outcome(
            prepared=Prepared(study=study, dataset=dataset, sites=nothing, simulated=False),
            task=task,
            terms=terms,
            trained=trained,
            ledgers=asked(terms, trained),
            baselines={},
            seconds=seconds,
            started=started,
        ).write(directory)


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
        "have the others connect, approve, or repair what their log names, then resume",
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
