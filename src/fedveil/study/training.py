"""The rounds of a study, the same for every transport: collect a protected sum, step, checkpoint, tell.

Everything here is post-processing of what `Coordinator.collect` returns. Sums of gradients are divided by the released
(noisy) number of units, or by the public constant of the study file: never by a private count. Sums of differences
from sites' local steps are divided by the number of sites.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.errors import StudyError
from fedveil.federation import (
    Agreement,
    BudgetSpent,
    Coordinator,
    ModelState,
    NoisySum,
    OneSum,
    Release,
    Rounds,
    RoundSum,
    Seen,
    Transport,
)
from fedveil.federation.levels.grid import Calibration, Evidence
from fedveil.federation.levels.rule import Forecast
from fedveil.learning import (
    CentredHead,
    Certainty,
    ClassStatistics,
    FindingMeans,
    FindingsHead,
    GradesHead,
    Histogram,
    Model,
    OptimizerState,
    PublicStart,
    ReleasedSubgroups,
    Statistics,
)
from fedveil.study.progress import Progress
from fedveil.study.results.run_directory import RunDirectory
from fedveil.study.results.schema import Dropped, Point, RoundLine
from fedveil.study.settings.schema import Study
from fedveil.study.steps import Steps

__all__ = ["Evaluate", "Trained", "train"]

Vector = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]
POINTS = 20
"""Most points on a network's learning curve."""
Evaluate = Callable[[Vector, Vector | None], Mapping[str, float] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The result of training.

    Attributes:
        parameters: the released model, whole.
        statistics: what was released before training.
        histogram: the release about the hospitals' held-out units; None without one.
        subgroups: the release about their subgroups; None without one.
        certainty: how sure the decision rule is; None if no threshold was released.
        skipped: releases that were not asked for, because noise was known to drown them; nothing was charged.
        rounds: number of finished rounds; fewer than planned if interrupted ones used up budget.
        agreement: what was executed: of a calibrated study, the pilot and the chosen level.
        forecast: what a calibrated study predicted from its pilot; None for others.
        coordinator: the coordinator, with its count of charges.
    """

    parameters: Vector
    statistics: Statistics | None
    histogram: Histogram | None
    certainty: Certainty | None
    skipped: tuple[str, ...]
    rounds: int
    agreement: Agreement
    coordinator: Coordinator
    forecast: Forecast | None = None
    subgroups: ReleasedSubgroups | None = None

    @property
    def priors(self) -> Vector | None:
        """(classes,) class frequencies; None if none were released."""
        return None if self.statistics is None else self.statistics.priors


@dataclass(frozen=True, slots=True, kw_only=True)
class Progression:
    """The state between rounds: the number of finished rounds, and the optimiser's state."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loop:
    """The rounds of a study that one process runs; see `train` for the fields."""

    study: Study
    agreement: Agreement
    model: Model
    coordinator: Coordinator
    checkpoint: _Checkpoint
    directory: RunDirectory
    evaluate: Evaluate
    progress: Progress
    label: str
    evidence: Vector = field(default_factory=lambda: np.empty(0))
    forecast: Forecast | None = None

    def run(self) -> Trained:
        self.checkpoint.load()
        state = ModelState(model=self.model, parameters=self.model.join(None, self.model.initial()))
        if self.agreement.calibration is None:
            return self._run(state, self.agreement.releases)
        return self._calibrated(state, self.agreement.calibration)

    def _calibrated(self, state: ModelState, calibration: Calibration) -> Trained:
        """The pilot, then the level that the rule picks from it; a resumed run finds the same in its checkpoint."""
        for release in calibration.pilot:
            if isinstance(release.query, OneSum):
                state = self._once(release, release.query, state, 0)
        saved = self.checkpoint.arrays
        survivors = tuple(int(saved[f"{one.name}.survivors"].sum()) for one in calibration.pilot)
        totals = tuple(saved[one.name] for one in calibration.pilot)
        evidence = Evidence(survivors, totals).to_vector()
        forecast = calibration.forecast(calibration.read(evidence))
        chosen = self.agreement.at_level(forecast.level)
        found = replace(self, agreement=chosen, evidence=evidence, forecast=forecast)
        return found._run(state, calibration.level(forecast.level).releases)

    def _run(self, state: ModelState, releases: Sequence[Release]) -> Trained:
        finished, skipped = 0, []
        for release in releases:
            query = release.query
            if isinstance(query, Rounds):
                state, finished = self._train(release, query, state)
            elif isinstance(query, OneSum) and not query.at_site:
                if self._drowned(release, query, state):
                    skipped.append(query.name)
                    continue
                state = self._once(release, query, state, finished)
                if release is self.agreement.main:
                    state = self._at_once(state)
        return Trained(
            parameters=state.parameters,
            statistics=state.statistics,
            histogram=state.histogram,
            subgroups=state.subgroups,
            certainty=state.certainty,
            skipped=tuple(skipped),
            rounds=finished,
            agreement=self.agreement,
            forecast=self.forecast,
            coordinator=self.coordinator,
        )

    def _drowned(self, release: Release, query: OneSum, state: ModelState) -> bool:
        """Whether the released class sizes tell that noise would drown a release: it is neither asked nor charged."""
        if state.statistics is None or release.name in self.checkpoint.arrays:
            return False
        rate = release.mechanism.sampling_rate
        variance = self.agreement.noise_variance(release, len(self.agreement.sites)) / rate**2
        return query.drowned(self.model, variance, state.statistics.groups)

    def _at_once(self, state: ModelState) -> ModelState:
        """The head made from statistics alone; its threshold may be released later."""
        self.progress.stage(self.label, 1, 1)
        if isinstance(state.statistics, ClassStatistics) and isinstance(self.model, CentredHead | GradesHead):
            return state.at(*self.model.one_shot(state.statistics))
        if isinstance(state.statistics, FindingMeans) and isinstance(self.model, FindingsHead):
            return state.at(*self.model.one_shot(state.statistics))
        raise StudyError(
            "there are no class statistics",
            "a one-shot model is made from them",
            "train a linear head on features",
        )

    def _affordable(self, wanted: Release) -> bool:
        """Whether the target covers one more of a release, in addition to past requests and what is still planned.

        It always does unless requests were repeated. If they were, because a site or this process failed, rounds of
        training are omitted to pay for them.
        """
        asked = dict(self.coordinator.charged)
        asked[wanted.name] = asked.get(wanted.name, 0) + wanted.steps_per_round
        for one in self.agreement.releases:
            if not isinstance(one.query, Rounds) and one.name not in self.checkpoint.arrays:
                asked[one.name] = max(asked.get(one.name, 0), one.mechanism.steps)
        return self.agreement.affords(asked)

    def _once(self, release: Release, query: OneSum, state: ModelState, finished: int) -> ModelState:
        """A sum other than training's, from the checkpoint or the sites, decoded."""
        name, rate = release.name, release.mechanism.sampling_rate
        if name not in self.checkpoint.arrays:
            try:
                collected = self._collect(release, query.sent(state))
            except BudgetSpent:
                if query.optional:
                    return state
                raise
            variance = self.agreement.noise_variance(release, len(collected.survivors))
            arrays = {name: collected.total / rate, f"{name}.variance": np.array(variance / rate**2)}
            arrays[f"{name}.survivors"] = np.isin(self.agreement.sites, collected.survivors)
            self.checkpoint.save(finished, arrays)
        return query.decode(self._noisy(release), state)

    def _noisy(self, release: Release) -> NoisySum:
        """A sum from the checkpoint, combined with the pilot's sum of the same query if the same sites are in both.

        Both are noisy versions of one exact sum; weights are the inverse variances, so nothing of the pilot is lost.
        """
        saved, rate = self.checkpoint.arrays, release.mechanism.sampling_rate
        names = [release.name]
        before = release.query.name
        if release.level is not None and f"{before}.survivors" in saved and rate == 1:
            same = np.array_equal(saved[f"{before}.survivors"], saved[f"{release.name}.survivors"])
            names += [before] if same else []
        weights = (
            np.array([1 / float(saved[f"{name}.variance"]) for name in names])
            if len(names) > 1
            else np.ones(1)
        )
        total = sum(weight * saved[name] for weight, name in zip(weights, names, strict=True)) / weights.sum()
        variance = float(saved[f"{release.name}.variance"]) if len(names) == 1 else float(1 / weights.sum())
        return NoisySum(np.asarray(total), variance, rate)

    def _sent(self, release: Release, parameters: Vector) -> Vector:
        """The parameters of a request: those of a level begin with the evidence for it."""
        return parameters if release.level is None else np.concatenate([self.evidence, parameters])

    def _collect(self, release: Release, parameters: Vector) -> RoundSum:
        if not self._affordable(release):
            raise BudgetSpent(
                f"{release.name} was asked for {self.coordinator.charged.get(release.name, 0)} times without an answer",
                "each time was charged, and the study's target covers no more",
                "start the study again, with a new budget",
            )
        return self.coordinator.collect(release, 1, self._sent(release, parameters))

    def _train(self, release: Release, query: Rounds, state: ModelState) -> tuple[ModelState, int]:
        """Run the remaining rounds that the budget covers; return the model and the number of finished rounds."""
        start: PublicStart | None = getattr(self.model, "start", None)  # some models have none
        steps = Steps.plan(self.study, self.agreement, query, state.statistics, start)
        at, planned = self._start(steps), self.study.training.rounds
        self.progress.stage(self.label, planned, at.round)
        try:
            while at.round < planned and self._affordable(release):
                at = self._round(at, release, query, state, steps)
        except BudgetSpent:
            if at.round == 0:
                raise
        return state.at(steps.optimizer.released(at.optimizer)), at.round

    def _start(self, steps: Steps) -> Progression:
        if self.checkpoint.round == 0:
            return Progression(round=0, optimizer=steps.optimizer.init(self.model.initial()))
        return Progression(
            round=self.checkpoint.round, optimizer=steps.optimizer.from_arrays(self.checkpoint.arrays)
        )

    def _round(
        self, before: Progression, release: Release, query: Rounds, state: ModelState, steps: Steps
    ) -> Progression:
        started = time.perf_counter()
        asked = state.at(steps.optimizer.query(before.optimizer)).parameters
        collected = self.coordinator.collect(release, before.round + 1, self._sent(release, asked))
        gradient, variance = steps.gradient(collected, self.agreement, release, query)
        after = Progression(
            round=before.round + 1,
            optimizer=steps.optimizer.step(before.optimizer, gradient, noise_variance=variance),
        )
        self.checkpoint.save(after.round, steps.optimizer.to_arrays(after.optimizer))
        seconds = time.perf_counter() - started
        planned = self.study.training.rounds
        judged = after.round % self._every(planned) == 0 or after.round == planned
        reached = state.at(steps.optimizer.released(after.optimizer))
        point = self.evaluate(reached.parameters, state.frequencies) if judged else None
        self._tell(after.round, collected, point, float(np.linalg.norm(gradient)), seconds)
        return after

    def _every(self, planned: int) -> int:
        """Rounds between two points of the learning curve: evaluating a network takes a tenth of a round's time."""
        return 1 if self.study.model.network == "linear" else math.ceil(planned / POINTS)

    def _tell(
        self, number: int, collected: RoundSum, point: Mapping[str, float] | None, norm: float, seconds: float
    ) -> None:
        spent = self.coordinator.epsilon_spent()
        self.directory.append_round(
            RoundLine(
                number=number,
                sites=tuple(collected.survivors),
                dropped=tuple(Dropped(site=one.site, reason=one.reason) for one in collected.dropped),
                epsilon_spent=spent,
                seconds=seconds,
                update_norm=norm,
                test=Point.model_validate(point) if point else None,
            )
        )
        note = f"epsilon {spent:.3f}" if np.isfinite(spent) else "no privacy"
        if self.coordinator.left_out:
            note += f", without {', '.join(self.coordinator.left_out)}"
        self.progress.advance(note=note + (f", AUROC {point['auroc']:.3f}" if point else ""))


def train(
    study: Study,
    agreement: Agreement,
    model: Model,
    transport: Transport,
    directory: RunDirectory,
    *,
    evaluate: Evaluate,
    progress: Progress,
    label: str = "training",
    watch: Callable[[Seen], None] = lambda _: None,
) -> Trained:
    """Run, or resume, the rounds of a study.

    Args:
        study: the resolved study.
        agreement: what coordinator and sites agreed on.
        model: what is trained.
        transport: reaches the sites.
        directory: the run's directory; checkpoint and round log live there.
        evaluate: public test metrics of parameters, for the learning curve; never used to choose anything.
        progress: told of every round.
        label: the stage's name in the progress.
        watch: told of everything that the coordinator sees; for audits.

    Raises:
        FederationError: too few sites remain; the run can be resumed.
    """
    coordinator = Coordinator(
        agreement,
        transport,
        attempt=directory.begin_session() << 32,
        note=directory.note_charged,
        watch=watch,
    )
    return _Loop(
        study=study,
        agreement=agreement,
        model=model,
        coordinator=coordinator,
        checkpoint=_Checkpoint(directory, coordinator),
        directory=directory,
        evaluate=evaluate,
        progress=progress,
        label=label,
    ).run()
