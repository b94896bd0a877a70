"""From a study and the cohorts it meets to the terms that coordinator and sites share."""

import math
from collections.abc import Sequence

from fedveil.errors import InvalidValue
from fedveil.federation import STATISTICS, TRAINING, Release, Terms
from fedveil.learning import CentredHead, ClassStatistics
from fedveil.privacy import Guarantee, Mechanism, calibrate
from fedveil.study.settings import Study

__all__ = ["make_terms", "target_of"]


def make_terms(study: Study, *, sites: Sequence[str], model: CentredHead) -> Terms:
    """Calibrate the study's releases to its target and fix everything that touches privacy.

    The statistics, if asked for, get the fraction s of the budget: in the Gaussian mechanism's own measure, where a
    target allows mu in total and one release with noise multiplier z costs 1/z, theirs is ``z = 1/(mu sqrt(s))``.
    Training is then calibrated to the target given what they spend.

    Args:
        study: the resolved study.
        sites: names of the sites, in order.
        model: the model; its sizes are public.
    """
    privacy = study.privacy
    target = target_of(study)
    private = privacy.trust != "none"
    share = privacy.statistics_share
    releases = []
    if share > 0:
        whole = calibrate(target, steps=1).noise_multiplier if private else 0.0
        statistics = Mechanism(
            noise_multiplier=whole / math.sqrt(share), clip_norm=1.0, steps=1, unit=privacy.unit
        )
        size = ClassStatistics.size(model.classes, model.features)
        releases.append(Release(name=STATISTICS, mechanism=statistics, dimension=size, parameters=0))
    spent = [release.mechanism for release in releases]
    rounds, clip_norm = study.training.rounds, privacy.clip_norm
    if private:
        training = calibrate(target, steps=rounds, clip_norm=clip_norm, spent=spent)
    else:
        training = Mechanism(noise_multiplier=0.0, clip_norm=clip_norm, steps=rounds, unit=privacy.unit)
    releases.append(
        Release(name=TRAINING, mechanism=training, dimension=model.trained, parameters=model.parameters)
    )
    return Terms(
        name=study.study.name,
        settings=study.model_dump(mode="json"),
        sites=tuple(sites),
        target=target,
        releases=tuple(releases),
        min_sites=_min_sites(study, len(sites)),
        min_honest=study.federation.min_honest,
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
