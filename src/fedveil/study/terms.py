"""From a study and the cohorts it meets to the terms that coordinator and sites share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedveil.errors import InvalidValue
from fedveil.federation import CALIBRATION, STATISTICS, TRAINING, Release, Terms, default_min_honest
from fedveil.learning import CentredHead, ClassStatistics
from fedveil.privacy import Guarantee, IntegerMechanism, Mechanism, calibrate, calibrate_integer
from fedveil.study.settings import Study

__all__ = ["make_terms", "target_of"]


def make_terms(study: Study, *, sites: Sequence[str], model: CentredHead) -> Terms:
    """Calibrate the study's releases to its target and fix everything that touches privacy.

    Statistics and calibration, if asked for, get fractions s of the budget: in the Gaussian mechanism's own measure,
    where a target allows mu in total and one release with noise multiplier z costs 1/z, theirs is
    ``z = 1/(mu sqrt(s))``. Training is then calibrated to the target given what they spend.

    Args:
        study: the resolved study.
        sites: names of the sites, in order.
        model: the model; its sizes are public.
    """
    privacy = study.privacy
    target = target_of(study)
    private = privacy.trust != "none"
    min_honest = study.federation.min_honest or default_min_honest(len(sites))
    calibrator = _Calibrator(study=study, target=target, sites=len(sites), min_honest=min_honest)
    releases = []
    whole = calibrate(target, steps=1).noise_multiplier if private else 0.0
    if privacy.statistics_share > 0:
        size = ClassStatistics.size(model.classes, model.features)
        releases.append(calibrator.share(STATISTICS, whole, privacy.statistics_share, dimension=size))
    after = []
    if privacy.calibration_share > 0:
        size = ClassStatistics.size(model.classes, model.head.logits)
        share = privacy.calibration_share
        after.append(calibrator.share(CALIBRATION, whole, share, dimension=size, parameters=model.parameters))
    spent = [one.mechanism for one in releases + after]
    releases.append(calibrator.training(spent, dimension=model.trained, parameters=model.parameters))
    releases += after
    return Terms(
        name=study.study.name,
        settings=study.model_dump(mode="json"),
        sites=tuple(sites),
        target=target,
        releases=tuple(releases),
        min_sites=_min_sites(study, len(sites)),
        min_honest=study.federation.min_honest,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calibrator:
    """Makes releases whose noise runs as whole numbers under secure aggregation, and as a Gaussian elsewhere."""

    study: Study
    target: Guarantee
    sites: int
    min_honest: int

    def share(self, name: str, whole: float, share: float, *, dimension: int, parameters: int = 0) -> Release:
        """One sum that takes this share of the budget; ``whole`` is the noise multiplier that would take all of it."""
        mechanism = Mechanism(
            noise_multiplier=whole / math.sqrt(share), clip_norm=1.0, steps=1, unit=self.target.unit
        )
        integer = None
        if self.target.trust == "secure-aggregation":
            integer = IntegerMechanism.fit(
                mechanism,
                dimension=dimension,
                sites=self.sites,
                shares=self.min_honest,
                units=self.study.federation.max_units,
            )
            mechanism = integer.mechanism
        return Release(
            name=name, mechanism=mechanism, dimension=dimension, parameters=parameters, integer=integer
        )

    def training(self, spent: Sequence[Mechanism], *, dimension: int, parameters: int) -> Release:
        """The rounds of training, with the least noise that meets the target given what is spent."""
        rounds, clip_norm = self.study.training.rounds, self.study.privacy.clip_norm
        integer = None
        match self.target.trust:
            case "none":
                mechanism = Mechanism(
                    noise_multiplier=0.0, clip_norm=clip_norm, steps=rounds, unit=self.target.unit
                )
            case "secure-aggregation":
                integer = calibrate_integer(
                    self.target,
                    steps=rounds,
                    dimension=dimension,
                    sites=self.sites,
                    shares=self.min_honest,
                    units=self.study.federation.max_units,
                    clip_norm=clip_norm,
                    spent=spent,
                )
                mechanism = integer.mechanism
            case _:
                mechanism = calibrate(self.target, steps=rounds, clip_norm=clip_norm, spent=spent)
        return Release(
            name=TRAINING, mechanism=mechanism, dimension=dimension, parameters=parameters, integer=integer
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
