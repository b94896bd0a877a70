"""A small real hospital for queries: a linear head over features, patients with several images, held-out ones too."""

from collections import Counter

import numpy as np

from fedveil.data import Cohort, Dataset
from fedveil.federation import HospitalUnits, Query
from fedveil.federation.queries import Asked, CohortCountsQuery, PilotQuery
from fedveil.learning import CentredHead, CentredLearner, HeldOut
from fedveil.study import Study

CLASSES = ("a", "b", "c")
HEAD = CentredHead((5, 3), len(CLASSES))
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


def asked(method: str, unit: str) -> Asked:
    """What a study asks that pays for everything that goes with its method and unit."""
    text = SHARES.format(unit=unit, method=method, own="" if unit == "site" else OWN)
    settings = Study.parse(text).model_dump(mode="json")
    return Asked(settings=settings, model=HEAD, sites=3, single=4.0)


def records(seed: int = 0) -> Cohort:
    """Labels and patients: thirty images of ten patients, some with one, one with many."""
    generator = np.random.default_rng(seed)
    patients = np.sort(np.concatenate([np.arange(10), np.full(12, 3), generator.integers(0, 10, 8)]))
    empty = Dataset.empty(CLASSES, channels=1, image_size=8)
    return Cohort(
        name="here",
        images=type(empty.images)(np.zeros((len(patients), 8, 8, 1), np.float32), 8),
        labels=generator.integers(0, len(CLASSES), len(patients)),
        patients=patients,
        classes=CLASSES,
    )


def instance(query: type[Query], unit: str) -> Query | None:
    """The query as some study asks for it; None where none does for this unit."""
    if query is CohortCountsQuery:
        return CohortCountsQuery.over(records(), unit)
    if query is PilotQuery:
        return PilotQuery()
    found = (query.of(asked(method, unit)) for method in ("gradient", "averaging"))
    return next((one for one in found if one is not None), None)


def hospital(unit: str, gone: int | None = None) -> tuple[HospitalUnits, dict[str, list[str]]]:
    """The units, without one patient or image if ``gone`` says which; and their names, by part."""
    whole = records()
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
    )
    learner = CentredLearner(HEAD, features[kept], cohort.labels, patients, unit=unit)
    held_out = HeldOut(
        lambda parameters: HEAD.probabilities(parameters, features[kept]),
        cohort.labels,
        patients,
        classes=len(CLASSES),
        unit=unit,
        strata=np.random.default_rng(2).integers(0, 3, len(whole.labels))[kept],
    )
    names = list(Counter(map(str, owners[kept])))
    return HospitalUnits(learner=learner, held_out=held_out, records=cohort), {
        "training": names,
        "held-out": names,
    }


def sent(query: Query, generator: np.random.Generator) -> np.ndarray:
    """Parameters of the length that sites are sent, of any scale."""
    length = query.sent_length(HEAD)
    if length == 0:
        return np.empty(0)
    scale = 10 ** generator.uniform(-6, 6)
    head = generator.uniform(0.1, 1.0, length - HEAD.parameters)
    centre = generator.normal(size=HEAD.features)
    weights = generator.uniform(0.1, 10.0, HEAD.classes)
    rest = np.clip(scale * generator.normal(size=HEAD.parameters - HEAD.features - HEAD.classes), -1e6, 1e6)
    return np.concatenate([head, centre, weights, rest])
