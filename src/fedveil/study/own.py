"""What a hospital makes of the finished model for itself: a model of its own, a threshold of its own, or both.

Each is private by itself, with all of its noise at the hospital, and is charged like a round of the study.
"""

from dataclasses import replace

from fedveil.errors import BudgetExceeded
from fedveil.federation import KEPT, PERSONAL, PERSONAL_CALIBRATION, Site, Terms
from fedveil.study.model_file import TrainedModel

__all__ = ["has_own", "own_model"]


def has_own(terms: Terms) -> bool:
    """Whether a study lets hospitals make something for themselves."""
    return any(release.name in KEPT for release in terms.releases)


def own_model(site: Site, terms: Terms, common: TrainedModel) -> TrainedModel:
    """The hospital's own model: further steps from the common one, then its own threshold, as the study has them.

    What was charged before, by a process that stopped before it kept the outcome, is left out.

    Raises:
        BudgetExceeded: nothing could be paid for, or all of it was charged before.
    """
    made, refused = common, []
    for release in (one for one in terms.releases if one.name in KEPT):
        try:
            if release.name == PERSONAL:
                made = replace(made, parameters=site.personalise(terms.digest, made.parameters))
            elif release.name == PERSONAL_CALIBRATION:
                unshifted = made.model.unshifted(made.parameters)
                released = site.recalibrate(terms.digest, unshifted)
                parameters, frequencies = made.model.recalibrated(
                    made.parameters, made.frequencies, released, terms.noise_std(release) ** 2
                )
                made = replace(made, parameters=parameters, frequencies=frequencies)
        except BudgetExceeded as error:
            refused.append(error)
    if made is common:
        raise refused[0]
    return made
