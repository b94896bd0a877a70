"""Synthetic chests with several findings each, drawn by the same formulas: for studies of findings.

Opacities are those of the phantom. A large heart, large hila, a raised diaphragm on one side and a lung without air
change the anatomy or add a lesion, each by an amount that differs between patients and overlaps with what chests
without the finding have.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.records import Records
from fedveil.data.image_store import check_size
from fedveil.data.phantom.anatomy import OPACITIES, Anatomy, Lesions
from fedveil.data.phantom.patients import (
    IMAGES_OF_PATIENT,
    SCANNERS,
    SHARE,
    draw_lesions,
    radiographs,
    synthetic_records,
)
from fedveil.data.split import PHANTOM_STREAM

__all__ = ["FINDINGS", "phantom_findings"]

FINDINGS = {
    "opacity": 0.40,
    "cardiomegaly": 0.20,
    "enlarged hila": 0.12,
    "raised diaphragm": 0.06,
    "white lung": 0.02,
}
"""The findings, with the probability that a patient has each, independently of the others."""


def phantom_findings(image_size: int = 64, patients: int = 2500, seed: int = 0) -> Records:
    """The synthetic set with five findings, a fifth of the patients held out for testing; see `.patients.phantom`."""
    check_size(image_size)
    generator = np.random.default_rng([seed, PHANTOM_STREAM, len(FINDINGS)])
    images_of = 1 + generator.choice(len(IMAGES_OF_PATIENT), patients, p=IMAGES_OF_PATIENT)
    owner = np.repeat(np.arange(patients), images_of)
    ill = generator.random((patients, len(FINDINGS))) < np.array(list(FINDINGS.values()))
    scanner = np.array(SCANNERS, dtype=object)[generator.choice(len(SCANNERS), patients, p=SHARE)]
    anatomy = _changed(generator, Anatomy.draw(generator, patients), ill)
    lesions = _with_white_lungs(
        generator, draw_lesions(generator, owner, ill[owner, 0].astype(np.int64)), ill, owner
    )
    pixels = radiographs(generator, image_size, owner, anatomy, lesions, list(scanner[owner]))
    return synthetic_records(
        "findings",
        pixels,
        ill[owner].astype(np.int8),
        tuple(FINDINGS),
        owner,
        seed=seed,
        what="several findings",
    )


def _changed(generator: np.random.Generator, anatomy: Anatomy, ill: npt.NDArray[np.bool_]) -> Anatomy:
    """The anatomy with a larger heart, larger hila, and a raised right diaphragm where the findings say so."""
    patients = len(ill)

    def more(column: int, low: float, high: float) -> npt.NDArray[np.float32]:
        return (ill[:, column] * generator.uniform(low, high, patients)).astype(np.float32)

    return replace(
        anatomy,
        heart_size=anatomy.heart_size + more(1, 0.14, 0.28),
        hilum=anatomy.hilum + more(2, 0.50, 0.90),
        dome_right=anatomy.dome_right + more(3, 0.20, 0.40),
    )


def _with_white_lungs(
    generator: np.random.Generator, lesions: Lesions, ill: npt.NDArray[np.bool_], owner: npt.NDArray[np.int64]
) -> Lesions:
    """A shadow over a whole lung, in the place of the last opacity of patients with a white lung."""
    patients, last = len(ill), OPACITIES - 1
    has = ill[owner, 4]

    def put(field: npt.NDArray[np.floating], low: float, high: float) -> npt.NDArray[np.floating]:
        drawn = generator.uniform(low, high, patients)[owner]
        changed = field.copy()
        changed[:, last] = np.where(has, drawn, field[:, last])
        return changed.astype(np.float32)

    side = np.where(generator.random(patients) < 0.5, -1.0, 1.0)[owner]
    x = put(lesions.x, 0.34, 0.44)
    x[:, last] = np.where(has, side * x[:, last], lesions.x[:, last])
    return Lesions(
        x=x,
        y=put(lesions.y, -0.10, 0.10),
        width=put(lesions.width, 0.45, 0.60),
        height=put(lesions.height, 0.60, 0.90),
        strength=put(lesions.strength, 2.50, 4.00),
        ragged=put(lesions.ragged, 0.10, 0.30),
    )
