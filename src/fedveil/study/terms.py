"""From a study and the cohorts it meets to the terms that coordinator and sites share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fedveil.errors import InvalidValue, StudyError
from fedveil.federation import (
    CALIBRATION,
    EVALUATION,
    PERSONAL,
    PERSONAL_CALIBRATION,
    PROGRESS,
    STATISTICS,
    TRAINING,
    LocalSteps,
    Release,
    Terms,
    default_min_honest,
)
from fedveil.learning import ScoreHistogram, Sizes
from fedveil.privacy import Guarantee, IntegerMechanism, Mechanism, calibrate, calibrate_integer, epsilon
from fedveil.study.phases import checks, make_phases
from fedveil.study.rules import head_length, learning_rate
from fedveil.study.settings import Study

__all__ = ["make_terms", "target_of"]

PERSONAL_STEPS = 30
"""Steps from the common model to a hospital's own; their number changes neither price nor reach."""
UNBOUNDED = 1e9
"""Where a difference is not masked, its size needs no bound."""


def make_terms(study: Study, *, sites: Sequence[str], model: Sizes) -> Terms:
    """Calibrate the study's releases to its target and fix everything that touches privacy.

    Sums that are made once (statistics, calibration, evaluation), if asked for, get fractions s of the budget: in the
    Gaussian mechanism's own measure, where a target allows mu in total and one release with noise multiplier z costs
    1/z, theirs is ``z = 1/(mu sqrt(s))``. Training is then calibrated to the target given what they spend. For a
    network whose units are sampled each of them is one more step of its mechanism instead: a composition of unlike
    sampled mechanisms, chosen adaptively, has no tight price. With the method "one-shot" there is no training, and
    statistics get all that is left. Where training spends unevenly over its rounds, each of its phases is a release
    of its own, see `fedveil.study.phases`.

    Args:
        study: the resolved study.
        sites: names of the sites, in order.
        model: the model, or its sizes alone; they are public.
    """
    target = target_of(study)
    min_honest = study.federation.min_honest or default_min_honest(len(sites))
    calibrator = _Calibrator(study=study, target=target, sites=len(sites), min_honest=min_honest)
    return Terms(
        name=study.study.name,
        settings=study.model_dump(mode="json"),
        sites=tuple(sites),
        target=target,
        releases=tuple(_releases(study, calibrator, model)),
        min_sites=_min_sites(study, len(sites)),
        min_honest=study.federation.min_honest,
    )


def _releases(study: Study, calibrator: "_Calibrator", model: Sizes) -> list[Release]:
    """All releases, in the order in which they are made."""
    single = _singles(study, model)
    if study.model.network != "linear" and study.training.sampling_rate < 1:
        training = calibrator.training((), model, more=sum(one.times for one in single))
        step = training.mechanism
        once = Mechanism(step.noise_multiplier, 1.0, 1, step.sampling_rate, step.unit)
        made = [calibrator.single(one, once.with_steps(one.times)) for one in single]
    elif study.training.method == "one-shot":
        made = [calibrator.share(one) for one in single if one.name != STATISTICS]
        made += calibrator.kept(model)
        return [calibrator.rest([one.mechanism for one in made], model), *made]
    else:
        made = [*(calibrator.share(one) for one in single), *calibrator.kept(model)]
        training = calibrator.training([one.mechanism for one in made], model)
    first = [one for one in made if one.name == STATISTICS]
    spread = [training] if study.privacy.spending == 1 else calibrator.spread(training, made)
    return [*first, *spread, *(one for one in made if one not in first)]


class _Single(NamedTuple):
    """A sum beside training: its share of the budget, lengths of what is released and sent, how often it is made."""

    name: str
    share: float
    dimension: int
    parameters: int
    times: int = 1


def _singles(study: Study, model: Sizes) -> list[_Single]:
    """The sums beside training that the study asks for, in order."""
    privacy = study.privacy
    histogram, judged = ScoreHistogram.size(model.classes), model.classes + model.parameters
    found = [
        _Single(STATISTICS, privacy.statistics_share, model.statistics_size, 0),
        _Single(PROGRESS, privacy.progress_share, 1, judged, checks(study)),
        _Single(CALIBRATION, privacy.calibration_share, model.calibration_size, model.parameters),
        _Single(EVALUATION, privacy.evaluation_share, histogram, judged),
    ]
    return [one for one in found if one.share > 0 and one.times > 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calibrator:
    """Makes releases whose noise runs as whole numbers under secure aggregation, and as a Gaussian elsewhere."""

    study: Study
    target: Guarantee
    sites: int
    min_honest: int

    def share(self, one: _Single) -> Release:
        """One sum that takes its share of the budget."""
        multiplier = self._whole / math.sqrt(one.share / one.times)
        return self.single(one, Mechanism(multiplier, 1.0, one.times, unit=self.target.unit))

    @property
    def _whole(self) -> float:
        """The noise multiplier of a single sum that takes all of the budget."""
        return calibrate(self.target, steps=1).noise_multiplier if self.target.trust != "none" else 0.0

    def kept(self, model: Sizes) -> list[Release]:
        """What every hospital makes for itself, as far as the study pays for it."""
        privacy, found = self.study.privacy, []
        if privacy.personal_share > 0:
            found.append(self.personal(model))
        if privacy.personal_calibration_share > 0:
            multiplier = self._whole / math.sqrt(privacy.personal_calibration_share)
            found.append(
                Release(
                    name=PERSONAL_CALIBRATION,
                    mechanism=Mechanism(multiplier, 1.0, 1, unit=self.target.unit),
                    dimension=model.calibration_size,
                    parameters=model.parameters,
                )
            )
        return found

    def rest(self, spent: Sequence[Mechanism], model: Sizes) -> Release:
        """The class statistics of a study without training, with the least noise that meets the target."""
        one = _Single(STATISTICS, 1.0, model.statistics_size, 0)
        match self.target.trust:
            case "none":
                return self.single(one, Mechanism(0.0, 1.0, 1, unit=self.target.unit))
            case "secure-aggregation":
                integer = calibrate_integer(
                    self.target,
                    steps=1,
                    dimension=one.dimension,
                    sites=self.sites,
                    shares=self.min_honest,
                    units=self.study.federation.max_units,
                    spent=spent,
                )
                return Release(
                    name=STATISTICS,
                    mechanism=integer.mechanism,
                    dimension=one.dimension,
                    parameters=0,
                    integer=integer,
                )
            case _:
                return self.single(one, calibrate(self.target, steps=1, spent=spent))

    def spread(self, training: Release, others: Sequence[Release]) -> list[Release]:
        """The phases of a training that spends unevenly, with noise that meets the target beside the other releases.

        Rounding, of floating point and of whole numbers, may take them past it by less than a millionth: then all get
        a millionth more noise.
        """
        whole, enough = training.mechanism, 1.0
        while True:
            made = [
                self.single(
                    _Single(phase.release, 0.0, training.dimension, training.parameters),
                    Mechanism(
                        whole.noise_multiplier * enough / math.sqrt(phase.weight),
                        whole.clip_norm,
                        phase.rounds,
                        unit=whole.unit,
                    ),
                )
                for phase in make_phases(self.study)
            ]
            mechanisms = [one.mechanism for one in (*made, *others)]
            private = self.target.trust != "none"
            if not private or epsilon(mechanisms, self.target.delta, adaptive=True) <= self.target.epsilon:
                return made
            enough *= 1 + 1e-6

    def single(self, one: _Single, mechanism: Mechanism) -> Release:
        """One sum by this mechanism."""
        integer = None
        if self.target.trust == "secure-aggregation":
            integer = IntegerMechanism.fit(
                mechanism,
                dimension=one.dimension,
                sites=self.sites,
                shares=self.min_honest,
                units=self.study.federation.max_units,
            )
            mechanism = integer.mechanism
        return Release(
            name=one.name,
            mechanism=mechanism,
            dimension=one.dimension,
            parameters=one.parameters,
            integer=integer,
        )

    def personal(self, model: Sizes) -> Release:
        """A hospital's own steps from the finished model, which take their share of the budget.

        How far they go follows from the hospital's signal-to-noise ratio as in `fedveil.study.rules`. With the pull p
        and T steps of size eta the proximal weight is ``p / (eta T)``: after T steps without a gradient a hospital's
        difference to the common model has shrunk to about ``exp(-p)`` of itself.
        """
        settings, clip_norm = self.study.training, self.study.privacy.clip_norm
        if settings.units is None:
            raise StudyError(
                "privacy.personal_share is set and training.units is not",
                "a hospital's own steps are divided by a public number, never by its own count",
                "state roughly how many units take part, over all sites, in training.units",
            )
        units = settings.units / self.sites
        single = self._whole / math.sqrt(self.study.privacy.personal_share)
        ratio = units / single if single > 0 else math.inf
        rate = learning_rate(ratio, PERSONAL_STEPS, clip_norm) / head_length(self.study)
        return Release(
            name=PERSONAL,
            mechanism=Mechanism(
                single * math.sqrt(PERSONAL_STEPS), clip_norm, PERSONAL_STEPS, unit=self.target.unit
            ),
            dimension=model.trained,
            parameters=model.parameters,
            local=LocalSteps(
                steps=PERSONAL_STEPS,
                learning_rate=rate,
                units=units,
                proximal=settings.personal_pull / (rate * PERSONAL_STEPS),
                reach=UNBOUNDED,
            ),
        )

    def training(self, spent: Sequence[Mechanism], model: Sizes, *, more: int = 0) -> Release:
        """The rounds of training, with the least noise that meets the target beside what is spent and more steps."""
        settings, clip_norm, dimension = self.study.training, self.study.privacy.clip_norm, model.trained
        local = self.local_steps() if settings.method == "averaging" else None
        local_noise = local is not None and self.target.unit != "site"
        steps = settings.rounds * (settings.local_steps if local_noise else 1)
        rate = settings.sampling_rate
        integer = None
        match self.target.trust:
            case "none":
                mechanism = Mechanism(0.0, clip_norm, steps, rate, self.target.unit)
            case "secure-aggregation" if local is None or not local_noise:
                integer = calibrate_integer(
                    self.target,
                    steps=steps + more,
                    sampling_rate=rate,
                    dimension=dimension,
                    sites=self.sites,
                    shares=self.min_honest,
                    units=self.study.federation.max_units,
                    clip_norm=clip_norm,
                    spent=spent,
                )
                mechanism = integer.mechanism
            case _:
                mechanism = calibrate(
                    self._less_slack(),
                    steps=steps + more,
                    sampling_rate=rate,
                    clip_norm=clip_norm,
                    spent=spent,
                )
        if self.target.trust == "secure-aggregation" and local is not None and local_noise:
            integer = self.carrier(local, dimension)
        return Release(
            name=TRAINING,
            mechanism=mechanism.with_steps(steps),
            dimension=dimension,
            parameters=model.parameters,
            integer=integer,
            local=local,
        )

    def _less_slack(self) -> Guarantee:
        """The target, less what rounding may cost a masked sum that accompanies local steps."""
        if self.target.trust != "secure-aggregation":
            return self.target
        least = 1 - 1e-6
        return replace(self.target, epsilon=self.target.epsilon * least, delta=self.target.delta * least)

    def local_steps(self) -> LocalSteps:
        """What sites do in a round of federated averaging."""
        settings = self.study.training
        if self.target.unit == "site":
            units = 1.0
        elif settings.units is not None:
            units = settings.units * settings.sampling_rate / self.sites
        else:
            raise StudyError(
                'training.method is "averaging" and training.units is not set',
                "a site's local steps are divided by a public number, never by its own count",
                "state roughly how many units take part, over all sites, in training.units",
            )
        return LocalSteps(
            steps=settings.local_steps,
            learning_rate=settings.local_learning_rate,
            units=units,
            proximal=settings.proximal,
        )

    def carrier(self, local: LocalSteps, dimension: int) -> IntegerMechanism:
        """How differences that are private already are masked: whole numbers on a grid that is fine beside them.

        A masked sum has to have some noise; this much is a hundred thousandth of the largest difference, and no part
        of the price. What it carries is post-processing of private steps, cut off at a public bound.
        """
        return IntegerMechanism.fit(
            Mechanism(1e-5, local.reach, 1, unit=self.target.unit),
            dimension=dimension,
            sites=self.sites,
            shares=self.min_honest,
            units=1,
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
            f"federation.min_sites is {wanted}", f"the study has {sites} sites", "lower it, or add sites"
        )
    return wanted
