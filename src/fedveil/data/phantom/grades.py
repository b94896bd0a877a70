"""Synthetic chests with grades of congestion, drawn by the same formulas: for studies of ordered grades.

From grade to grade the heart, the hila and the vessels are larger, by amounts that differ between patients, so that
neighbouring grades overlap. Frequencies are like those of graded retinopathy: most have no disease, and the severe
grades are rare.
"""

from dataclasses import replace

import numpy as np

from fedveil.data.annotations.records import Records
from fedveil.data.image_store import check_size
from fedveil.data.phantom.anatomy import Anatomy
from fedveil.data.phantom.patients import (
    IMAGES_OF_PATIENT,
    SCANNERS,
    SHARE,
    draw_lesions,
    radiographs,
    synthetic_records,
)
from fedveil.data.split import PHANTOM_STREAM

__all__ = ["GRADES", "phantom_grades"]

GRADES = {"0": 0.49, "1": 0.11, "2": 0.24, "3": 0.09, "4": 0.07}
"""The grades, with the share of patients of each."""
STREAM = 7
PATIENTS = 1500
OVERLAP = 0.45
"""Standard deviation of a patient's severity about their grade."""


def phantom_grades(image_size: int = 64, patients: int = PATIENTS, seed: int = 0) -> Records:
    """The synthetic set with five grades, a fifth of the patients held out for testing; see `.patients.phantom`."""
    check_size(image_size)
    generator = np.random.default_rng([seed, PHANTOM_STREAM, STREAM])
    images_of = 1 + generator.choice(len(IMAGES_OF_PATIENT), patients, p=IMAGES_OF_PATIENT)
    owner = np.repeat(np.arange(patients), images_of)
    grade = generator.choice(len(GRADES), patients, p=list(GRADES.values()))
    severity = (grade + OVERLAP * generator.standard_normal(patients)).astype(np.float32)
    scanner = np.array(SCANNERS, dtype=object)[generator.choice(len(SCANNERS), patients, p=SHARE)]
    plain = Anatomy.draw(generator, patients)
    anatomy = replace(
        plain,
        heart_size=plain.heart_size + np.float32(0.03) * severity,
        hilum=plain.hilum + np.float32(0.10) * severity,
        vessels=plain.vessels + np.float32(0.03) * severity,
    )
    lesions = draw_lesions(generator, owner, np.zeros(len(owner), np.int64))
    pixels = radiographs(generator, image_size, owner, anatomy, lesions, list(scanner[owner]))
    return synthetic_records(
        "grades",
        pixels,
        grade[owner].astype(np.int64),
        tuple(GRADES),
        owner,
        seed=seed,
        what="grades of congestion",
    )
