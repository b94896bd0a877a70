"""The rounds of a study, the same for every transport: collect a protected sum, step, checkpoint, tell.

Everything here is post-processing of what `Coordinator.collect` returns. Sums are divided by the released (noisy)
number of patients, or by the public constant of the study file: never by a private count.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.federation import BudgetSpent, Coordinator, RoundSum, Terms, Transport
from fedveil.learning import Optimizer, OptimizerState
from fedveil.study.progress import Progress
from fedveil.study.rundir import RunDirectory
from fedveil.study.settings import Study

__all__ = ["Trained", "TrainingState", "train"]

Vector = npt.NDArray[np.float64]
Evaluate = Callable[[Vector, Vector | None], Mapping[str, float] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """What one round hands to the next.

    Attributes:
        round: rounds of training that are finished.
        counts: released, noisy class counts; None before or without that release.
        optimizer: parameters and moments.
    """

    round: int
    counts: Vector | None
    optimizer: OptimizerState


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The end of training: the released parameters, the class counts, and the rounds that the budget paid for."""

    parameters: Vector
    counts: Vector | None
    rounds: int
    coordinator: Coordinator


class _Loop:
    """One process's share of a study's rounds."""

    def __init__(
        self,
        study: Study,
        terms: Terms,
        transport: Transport,
        directory: RunDirectory,
        optimizer: Optimizer,
        evaluate: Evaluate,
        progress: Progress,
    ) -> None:
        self.study, self.terms, self.directory = study, terms, directory
        self.optimizer, self.evaluate, self.progress = optimizer, evaluate, progress
        session = directory.begin_session()
        self.coordinator = Coordinator(terms, transport, attempt=session << 32)

    def run(self, initial: Vector) -> Trained:
        state = self._restore(initial)
        release = self.terms.release("training")
        self.progress.stage("training", release.mechanism.steps, state.round)
        try:
            if state.counts is None and self.terms.releases[0].name == "class-counts":
                state = self._count_classes(state)
            while state.round < release.mechanism.steps:
                state = self._round(state)
        except BudgetSpent:
            if state.round == 0:
                raise
        return Trained(
            parameters=self.optimizer.released(state.optimizer),
            counts=state.counts,
            rounds=state.round,
            coordinator=self.coordinator,
        )

    def _count_classes(self, state: TrainingState) -> TrainingState:
        release = self.terms.release("class-counts")
        collected = self.coordinator.collect(release, 1, np.empty(0))
        state = replace(state, counts=np.maximum(collected.total, 1.0))
        self._checkpoint(state)
        return state

    def _round(self, state: TrainingState) -> TrainingState:
        started = time.perf_counter()
        release = self.terms.release("training")
        number = state.round + 1
        collected = self.coordinator.collect(release, number, self.optimizer.query(state.optimizer))
        gradient = collected.total / self._normalizer(state)
        state = replace(state, round=number, optimizer=self.optimizer.step(state.optimizer, gradient))
        self._checkpoint(state)
        self._tell(state, collected, float(np.linalg.norm(gradient)), time.perf_counter() - started)
        return state

    def _normalizer(self, state: TrainingState) -> float:
        """The number of units that one step averages over: as released, or as the study file states it."""
        stated = self.study.training.units
        if stated is not None:
            return float(stated)
        if state.counts is None:
            raise AssertionError("the study settings guarantee class counts or stated units")
        return float(state.counts.sum()) * self.terms.release("training").mechanism.sampling_rate

    def _tell(self, state: TrainingState, collected: RoundSum, norm: float, seconds: float) -> None:
        spent = self.coordinator.epsilon_spent()
        test = self.evaluate(self.optimizer.released(state.optimizer), state.counts)
        self.directory.append_round(
            {
                "round": state.round,
                "sites": collected.survivors,
                "dropped": [{"site": d.site, "reason": d.reason} for d in collected.dropped],
                "epsilon_spent": spent,
                "seconds": seconds,
                "update_norm": norm,
                "test": test,
            }
        )
        note = f"epsilon {spent:.3f}" if np.isfinite(spent) else "no privacy"
        self.progress.advance(note=note + (f", AUROC {test['auroc']:.3f}" if test and "auroc" in test else ""))

    def _checkpoint(self, state: TrainingState) -> None:
        arrays: dict[str, npt.NDArray[Any]] = {
            f"optimizer.{name}": value for name, value in self.optimizer.to_arrays(state.optimizer).items()
        }
        if state.counts is not None:
            arrays["counts"] = state.counts
        meta = {"round": state.round, "charged": self.coordinator.charged}
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
        self.directory.save_checkpoint(arrays)

    def _restore(self, initial: Vector) -> TrainingState:
        arrays = self.directory.load_checkpoint()
        if arrays is None:
            self.directory.cut_rounds(0)
            return TrainingState(round=0, counts=None, optimizer=self.optimizer.init(initial))
        meta = json.loads(arrays["meta"].tobytes())
        self.directory.cut_rounds(meta["round"])
        self.coordinator.charged = meta["charged"]
        return TrainingState(
            round=meta["round"],
            counts=arrays.get("counts"),
            optimizer=self.optimizer.from_arrays(
                {name.removeprefix("optimizer."): a for name, a in arrays.items() if name.startswith("optimizer.")}
            ),
        )


def train(
    study: Study,
    terms: Terms,
    transport: Transport,
    directory: RunDirectory,
    *,
    initial: Vector,
    optimizer: Optimizer,
    evaluate: Evaluate,
    progress: Progress,
) -> Trained:
    """Run, or resume, the rounds of a study.

    Args:
        study: the resolved study.
        terms: what coordinator and sites agreed on.
        transport: reaches the sites.
        directory: the run's directory; checkpoint and round log live there.
        initial: parameters before the first round, equal at every start.
        optimizer: the server's update rule.
        evaluate: public test metrics of parameters, for the learning curve; never used to choose anything.
        progress: told of every round.

    Raises:
        FederationError: too few sites are left; the run can be resumed.
    """
    return _Loop(study, terms, transport, directory, optimizer, evaluate, progress).run(initial)
