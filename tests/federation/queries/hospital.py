"""A small real hospital for queries: a linear head over features, patients with several images, held-out ones too.

Its labels are classes or, with the heads for them, findings or grades.
"""

from collections import Counter

import numpy as np

from fedveil.data import Cohort, Dataset
from fedveil.federation import HospitalUnits, Query
from fedveil.federation.queries import Asked, CohortCountsQuery, PilotQuery, StatisticsQuery
from fedveil.learning import (
    CentredHead,
    CentredLearner,
    FindingsHead,
    FindingsLearner,
    GradesHead,
    HeldOut,
)
from fedveil.study import Study

CLASSES = ("a", "b", "c")
HEAD = CentredHead((5, 3), len(CLASSES))
FINDINGS = FindingsHead((5, 3), len(CLASSES))
ONCE = FindingsHead((5, 3), len(CLASSES), centred=False)
"""What one round of statistics makes."""
GRADES = GradesHead((5, 3), len(CLASSES))
SHARES = """
[data]
subgroup = "scanner"
subgroup_values = ["A", "B"]
[privacy]
unit = "{unit}"
evaluation_share = 0.1
subgroup_share = 0.1
{own}
[training]
units = 40
method = "{method}"
"""
OWN = "personal_share = 0.1\npersonal_calibration_share = 0.1"


def task_of(head) -> str:
    """What labels are."""
    return "findings" if head.findings else "grades" if head.grades else "classes"


def asked(method: str, unit: str, head=HEAD) -> Asked:
    """What a study asks that pays for everything that goes with its method and unit."""
    text = SHARES.format(unit=unit, method=method, own="" if unit == "site" else OWN)
    settings = Study.parse(text).model_dump(mode="json")
    return Asked(settings=settings, model=head, sites=3, single=4.0)


def records(seed: int = 0, head=HEAD) -> Cohort:
    """Labels and patients: thirty images of ten patients, some with one, one with many."""
    generator = np.random.default_rng(seed)
    patients = np.sort(np.concatenate([np.arange(10), np.full(12, 3), generator.integers(0, 10, 8)]))
    empty = Dataset.empty(CLASSES, channels=1, image_size=8)
    labels = generator.integers(0, len(CLASSES), len(patients))
    if head.findings:
        labels = generator.choice([-1, 0, 1], (len(patients), len(CLASSES))).astype(np.int8)
    return Cohort(
        name="here",
        images=type(empty.images)(np.zeros((len(patients), 8, 8, 1), np.float32), 8),
        labels=labels,
        patients=patients,
        classes=CLASSES,
        task=task_of(head),
    )


def instance(query: type[Query], unit: str, head=HEAD) -> Query | None:
    """The query as some study asks for it; None where none does for this unit."""
    if head.findings and query in (CohortCountsQuery, PilotQuery):  # these are refused
        return None
    if head.grades and query is PilotQuery:
        return None
    if head is ONCE and query is not StatisticsQuery:  # the others are those of `FINDINGS`
        return None
    if query is CohortCountsQuery:
        return CohortCountsQuery.over(records(), unit)
    if query is PilotQuery:
        return PilotQuery()
    found = (query.of(asked(method, unit, head)) for method in ("gradient", "averaging"))
    return next((one for one in found if one is not None), None)


def hospital(unit: str, gone: int | None = None, head=HEAD) -> tuple[HospitalUnits, dict[str, list[str]]]:
    """The units, without one patient or image if ``gone`` says which; and their names, by part."""
    whole = records(head=head)
    features = np.random.default_rng(1).normal(size=(len(whole.labels), 8)).astype(np.float32)
    owners = np.arange(len(whole.labels)) if unit == "image" else whole.patients
    kept = np.flatnonzero(owners != gone) if gone is not None else np.arange(len(owners))
    patients = np.unique(whole.patients[kept], return_inverse=True)[1]
    cohort = Cohort(
        name="here",
        images=whole.images.subset(kept),
        labels=whole.labels[kept],
        patients=patients,
        classes=CLASSES,
        task=task_of(head),
    )
    kind = FindingsLearner if head.findings else CentredLearner
    learner = kind(head, features[kept], cohort.labels, patients, unit=unit)
    held_out = HeldOut(
        lambda parameters: head.probabilities(parameters, features[kept]),
        cohort.labels,
        patients,
        classes=len(CLASSES),
        unit=unit,
        grades=head.grades,
        strata=np.random.default_rng(2).integers(0, 3, len(whole.labels))[kept],
    )
    names = list(Counter(map(str, owners[kept])))
    return HospitalUnits(learner=learner, held_out=held_out, records=cohort), {
        "training": names,
        "held-out": names,
    }


def sent(query: Query, generator: np.random.Generator, head=HEAD) -> np.ndarray:
    """Parameters of the length that sites are sent, of any scale."""
    length = query.sent_length(head)
    if length == 0:
        return np.empty(0)
    scale = 10 ** generator.uniform(-6, 6)
    before = generator.uniform(0.1, 0.9, length - head.parameters)
    centre = generator.normal(size=head.features)
    numbers = generator.uniform(0.1, 0.9 if head.findings else 10.0, head.classes)
    rest = np.clip(scale * generator.normal(size=head.parameters - head.features - head.classes), -1e6, 1e6)
    return np.concatenate([before, centre, numbers, rest])
