"""The registry of queries: what a study may ask of its sites. One file per query, with everything specific to it."""

from fedveil.federation.queries.calibration import CalibrationQuery
from fedveil.federation.queries.cohort_counts import CohortCountsQuery
from fedveil.federation.queries.evaluation import EvaluationQuery
from fedveil.federation.queries.gradients import GradientQuery
from fedveil.federation.queries.local_steps import LocalSteps, LocalStepsQuery
from fedveil.federation.queries.own_model import OwnModelQuery
from fedveil.federation.queries.own_threshold import OwnThresholdQuery
from fedveil.federation.queries.pilot import PilotQuery
from fedveil.federation.queries.query import (
    Asked,
    Asking,
    HospitalUnits,
    ModelState,
    NoisySum,
    OneSum,
    Query,
    Rounds,
)
from fedveil.federation.queries.statistics import StatisticsQuery
from fedveil.federation.queries.subgroups import SubgroupsQuery

__all__ = [
    "QUERIES",
    "Asked",
    "Asking",
    "CalibrationQuery",
    "CohortCountsQuery",
    "EvaluationQuery",
    "GradientQuery",
    "HospitalUnits",
    "LocalSteps",
    "LocalStepsQuery",
    "ModelState",
    "NoisySum",
    "OneSum",
    "OwnModelQuery",
    "OwnThresholdQuery",
    "PilotQuery",
    "Query",
    "Rounds",
    "StatisticsQuery",
    "SubgroupsQuery",
    "asked_by",
    "title_of",
]

QUERIES: tuple[type[Query], ...] = (
    StatisticsQuery,
    PilotQuery,
    GradientQuery,
    LocalStepsQuery,
    CalibrationQuery,
    EvaluationQuery,
    SubgroupsQuery,
    OwnModelQuery,
    OwnThresholdQuery,
    CohortCountsQuery,
)
"""All queries, in the order of a study."""


def asked_by(asked: Asked) -> tuple[Query, ...]:
    """The queries of a study, in order."""
    found = (query.of(asked) for query in QUERIES)
    return tuple(query for query in found if query is not None)


def title_of(name: str) -> str:
    """A query's title by its name; the name itself for unknown queries, as in results of other versions.

    >>> title_of("training"), title_of("progress")
    ('gradients', 'progress')
    """
    return next((query.title for query in QUERIES if query.name == name), name)
