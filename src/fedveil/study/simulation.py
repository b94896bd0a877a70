"""A whole study on one machine: every site in this process, every line of the protocol as between hospitals."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedveil.federation import Identity, InProcess, Policy, Site, Terms
from fedveil.privacy import Budget, Ledger, LedgerState
from fedveil.study.evaluation import TestSet
from fedveil.study.outcome import Outcome
from fedveil.study.prepare import Prepared, prepare
from fedveil.study.progress import Progress, Silent
from fedveil.study.rundir import RunDirectory
from fedveil.study.task import Task, make_task
from fedveil.study.terms import make_terms
from fedveil.study.training import Trained, train

__all__ = ["run"]

NOTHING = np.empty(0, dtype=np.int64)


@dataclass(slots=True)
class Stopwatch:
    """Seconds a stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def run(directory: RunDirectory, *, progress: Progress | None = None) -> dict[str, Any]:
    """Run, or resume, the study of a run directory with simulated sites; return what ``result.json`` holds.

    Raises:
        DataError, InvalidValue: the data or the settings cannot be used; nothing was charged.
        FederationError: too few sites were left; the run can be resumed.
    """
    listener = progress or Silent()
    watch = Stopwatch()
    started = datetime.now(UTC)
    with directory:
        study = directory.study()
        with watch.stage("data"):
            prepared = prepare(study)
        with watch.stage("features"):
            task = make_task(study, prepared.dataset, listener)
        with watch.stage("training"):
            terms, trained, ledgers = _train(prepared, task, directory, listener)
        baselines = {}
        if study.report.baselines:
            with watch.stage("baselines"):
                baselines = _baselines(prepared, task, directory, listener)
        return Outcome(
            prepared=prepared,
            task=task,
            terms=terms,
            trained=trained,
            ledgers=ledgers,
            baselines=baselines,
            seconds=watch.seconds,
            started=started,
        ).write(directory)


def _train(
    prepared: Prepared, task: Task, directory: RunDirectory, listener: Progress, label: str = "training"
) -> tuple[Terms, Trained, dict[str, LedgerState]]:
    """Open the simulated sites, train with them, and close their ledgers."""
    terms = make_terms(prepared.study, sites=tuple(prepared.sites), model=task.model)
    with ExitStack() as stack:
        ledgers = _open_ledgers(stack, terms, directory)
        trained = train(
            prepared.study,
            terms,
            task.model,
            InProcess(_sites(prepared, task, terms, ledgers)),
            directory,
            evaluate=TestSet(task).point,
            progress=listener,
            label=label,
        )
        return terms, trained, {name: ledger.state for name, ledger in ledgers.items()}


def _baselines(
    prepared: Prepared, task: Task, directory: RunDirectory, listener: Progress
) -> dict[str, dict[str, Any]]:
    """Test metrics of the study's alternatives: the same training, other sites or another trust.

    Pooling without privacy is left out: at full participation it takes the same steps as the federation does.
    """
    everyone = {"pooled": np.concatenate(list(prepared.sites.values()))}
    alternatives = {
        "no_privacy": [(prepared.sites, "none")],
        "pooled": [(everyone, "server")],
        "alone": [({name: rows}, "site") for name, rows in prepared.sites.items()],
        "alone_no_privacy": [({name: rows}, "none") for name, rows in prepared.sites.items()],
    }
    results = {}
    for name, runs in alternatives.items():
        metrics = []
        for number, (sites, trust) in enumerate(runs):
            changes: dict[str, dict[str, object]] = {
                "privacy": {"trust": trust},
                "federation": {"min_sites": None, "min_honest": None},
            }
            study = prepared.study.with_changes(changes)
            alternative = replace(prepared, study=study, sites=sites)
            folder = directory.scratch(f"{name}-{number}", study)
            _, trained, _ = _train(alternative, replace(task, study=study), folder, listener, name)
            test = TestSet(task)
            metrics.append(test.metrics(test.probabilities(trained.parameters), trained.statistics))
        results[name] = metrics[0] if len(metrics) == 1 else _mean(metrics)
    return results


def _mean(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each plain number over several runs on the same test set."""
    plain = [key for key, value in metrics[0].items() if isinstance(value, float)]
    return {"n": metrics[0]["n"]} | {key: float(np.mean([one[key] for one in metrics])) for key in plain}


def _open_ledgers(stack: ExitStack, terms: Terms, directory: RunDirectory) -> dict[str, Ledger]:
    """One ledger a simulated site, whose budget is exactly the study's target; none without privacy."""
    if terms.trust == "none":
        return {}
    target = terms.target
    budget = Budget(target.epsilon, target.delta, target.unit)
    return {name: stack.enter_context(Ledger(directory.ledger(name), budget)) for name in terms.sites}


def _sites(prepared: Prepared, task: Task, terms: Terms, ledgers: dict[str, Ledger]) -> list[Site]:
    """Sites that have admitted the terms, and know each other's keys."""
    policy = Policy(trusts=frozenset({terms.trust}))
    keys = {name: Ed25519PrivateKey.generate() for name in terms.sites}
    pinned = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    sites = [
        Site(
            name,
            task.learner(rows),
            policy,
            ledgers.get(name),
            Identity(keys[name], pinned),
            held_out=task.held_out(prepared.held_out.get(name, NOTHING)),
        )
        for name, rows in prepared.sites.items()
    ]
    for site in sites:
        site.admit(terms)
    return sites
