"""A whole study on one machine: every site in this process, every line of the protocol as between hospitals."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fedveil.federation import InProcess, Policy, Site, Terms
from fedveil.privacy import Budget, Ledger
from fedveil.study.evaluation import TestSet
from fedveil.study.outcome import Outcome
from fedveil.study.prepare import Prepared, prepare
from fedveil.study.progress import Progress, Silent
from fedveil.study.rundir import RunDirectory
from fedveil.study.settings import Study
from fedveil.study.task import Task, make_task
from fedveil.study.terms import make_terms
from fedveil.study.training import train

__all__ = ["run"]


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
        terms = make_terms(study, sites=tuple(prepared.sites), model=task.model)
        test = TestSet(task)
        with ExitStack() as stack, watch.stage("training"):
            ledgers = _open_ledgers(stack, terms, directory)
            trained = train(
                study,
                terms,
                task.model,
                InProcess(_sites(prepared, task, terms, ledgers)),
                directory,
                evaluate=test.point,
                progress=listener,
            )
            states = {name: ledger.state for name, ledger in ledgers.items()}
        return Outcome(
            prepared=prepared,
            task=task,
            terms=terms,
            trained=trained,
            ledgers=states,
            baselines={},
            seconds=watch.seconds,
            started=started,
        ).write(directory)


def _open_ledgers(stack: ExitStack, terms: Terms, directory: RunDirectory) -> dict[str, Ledger]:
    """One ledger a simulated site, whose budget is exactly the study's target; none without privacy."""
    if terms.trust == "none":
        return {}
    target = terms.target
    budget = Budget(target.epsilon, target.delta, target.unit)
    return {name: stack.enter_context(Ledger(directory.ledger(name), budget)) for name in terms.sites}


def _sites(prepared: Prepared, task: Task, terms: Terms, ledgers: dict[str, Ledger]) -> list[Site]:
    policy = Policy(trusts=frozenset({terms.trust}))
    sites = [
        Site(name, task.learner(rows), policy, ledgers.get(name)) for name, rows in prepared.sites.items()
    ]
    for site in sites:
        site.admit(terms)
    return sites
