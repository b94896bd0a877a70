"""What a hospital derives from the finished model for itself: a personal model, a site threshold, or both.

Each is private by itself, with all of its noise at the hospital, and is charged like a round of the study.
"""

from dataclasses import replace

from fedveil.errors import BudgetExceeded
from fedveil.federation import Agreement, ModelState, OneSum, Site
from fedveil.study.results.trained_model import TrainedModel

__all__ = ["has_own", "own_model"]


def has_own(agreement: Agreement) -> bool:
    """Whether a study includes personalization."""
    return any(release.query.at_site for release in agreement.releases)


def own_model(site: Site, agreement: Agreement, common: TrainedModel) -> TrainedModel:
    """The hospital's own model: the common one, changed by each release of the study that stays at the site.

    A release that was charged by a process which stopped before storing its result is left out.

    Raises:
        BudgetExceeded: nothing could be paid for, or all of it was charged before.
    """
    begin = ModelState(model=common.model, parameters=common.parameters, frequencies=common.frequencies)
    state, refused = begin, []
    for query in (one.query for one in agreement.releases if one.query.at_site):
        if not isinstance(query, OneSum):
            continue
        try:
            released = site.make_own(agreement.digest, query.name, query.sent(state))
        except BudgetExceeded as error:
            refused.append(error)
            continue
        state = query.decode(released, state)
    if state is begin and refused:
        raise refused[0]
    frequencies = common.frequencies if state.frequencies is None else state.frequencies
    return replace(common, parameters=state.parameters, frequencies=frequencies)
