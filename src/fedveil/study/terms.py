"""From a study and the cohorts it meets to the terms that coordinator and sites share."""

import math
from collections.abc import Sequence

from fedveil.errors import InvalidValue
from fedveil.federation import Release, Terms
from fedveil.privacy import Guarantee, Mechanism, calibrate
from fedveil.study.settings import Study

__all__ = ["make_terms", "target_of"]


def make_terms(study: Study, *, sites: Sequence[str], dimension: int, classes: int) -> Terms:
    """Calibrate the study's releases to its target and fix everything that touches privacy.

    The class counts, if asked for, get the fraction s of the budget: in the Gaussian mechanism's own measure, where
    a target allows mu in total and one release with noise multiplier z costs 1/z, theirs is ``z = 1/(mu sqrt(s))``.
    Training is then calibrated to the target given what they spend.

    Args:
        study: the resolved study.
        sites: names of the sites, in order.
        dimension: length of the model's parameter vector.
        classes: number of classes.
    """
    privacy = study.privacy
    target = target_of(study)
    private = privacy.trust != "none"
    count_share = privacy.class_counts_share
    if privacy.unit == "site":
        count_share = 0.0  # a site's whole histogram has no useful bound
    releases = []
    if count_share > 0:
        whole = calibrate(target, steps=1).noise_multiplier if private else 0.0
        counts = Mechanism(
            noise_multiplier=whole / math.sqrt(count_share), clip_norm=1.0, steps=1, unit=privacy.unit
        )
        releases.append(Release(name="class-counts", mechanism=counts, dimension=classes))
    spent = [release.mechanism for release in releases]
    if private:
        training = calibrate(target, steps=study.training.rounds, clip_norm=privacy.clip_norm, spent=spent)
    else:
        training = Mechanism(
            noise_multiplier=0.0, clip_norm=privacy.clip_norm, steps=study.training.rounds, unit=privacy.unit
        )
    releases.append(Release(name="training", mechanism=training, dimension=dimension))
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
