"""What a study would cost in a federation at hand: the agreement that its hospitals would be offered, priced."""

import math

from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.coordinator.runner import load_test_set
from fedveil.deploy.offer import Offer
from fedveil.planning.cost import Plan
from fedveil.privacy import operational_risk
from fedveil.study import Prepared, Study
from fedveil.study.prepare import pinned

__all__ = ["plan_federation"]


def plan_federation(study: Study, federation: Federation) -> Plan:
    """The price of the very agreement that `fedveil coordinate` would offer; nothing is sent, nothing is charged.

    Raises:
        FedveilError: the study cannot be run with these hospitals.
    """
    dataset = load_test_set(study)
    agreement = Offer.make(study, federation.table.sites, dataset).agreement()
    prepared = Prepared(study=pinned(study, dataset), dataset=dataset, sites={}, simulated=False)
    guarantee = agreement.planned
    return Plan(
        prepared=prepared,
        agreement=agreement,
        guarantee=guarantee,
        epsilon_alone=math.inf if guarantee is None else agreement.epsilon_alone(),
        risk=None if guarantee is None else operational_risk(guarantee, agreement.mechanisms),
    )
