"""Synthetic volumes of chests with nodules, drawn by formulas: for studies of volumes.

A chest of 32 x 32 x 32 voxels holds two lungs, which vessels run through. Half of the patients have two or three
nodules anywhere in the lungs, so that most slices of a volume show none. Vessels look like nodules in a single slice,
but run through many.
"""

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.columns import Column, Names
from fedveil.data.annotations.records import Records
from fedveil.data.dataset import TEST, TRAIN
from fedveil.data.image_store import ArrayImages
from fedveil.data.options import Reading
from fedveil.data.split import HOLDOUT_STREAM, PHANTOM_STREAM

__all__ = ["SIDE", "drawn_volumes", "phantom_volumes"]

SIDE = 32
"""Voxels along each axis."""
PATIENTS = 800
STREAM = 3
VESSELS = 5
AXIS = (np.arange(SIDE, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / SIDE) - 1
Z, Y, X = AXIS[:, None, None], AXIS[None, :, None], AXIS[None, None, :]

Volume = npt.NDArray[np.float32]


def phantom_volumes(image_size: int, reading: Reading, patients: int = PATIENTS, seed: int = 0) -> Records:
    """The synthetic set: the classes clear and nodule, a fifth of the patients held out for testing.

    A quarter of the patients have two volumes. Without ``reading.slices`` it is refused, as volumes in arrays are.
    """
    volumes, owner, ill = drawn_volumes(patients, seed)
    held_out = np.random.default_rng([seed, HOLDOUT_STREAM]).random(patients) < 0.2
    return Records(
        name="phantom:volumes",
        images=ArrayImages(volumes, image_size, reading),
        labels=ill[owner].astype(np.int64),
        classes=("clear", "nodule"),
        image_names=Names([f"synthetic-{row + 1:04d}" for row in range(len(owner))]),
        place=lambda row: f"phantom:volumes, volume {row + 1}",
        patients=Column.of(f"synthetic-patient-{code + 1:04d}" for code in owner),
        splits=np.where(held_out[owner], TEST, TRAIN).astype(np.int8),
        synthetic=True,
        description="Synthetic volumes of chests drawn by formulas; they show nobody.",
    )


def drawn_volumes(
    patients: int, seed: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Volumes (n, 32, 32, 32), slices from the feet to the head; the patient of each; and whether patients are ill."""
    generator = np.random.default_rng([seed, PHANTOM_STREAM, STREAM])
    owner = np.repeat(np.arange(patients), 1 + (generator.random(patients) < 0.25))
    ill = generator.random(patients) < 0.5
    volumes = np.empty((len(owner), SIDE, SIDE, SIDE), np.uint8)
    chest: Volume = np.empty(0, np.float32)
    for row, patient in enumerate(owner):
        if not row or owner[row - 1] != patient:
            chest = _chest(generator, ill=bool(ill[patient]))
        exposed = chest * np.float32(generator.uniform(0.92, 1.08)) + np.float32(generator.normal(0, 0.02))
        exposed += np.float32(0.03) * generator.standard_normal(chest.shape, dtype=np.float32)
        volumes[row] = np.rint(255 * np.clip(exposed, 0, 1))
    return volumes, owner, ill


def _chest(generator: np.random.Generator, *, ill: bool) -> Volume:
    """Density in [0, 1]: air, lungs with vessels and perhaps nodules, and the body around them."""
    width, depth = generator.uniform(0.85, 0.95), generator.uniform(0.7, 0.85)
    body = _soft(1 - np.sqrt((X / width) ** 2 + (Y / depth) ** 2) + 0 * Z)
    volume = 0.6 * body
    middle, reach = generator.uniform(0.40, 0.46), generator.uniform(0.30, 0.36)
    high, deep = generator.uniform(1.0, 1.15), generator.uniform(0.48, 0.58)
    lungs = np.zeros_like(volume)
    for side in (-1, 1):
        lung = 1 - np.sqrt(((X - side * middle) / reach) ** 2 + (Y / deep) ** 2 + (Z / high) ** 2)
        np.maximum(lungs, _soft(lung), out=lungs)
        volume += 0.40 * _tubes(generator, side * middle, reach, deep) * _soft(lung)
    volume -= 0.48 * lungs
    for _ in range(int(generator.integers(2, 4)) if ill else 0):
        side = generator.choice((-1, 1))
        place = side * middle + generator.uniform(-0.5, 0.5) * reach, generator.uniform(-0.5, 0.5) * deep
        radius, strength = generator.uniform(0.22, 0.34), generator.uniform(0.45, 0.60)
        distance = np.sqrt(
            (X - place[0]) ** 2 + (Y - place[1]) ** 2 + (Z - generator.uniform(-0.7, 0.7)) ** 2
        )
        volume += strength * _soft(1 - distance / radius, 3) * lungs
    return volume.astype(np.float32)


def _tubes(generator: np.random.Generator, middle: float, reach: float, deep: float) -> Volume:
    """Vessels along a lung: each a thin tube that leans a little."""
    tubes = np.zeros((SIDE, SIDE, SIDE), np.float32)
    for _ in range(VESSELS):
        x, y = middle + generator.uniform(-0.7, 0.7) * reach, generator.uniform(-0.7, 0.7) * deep
        lean_x, lean_y = generator.uniform(-0.25, 0.25, 2)
        distance = np.sqrt((X - x - lean_x * Z) ** 2 + (Y - y - lean_y * Z) ** 2)
        np.maximum(tubes, _soft(1 - distance / generator.uniform(0.06, 0.10), 2), out=tubes)
    return tubes


def _soft(inside: npt.NDArray[np.floating], sharp: float = 12.0) -> Volume:
    """From 0 outside to 1 inside, smooth at the edge."""
    return np.clip(0.5 + sharp * inside / 2, 0, 1).astype(np.float32)
