"""A study from its file to its result: the same code for simulation and deployment.

What differs is behind `Hospitals`: simulated sites in this process (`fedveil.study.simulation`), or real ones over a
network (`fedveil.deploy.coordinator.runner`).
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fedveil.federation import Agreement, Transport
from fedveil.privacy import LedgerState
from fedveil.study.evaluation import TestSet
from fedveil.study.pipeline import Task, make_task
from fedveil.study.prepare import Prepared
from fedveil.study.progress import Progress
from fedveil.study.results.outcome import HandedOver, Outcome
from fedveil.study.results.run_directory import RunDirectory
from fedveil.study.settings.schema import Study
from fedveil.study.training import Trained, train

__all__ = ["Hospitals", "Joined", "carry_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """Hospitals that have admitted a study and answer requests.

    Attributes:
        agreement: what coordinator and sites agreed on.
        transport: reaches the sites.
        ledgers: after training, upper bounds on what the sites' ledgers hold of the study; empty without privacy.
        hand_over: sends every site the finished model.
    """

    agreement: Agreement
    transport: Transport
    ledgers: Callable[[Trained], Mapping[str, LedgerState]]
    hand_over: Callable[[Trained], HandedOver]


class Hospitals(ABC):
    """The sites of a study."""

    @abstractmethod
    def prepare(self, study: Study) -> Prepared:
        """The study's data that is known here: the test images, and every image of simulated sites."""

    @abstractmethod
    def join(self, prepared: Prepared, task: Task, directory: RunDirectory) -> AbstractContextManager[Joined]:
        """Have the sites admit the study, and keep the connection while the context is open."""

    def baselines(
        self, prepared: Prepared, task: Task, directory: RunDirectory, progress: Progress
    ) -> Mapping[str, Any]:
        """Test metrics of alternatives for comparison; none here, since on real patients each would have to be
        charged."""
        del prepared, task, directory, progress
        return {}


@dataclass(slots=True)
class Stopwatch:
    """Seconds per stage; a stage lasts until the next one begins."""

    seconds: dict[str, float] = field(default_factory=dict)
    _stage: str = ""
    _since: float = 0.0

    def begin(self, stage: str = "") -> None:
        """End the current stage and begin the next; the empty name ends the last one."""
        now = time.perf_counter()
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now


def carry_out(directory: RunDirectory, hospitals: Hospitals, progress: Progress) -> dict[str, Any]:
    """Run, or resume, the study of a run directory with these hospitals; return what ``result.json`` holds.

    Raises:
        DataError, InvalidValue: the data or the settings cannot be used; nothing was charged.
        FederationError: too few sites remained; the run can be resumed.
    """
    watch = Stopwatch()
    started = datetime.now(UTC)
    with directory:
        watch.begin("data")
        prepared = hospitals.prepare(directory.study())
        study = directory.pin(prepared.study)
        watch.begin("features")
        apart = None if prepared.sites else nullcontext  # a coordinator of real hospitals waits for long
        task = make_task(study, prepared.dataset, progress, apart)
        watch.begin("joining")
        with hospitals.join(prepared, task, directory) as joined:
            watch.begin("training")
            trained = train(
                study,
                joined.agreement,
                task.model,
                joined.transport,
                directory,
                evaluate=TestSet(task).point,
                progress=progress,
            )
            handed_over = joined.hand_over(trained)
            ledgers = joined.ledgers(trained)
        watch.begin("baselines")
        baselines = hospitals.baselines(prepared, task, directory, progress)
        watch.begin()
        return Outcome(
            prepared=prepared,
            task=task,
            agreement=joined.agreement,
            trained=trained,
            ledgers=ledgers,
            handed_over=handed_over,
            baselines=baselines,
            seconds=watch.seconds,
            started=started,
        ).write(directory)
