"""Which configuration to choose before anything is spent, and what accuracy to expect of it."""

from typing import TYPE_CHECKING

from fedveil.lazy import on_first_use

if TYPE_CHECKING:
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

__getattr__, __dir__ = on_first_use(__name__)
