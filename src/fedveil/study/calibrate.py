"""From a study to the agreement that coordinator and sites share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedveil.errors import InvalidValue
from fedveil.federation import Agreement, LocalNoise, Noise, Query, Release, default_min_honest
from fedveil.federation.noise import Calibrated, Sums, noise_by
from fedveil.federation.queries import Asked, asked_by
from fedveil.learning import Sizes
from fedveil.privacy import Guarantee, Mechanism, calibrate
from fedveil.study.settings.schema import Study

__all__ = ["make_agreement", "target_of"]


def make_agreement(study: Study, *, sites: Sequence[str], model: Sizes) -> Agreement:
    """Calibrate the study's releases to its target and fix everything that affects privacy.

    Queries that state a share s of the budget get that share of mu squared: if the target allows mu in total and one
    release with noise multiplier z costs 1/z, theirs is ``z = 1/(mu sqrt(s))``. The one query without a share is
    then calibrated to the target, given what the others spend. For a network whose units are sampled, each of the
    others is instead one more step of the training mechanism: no tight bound is known for an adaptive composition of
    different sampled mechanisms.

    Args:
        study: the resolved study.
        sites: names of the sites, in order.
        model: the model, or only its sizes; they are public.

    Raises:
        StudyError: no model is trained for the study's task.
    """
    return Agreement(
        name=study.study.name,
        settings=study.model_dump(mode="json"),
        sites=tuple(sites),
        target=target_of(study),
        releases=_Calibrator.of(study, len(sites), model).releases(),
        min_sites=_min_sites(study, len(sites)),
        min_honest=study.federation.min_honest,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calibrator:
    """Builds the releases of a study's queries."""

    study: Study
    target: Guarantee
    noise: Noise
    asked: Asked

    @classmethod
    def of(cls, study: Study, sites: int, model: Sizes) -> "_Calibrator":
        target = target_of(study)
        honest = study.federation.min_honest or default_min_honest(sites)
        single = calibrate(target, steps=1).noise_multiplier  # 0 without privacy
        settings = study.model_dump(mode="json")
        asked = Asked(settings=settings, model=model, sites=sites, single=single)
        return cls(study=study, target=target, noise=noise_by(target.trust, sites, honest), asked=asked)

    def releases(self) -> tuple[Release, ...]:
        """All of them, in the order in which they are made."""
        queries = asked_by(self.asked)
        (rest,) = (query for query in queries if query.share(self.asked) is None)
        others = [query for query in queries if query is not rest]
        if self.study.model.network != "linear" and self.study.training.sampling_rate < 1:
            main = self._rest(rest, more=sum(query.steps(self.asked) for query in others))
            made = [self._like(query, main.mechanism) for query in others]
        else:
            made = [self._shared(query) for query in others]
            main = self._rest(rest, spent=[one.mechanism for one in made])
        by = {release.name: release for release in (main, *made)}
        return tuple(by[query.name] for query in queries)

    def _shared(self, query: Query) -> Release:
        """A query with a share of the budget."""
        share, steps = query.share(self.asked) or 0.0, query.steps(self.asked)
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
    epsilon = privacy.epsilon if privacy.trust != "none" else math.inf
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
