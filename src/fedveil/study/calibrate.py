"""From a study to the agreement that coordinator and sites share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedveil.errors import InvalidValue
from fedveil.federation import (
    Agreement,
    LocalNoise,
    Noise,
    OneSum,
    Query,
    Release,
    Rounds,
    default_min_honest,
)
from fedveil.federation.levels.grid import Calibration, Level
from fedveil.federation.noise import Calibrated, Sums, noise_by
from fedveil.federation.queries import Asked, asked_by
from fedveil.learning import Sizes
from fedveil.privacy import Guarantee, Mechanism, calibrate
from fedveil.study.calibrated.levels import grid_of, rule_of, strength
from fedveil.study.settings.schema import Study

__all__ = ["make_agreement", "target_of"]

LEAST_SHARE = 0.01
"""Share of a level's budget for class statistics, if the pilot has already used more than theirs."""


def make_agreement(study: Study, *, sites: Sequence[str], model: Sizes) -> Agreement:
    """Calibrate the study's releases to its target and fix everything that affects privacy.

    Queries that state a share s of the budget get that share of mu squared: if the target allows mu in total and one
    release with noise multiplier z costs 1/z, theirs is ``z = 1/(mu sqrt(s))``. The one query without a share is
    then calibrated to the target, given what the others spend. A query whose noise is known to drown it, by the public
    number of units, is left out, and training gets its share. For a network whose units are sampled, each of the
    others is instead one more step of the training mechanism: no tight bound is known for an adaptive composition of
    different sampled mechanisms.

    Args:
        study: the resolved study.
        sites: names of the sites, in order.
        model: the model, or only its sizes; they are public.

    Raises:
        StudyError: no model is trained for the study's task.
    """
    count = len(sites)
    if study.privacy.epsilon == "calibrated":
        releases, calibration = _calibrated(study, count, model)
    else:
        releases, calibration = _Calibrator.of(study, count, model, target_of(study)).releases(), None
    return Agreement(
        name=study.study.name,
        settings=study.model_dump(mode="json"),
        sites=tuple(sites),
        target=target_of(study),
        releases=releases,
        min_sites=_min_sites(study, count),
        min_honest=study.federation.min_honest,
        calibration=calibration,
    )


def _calibrated(study: Study, sites: int, model: Sizes) -> tuple[tuple[Release, ...], Calibration]:
    """The pilot with the releases of the dearest level, and all levels.

    The pilot costs its own epsilon, split between class statistics and histogram. Each level is calibrated to its
    epsilon, given what the pilot spends.
    """
    target = target_of(study)
    epsilons = grid_of(study)
    first = _Calibrator.of(study, sites, model, replace(target, epsilon=study.privacy.pilot_epsilon))
    pilot = first.pilot()
    length = len(pilot) + sum(release.dimension for release in pilot)
    levels: list[Level] = []
    for epsilon in epsilons:
        at = _Calibrator.of(study, sites, model, replace(target, epsilon=epsilon))
        try:
            planned = at.releases(pilot)
        except (
            InvalidValue
        ):  # where units are sampled, a pilot beside other mechanisms may cost all of a small level
            if epsilon == epsilons[-1]:
                raise
            continue
        number = len(levels) + 1
        made = tuple(
            replace(one, level=number, evidence=length, parameters=one.parameters + length) for one in planned
        )
        main = next((one for one in made if isinstance(one.query, Rounds)), made[0])
        levels.append(Level(epsilon=epsilon, releases=made, strength=strength(first.noise, main, sites)))
    calibration = Calibration(
        pilot=pilot,
        levels=tuple(levels),
        rule=rule_of(study, model),
        sites=sites,
        variances=tuple(
            tuple(first.noise.variance(one.mechanism, count) for count in range(1, sites + 1))
            for one in pilot
        ),
    )
    return pilot + levels[-1].releases, calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calibrator:
    """Builds the releases of a study's queries."""

    study: Study
    target: Guarantee
    noise: Noise
    asked: Asked

    @classmethod
    def of(cls, study: Study, sites: int, model: Sizes, target: Guarantee) -> "_Calibrator":
        honest = study.federation.min_honest or default_min_honest(sites)
        single = calibrate(target, steps=1).noise_multiplier  # 0 without privacy
        settings = study.model_dump(mode="json")
        asked = Asked(settings=settings, model=model, sites=sites, single=single)
        return cls(study=study, target=target, noise=noise_by(target.trust, sites, honest), asked=asked)

    def pilot(self) -> tuple[Release, ...]:
        """The releases of a pilot that costs all of the target; all units take part in each."""
        found = [query for query in asked_by(self.asked) if query.pilot_share(self.asked) > 0]
        made: list[Release] = []
        for query in found[:-1]:
            multiplier = self.asked.noise_multiplier(query.pilot_share(self.asked))
            made.append(self._fitted(query, Mechanism(multiplier, 1.0, 1, unit=self.target.unit)))
        sums = replace(self._sums(found[-1], 1), sampling_rate=1.0)
        spent = [one.mechanism for one in made]
        return (*made, self._release(found[-1], self.noise.calibrate(self.target, sums, spent)))

    def releases(self, pilot: Sequence[Release] = ()) -> tuple[Release, ...]:
        """All of them, in the order in which they are made; those after a pilot, if there was one."""
        queries = [query for query in asked_by(self.asked) if not query.pilot_only]
        before = [one.mechanism for one in pilot]
        (rest,) = (query for query in queries if query.share(self.asked) is None)
        others = [query for query in queries if query is not rest]
        if self.study.model.network != "linear" and self.study.training.sampling_rate < 1:
            main = self._rest(rest, spent=before, more=sum(query.steps(self.asked) for query in others))
            made = [self._like(query, main.mechanism) for query in others]
        else:
            shared = [self._shared(query, pilot) for query in others]
            made = [one for one in shared if not self._drowned(one)]
            main = self._rest(rest, spent=[*before, *(one.mechanism for one in made)])
        by = {release.name: release for release in (main, *made)}
        return tuple(by[query.name] for query in queries if query.name in by)

    def _drowned(self, made: Release) -> bool:
        """Whether noise would drown a release at any class sizes, so that training gets its share.

        This needs a public number of units, `training.units`: noise does least if the classes are equally large.
        """
        units, shape = self.study.training.units, self.asked.model.thresholds
        if units is None or not isinstance(made.query, OneSum) or made.query.at_site:
            return False
        variance = self.noise.variance(made.mechanism, self.asked.sites)
        return made.query.drowned(self.asked.model, variance, np.full(shape, units / shape[1]))

    def _shared(self, query: Query, pilot: Sequence[Release] = ()) -> Release:
        """A query with a share of the budget, of which a pilot that released the same sum has used a part."""
        share, steps = query.share(self.asked) or 0.0, query.steps(self.asked)
        used = sum(
            (self.asked.single / one.mechanism.noise_multiplier) ** 2 for one in pilot if one.query == query
        )
        share = max(share - used, min(share, LEAST_SHARE))
        multiplier = self.asked.noise_multiplier(share, steps)
        mechanism = Mechanism(multiplier, query.clip_norm(self.asked), steps, unit=self.target.unit)
        return self._fitted(query, mechanism)

    def _like(self, query: Query, step: Mechanism) -> Release:
        """A query whose sums are additional steps of another query's mechanism."""
        clip_norm, steps = query.clip_norm(self.asked), query.steps(self.asked)
        return self._fitted(query, replace(step, clip_norm=clip_norm, steps=steps))

    def _fitted(self, query: Query, mechanism: Mechanism) -> Release:
        private = self.target.trust != "none"
        noise = LocalNoise() if query.at_site or not private else self.noise
        plain = replace(mechanism, epsilon_slack=0.0, delta_slack=0.0)
        return self._release(query, noise.fit(plain, self._sums(query, mechanism.steps)))

    def _rest(self, query: Query, *, spent: Sequence[Mechanism] = (), more: int = 0) -> Release:
        """The query that uses the rest of the budget, with the least noise given the other releases."""
        steps = query.steps(self.asked)
        found = self.noise.calibrate(self.target, self._sums(query, steps + more), spent)
        return self._release(query, Calibrated(found.mechanism.with_steps(steps), found.integer))

    def _sums(self, query: Query, steps: int) -> Sums:
        return Sums(
            steps=steps,
            dimension=query.length(self.asked.model),
            units=self.study.federation.max_units,
            clip_norm=query.clip_norm(self.asked),
            sampling_rate=self.study.training.sampling_rate,
            reach=query.carried(self.target.unit),
        )

    def _release(self, query: Query, made: Calibrated) -> Release:
        model = self.asked.model
        return Release(
            query=query,
            mechanism=made.mechanism,
            dimension=query.length(model),
            parameters=query.sent_length(model),
            integer=made.integer,
        )


def target_of(study: Study) -> Guarantee:
    """The guarantee that a study asks for."""
    privacy = study.privacy
    epsilon = privacy.largest_epsilon if privacy.trust != "none" else math.inf
    return Guarantee(epsilon=epsilon, delta=privacy.delta, unit=privacy.unit, trust=privacy.trust)


def _min_sites(study: Study, sites: int) -> int:
    wanted = study.federation.min_sites
    if wanted is None:
        return math.ceil(2 * sites / 3)
    if wanted > sites:
        raise InvalidValue(
            f"federation.min_sites is {wanted}", f"the study has {sites} sites", "reduce it, or add sites"
        )
    return wanted
