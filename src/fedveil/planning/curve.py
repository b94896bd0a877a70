"""Accuracy and risk against epsilon, for one configuration."""

from collections.abc import Mapping

from fedveil.errors import FedveilError
from fedveil.planning.laws import Reference
from fedveil.planning.recommendation import Candidate, CurvePoint, Prediction
from fedveil.planning.request import PlanRequest
from fedveil.privacy import operational_risk
from fedveil.study.recipes import Metric
from fedveil.study.steps import signal_to_noise

__all__ = ["EPSILONS", "accuracy_curve"]

EPSILONS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""The epsilons of a curve, besides the chosen one; those above the accepted limit are left out."""
CLOSE = 1.15
"""A fixed epsilon closer to the chosen one than this factor is left out."""


def accuracy_curve(
    plan_request: PlanRequest, law: Mapping[Metric, Reference], chosen: Candidate
) -> tuple[CurvePoint, ...]:
    """The predicted accuracy and the risk at several epsilons up to the limit, all else as chosen."""
    fixed = [
        one for one in EPSILONS if one <= plan_request.limit and not 1 / CLOSE < one / chosen.epsilon < CLOSE
    ]
    points = []
    for epsilon in sorted({*fixed, chosen.epsilon}):
        try:
            agreement = plan_request.agreement(chosen.configuration, epsilon)
        except FedveilError:  # such a run is impossible at this epsilon
            continue
        ratio = signal_to_noise(agreement, plan_request.count(chosen.configuration.unit))
        one, patients = law[plan_request.ranked], plan_request.patients
        low, high = one.interval(patients, ratio)
        guarantee = agreement.planned
        risk = (
            1.0 if guarantee is None else operational_risk(guarantee, agreement.mechanisms).true_positive_rate
        )
        points.append(
            CurvePoint(
                epsilon=epsilon,
                predicted=Prediction(expected=one.expected(patients, ratio), low=low, high=high),
                true_positive_rate=risk,
            )
        )
    return tuple(points)
