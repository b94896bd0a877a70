"""The rounds of a study, the same for every transport: collect a protected sum, step, checkpoint, tell.

Everything here is post-processing of what `Coordinator.collect` returns. Sums of gradients are divided by the released
(noisy) number of units, or by the public constant of the study file: never by a private count. Sums of differences
that sites' local steps made are divided by the number of sites.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.errors import StudyError
from fedveil.federation import (
    CALIBRATION,
    EVALUATION,
    PROGRESS,
    STATISTICS,
    BudgetSpent,
    Coordinator,
    Release,
    RoundSum,
    Terms,
    Transport,
)
from fedveil.learning import CentredHead, ClassStatistics, Model, OptimizerState, ScoreHistogram
from fedveil.study.phases import Check, Phase, checks, make_phases, stops
from fedveil.study.progress import Progress
from fedveil.study.rules import Steps, units_per_round
from fedveil.study.rundir import RunDirectory
from fedveil.study.settings import Study

__all__ = ["Evaluate", "Trained", "train"]

Vector = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]
POINTS = 20
"""Most points on a network's learning curve."""
Evaluate = Callable[[Vector, Vector | None], Mapping[str, float] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The end of training.

    Attributes:
        parameters: the released model, whole.
        statistics: what was released before training.
        histogram: what was released of the hospitals' held-out units; None where nothing was.
        rounds: rounds that were finished; fewer than planned where interrupted ones used up budget, or it stopped.
        checks: the checks of progress, in order.
        stopped: whether the last of them ended training.
        coordinator: who asked, with what was charged.
    """

    parameters: Vector
    statistics: ClassStatistics | None
    histogram: ScoreHistogram | None
    rounds: int
    coordinator: Coordinator
    checks: tuple[Check, ...] = ()
    stopped: bool = False

    @property
    def priors(self) -> Vector | None:
        """(classes,) class frequencies; None where none were released."""
        return None if self.statistics is None else self.statistics.priors


@dataclass(frozen=True, slots=True, kw_only=True)
class Progression:
    """What one round hands to the next: how many are finished, and the optimiser's state."""

    round: int
    optimizer: OptimizerState


@dataclass(slots=True)
class _Checkpoint:
    """The run's checkpoint: the arrays that a resumed process needs, replaced after each exchange."""

    directory: RunDirectory
    coordinator: Coordinator
    arrays: Arrays = field(default_factory=dict)
    round: int = 0

    def load(self) -> None:
        self.arrays = self.directory.load_checkpoint() or {}
        if "meta" in self.arrays:
            meta = json.loads(self.arrays.pop("meta").tobytes())
            self.round = meta["round"]
        self.coordinator.charged = self.directory.charged()
        self.directory.cut_rounds(self.round)

    def save(self, finished: int, arrays: Arrays) -> None:
        self.round = finished
        self.arrays |= arrays
        meta = json.dumps({"round": finished})
        self.directory.save_checkpoint(self.arrays | {"meta": np.frombuffer(meta.encode(), dtype=np.uint8)})


def _kept(name: str, number: int) -> str:
    """Under which name a checkpoint keeps a sum beside training."""
    return name if number == 1 else f"{name}-{number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loop:
    """One process's share of a study's rounds; see `train` for the fields."""

    study: Study
    terms: Terms
    model: Model
    coordinator: Coordinator
    checkpoint: _Checkpoint
    directory: RunDirectory
    evaluate: Evaluate
    progress: Progress
    label: str

    def run(self) -> Trained:
        self.checkpoint.load()
        statistics = self._statistics()
        if self.study.training.method == "one-shot":
            return self._one_shot(statistics)
        steps = Steps.plan(self.study, self.terms, self.model, statistics)
        state = self._start(steps)
        self.progress.stage(self.label, self.study.training.rounds, state.round)
        found: list[Check] = []
        for number, phase in enumerate(make_phases(self.study), 1):
            state = self._phase(phase, state, statistics, steps)
            check = self._check(number, phase, state, statistics, steps)
            found += [check] if check else []
            if state.round < phase.end or stops(found):
                break
        trained = steps.optimizer.released(state.optimizer)
        shift = self._shift(state.round, self._whole(trained, statistics), statistics)
        parameters = self.model.join(statistics, trained, shift)
        return Trained(
            parameters=parameters,
            statistics=statistics,
            histogram=self._histogram(state.round, parameters, statistics),
            rounds=state.round,
            coordinator=self.coordinator,
            checks=tuple(found),
            stopped=stops(found),
        )

    def _one_shot(self, statistics: ClassStatistics | None) -> Trained:
        """The head that statistics alone give; its threshold may be released beside it."""
        if statistics is None or not isinstance(self.model, CentredHead):
            raise StudyError(
                "there are no class statistics",
                "one round is made of them",
                "train a linear head on features",
            )
        self.progress.stage(self.label, 1, 1)
        trained, shift = self.model.one_shot(statistics)
        moved = self._shift(0, self._whole(trained, statistics), statistics)
        parameters = self.model.join(statistics, trained, shift if moved is None else moved)
        return Trained(
            parameters=parameters,
            statistics=statistics,
            histogram=self._histogram(0, parameters, statistics),
            rounds=0,
            coordinator=self.coordinator,
        )

    def _affordable(self, wanted: Release) -> bool:
        """Whether the target pays for one more of a release, beside what was asked for and what is still to come.

        It always does where no more is asked for than was planned. Requests that were repeated, since a site or this
        process failed, are paid for by rounds of training that are left out.
        """
        asked = dict(self.coordinator.charged)
        asked[wanted.name] = asked.get(wanted.name, 0) + wanted.steps_per_round
        optional = {one.name for one in self.terms.phases} | {PROGRESS}
        for one in self.terms.releases:
            if one.name not in optional and one.name not in self.checkpoint.arrays:
                asked[one.name] = max(asked.get(one.name, 0), one.mechanism.steps)
        return self.terms.affords(asked)

    def _release(
        self, name: str, finished: int, parameters: Vector, number: int = 1
    ) -> tuple[Vector, float] | None:
        """A sum beside training, and its noise variance: from the checkpoint, or the sites; None if there is none."""
        release = next((one for one in self.terms.releases if one.name == name), None)
        if release is None:
            return None
        kept = _kept(name, number)
        if kept not in self.checkpoint.arrays:
            if not self._affordable(release):
                raise BudgetSpent(
                    f"{name} was asked for {self.coordinator.charged.get(name, 0)} times without an answer",
                    "each time was charged, and the study's target pays for no more",
                    "start the study anew, with a budget of its own",
                )
            collected = self.coordinator.collect(release, number, parameters)
            variance = self.terms.noise_variance(release.mechanism, len(collected.survivors))
            rate = release.mechanism.sampling_rate
            arrays = {kept: collected.total / rate, f"{kept}.variance": np.array(variance / rate**2)}
            self.checkpoint.save(finished, arrays)
        saved = self.checkpoint.arrays
        return saved[kept], float(saved[f"{kept}.variance"])

    def _statistics(self) -> ClassStatistics | None:
        released = self._release(STATISTICS, 0, np.empty(0))
        return None if released is None else self.model.read_statistics(*released)

    def _shift(self, finished: int, whole: Vector, statistics: ClassStatistics | None) -> Vector | None:
        """The middle between the classes' mean logits, released last."""
        try:
            released = self._release(CALIBRATION, finished, whole)
        except BudgetSpent:
            return None
        return None if released is None else self.model.read_shift(*released, whole, statistics)

    def _histogram(
        self, finished: int, parameters: Vector, statistics: ClassStatistics | None
    ) -> ScoreHistogram | None:
        """Scores of the hospitals' held-out units, by class."""
        classes = self.model.classes
        try:
            released = self._release(EVALUATION, finished, self._judged(parameters, statistics))
        except BudgetSpent:
            return None
        if released is None:
            return None
        rate = self.terms.release(EVALUATION).mechanism.sampling_rate
        return ScoreHistogram.from_released(released[0], classes, released[1], rate)

    def _judged(self, parameters: Vector, statistics: ClassStatistics | None) -> Vector:
        """What sites are sent to judge a model: class frequencies and its parameters."""
        classes = self.model.classes
        priors = np.full(classes, 1 / classes) if statistics is None else statistics.priors
        return np.concatenate([priors, parameters])

    def _phase(
        self, phase: Phase, state: Progression, statistics: ClassStatistics | None, steps: Steps
    ) -> Progression:
        """The rounds of a phase that are left and paid for."""
        try:
            while state.round < phase.end and self._affordable(self.terms.release(phase.release)):
                state = self._round(state, phase, statistics, steps)
        except BudgetSpent:
            if state.round == 0:
                raise
        return state

    def _check(
        self,
        number: int,
        phase: Phase,
        state: Progression,
        statistics: ClassStatistics | None,
        steps: Steps,
    ) -> Check | None:
        """The check after a phase; None where the study plans none there, or the budget pays for no more.

        A resumed run takes those of earlier phases from its checkpoint, and makes none up that were left out.
        """
        missed = state.round > phase.end and _kept(PROGRESS, number) not in self.checkpoint.arrays
        if number > checks(self.study) or state.round < phase.end or missed:
            return None
        judged = self._judged(self._released(state, statistics, steps), statistics)
        try:
            released = self._release(PROGRESS, state.round, judged, number)
        except BudgetSpent:
            return None
        if released is None:
            return None
        units = units_per_round(self.study, self.terms, statistics) / self.study.training.sampling_rate
        return Check(
            round=phase.end, accuracy=float(released[0][0]) / units, std=math.sqrt(released[1]) / units
        )

    def _start(self, steps: Steps) -> Progression:
        if self.checkpoint.round == 0:
            return Progression(round=0, optimizer=steps.optimizer.init(self.model.initial()))
        return Progression(
            round=self.checkpoint.round, optimizer=steps.optimizer.from_arrays(self.checkpoint.arrays)
        )

    def _round(
        self, state: Progression, phase: Phase, statistics: ClassStatistics | None, steps: Steps
    ) -> Progression:
        started = time.perf_counter()
        release = self.terms.release(phase.release)
        query = self._whole(steps.optimizer.query(state.optimizer), statistics)
        collected = self.coordinator.collect(release, state.round + 1 - phase.before, query)
        gradient, variance = steps.gradient(collected, self.terms, release, phase.weight)
        after = Progression(
            round=state.round + 1,
            optimizer=steps.optimizer.step(state.optimizer, gradient, noise_variance=variance),
        )
        self.checkpoint.save(after.round, steps.optimizer.to_arrays(after.optimizer))
        seconds = time.perf_counter() - started
        planned = self.study.training.rounds
        judged = after.round % self._every(planned) == 0 or after.round == planned
        priors = None if statistics is None else statistics.priors
        point = self.evaluate(self._released(after, statistics, steps), priors) if judged else None
        self._tell(after.round, collected, point, float(np.linalg.norm(gradient)), seconds)
        return after

    def _every(self, planned: int) -> int:
        """Rounds between two points of the learning curve: to judge a network takes a tenth of a round's time."""
        return 1 if self.study.model.network == "linear" else math.ceil(planned / POINTS)

    def _whole(self, trained: Vector, statistics: ClassStatistics | None) -> Vector:
        return self.model.join(statistics, trained)

    def _released(self, state: Progression, statistics: ClassStatistics | None, steps: Steps) -> Vector:
        return self._whole(steps.optimizer.released(state.optimizer), statistics)

    def _tell(
        self, number: int, collected: RoundSum, point: Mapping[str, float] | None, norm: float, seconds: float
    ) -> None:
        spent = self.coordinator.epsilon_spent()
        self.directory.append_round(
            {
                "round": number,
                "sites": collected.survivors,
                "dropped": [{"site": d.site, "reason": d.reason} for d in collected.dropped],
                "epsilon_spent": spent,
                "seconds": seconds,
                "update_norm": norm,
                "test": point,
            }
        )
        note = f"epsilon {spent:.3f}" if np.isfinite(spent) else "no privacy"
        if self.coordinator.left_out:
            note += f", without {', '.join(self.coordinator.left_out)}"
        self.progress.advance(note=note + (f", AUROC {point['auroc']:.3f}" if point else ""))


def train(
    study: Study,
    terms: Terms,
    model: Model,
    transport: Transport,
    directory: RunDirectory,
    *,
    evaluate: Evaluate,
    progress: Progress,
    label: str = "training",
) -> Trained:
    """Run, or resume, the rounds of a study.

    Args:
        study: the resolved study.
        terms: what coordinator and sites agreed on.
        model: what is trained.
        transport: reaches the sites.
        directory: the run's directory; checkpoint and round log live there.
        evaluate: public test metrics of parameters, for the learning curve; never used to choose anything.
        progress: told of every round.
        label: what the stage is called there.

    Raises:
        FederationError: too few sites are left; the run can be resumed.
    """
    coordinator = Coordinator(
        terms, transport, attempt=directory.begin_session() << 32, note=directory.note_charged
    )
    return _Loop(
        study=study,
        terms=terms,
        model=model,
        coordinator=coordinator,
        checkpoint=_Checkpoint(directory, coordinator),
        directory=directory,
        evaluate=evaluate,
        progress=progress,
        label=label,
    ).run()
