"""Draws the patients to test on where a source has no split, and says which label stands for a patient."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

__all__ = ["draw_test_patients", "patient_labels"]

Codes = npt.NDArray[np.int64]

HOLDOUT_STREAM, PARTITION_STREAM, PHANTOM_STREAM, TEST_STREAM = 1, 2, 3, 4
"""Keep what one study seed draws for different ends independent."""


def patient_labels(patients: Codes, labels: Codes) -> Codes:
    """One label a patient: of the labels that the patient's images have, the one rarest among all images.

    Rarest, because drawing by it keeps rare classes on both sides of a split. Every code below
    ``patients.max() + 1`` must occur.

    >>> patient_labels(np.array([0, 0, 1, 2]), np.array([0, 1, 0, 0])).tolist()
    [1, 0, 0]
    """
    rarity = np.empty(int(labels.max()) + 1, np.int64)
    rarest_first = np.argsort(np.bincount(labels), kind="stable")
    rarity[rarest_first] = np.arange(len(rarity))
    best = np.full(int(patients.max()) + 1, len(rarity), np.int64)
    np.minimum.at(best, patients, rarity[labels])
    return rarest_first[best].astype(np.int64)


def draw_test_patients(
    names: Sequence[str], fraction: float, seed: int, secret: bytes = b""
) -> npt.NDArray[np.bool_]:
    """Marks the patients whose keyed hash falls below ``fraction``: each by their own name, whoever else is there.

    That is what a guarantee for one patient needs. Were the split drawn among all patients, by ranks, strata or
    counts, one patient more would move others between training and test, and a sum over the training patients by
    more than one patient's bound. So the fraction is met on average only, and no class is sure to be on both sides.

    Args:
        names: what the data calls each patient; equal names are marked alike.
        fraction: chance of each patient to be held out, in [0, 1).
        seed: of the study; public.
        secret: at most 64 bytes; who lacks it cannot tell who is held out.
    """
    below = int(fraction * 2**64)
    start = blake2b(f"fedveil held out {seed} ".encode(), digest_size=8, key=secret)

    def drawn(name: str) -> bool:
        own = start.copy()
        own.update(name.encode())
        return int.from_bytes(own.digest()) < below

    return np.fromiter((drawn(name) for name in names), bool, len(names))
