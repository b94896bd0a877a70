"""Which configuration to choose before anything is spent, and what accuracy to expect of it."""

from fedveil.planning.cost import Plan, make_plan
from fedveil.planning.laws import Laws, Reference, references
from fedveil.planning.planner import recommend
from fedveil.planning.recommendation import CurvePoint, Recommendation
from fedveil.planning.request import Configuration, PlanRequest

__all__ = [
    "Configuration",
    "CurvePoint",
    "Laws",
    "Plan",
    "PlanRequest",
    "Recommendation",
    "Reference",
    "make_plan",
    "recommend",
    "references",
]
