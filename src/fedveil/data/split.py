"""Draws the test patients if a source has no split, and selects the label that represents a patient."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["draw_test_patients", "patient_labels"]

Codes = npt.NDArray[np.int64]

HOLDOUT_STREAM, PARTITION_STREAM, PHANTOM_STREAM, TEST_STREAM = 1, 2, 3, 4
"""Make the draws from one study seed for different purposes independent."""


def patient_labels(patients: Codes, labels: npt.NDArray[Any]) -> Codes:
    """One label per patient: of the labels of the patient's images, the one rarest among all images.

    Of several findings (n, K), an image's label is the rarest one it has, or none. The rarest, because drawing by it
    preserves rare classes on both sides of a split. Every code below ``patients.max() + 1`` must occur.

    >>> patient_labels(np.array([0, 0, 1, 2]), np.array([0, 1, 0, 0])).tolist()
    [1, 0, 0]
    """
    if labels.ndim == 2:
        marked = labels == 1
        ranked = np.where(marked, marked.sum(axis=0), len(labels) + 1)
        labels = np.where(marked.any(axis=1), ranked.argmin(axis=1) + 1, 0)
    rarity = np.empty(int(labels.max()) + 1, np.int64)
    rarest_first = np.argsort(np.bincount(labels), kind="stable")
    rarity[rarest_first] = np.arange(len(rarity))
    best = np.full(int(patients.max()) + 1, len(rarity), np.int64)
    np.minimum.at(best, patients, rarity[labels])
    return rarest_first[best].astype(np.int64)


def draw_test_patients(
    names: Sequence[str], fraction: float, seed: int, secret: bytes = b""
) -> npt.NDArray[np.bool_]:
    """Marks the patients whose keyed hash falls below ``fraction``: each by their own name, independently of others.

    A guarantee for one patient requires this. If the split were drawn among all patients, by ranks, strata or
    counts, one additional patient would move others between training and test, and change a sum over the training
    patients by more than one patient's bound. So the fraction is met only on average, and a class may be missing on
    one side.

    Args:
        names: the patients' names in the data; equal names get equal marks.
        fraction: probability that a patient is held out, in [0, 1).
        seed: of the study; public.
        secret: at most 64 bytes; without it nobody can determine who is held out.
    """
    below = int(fraction * 2**64)
    start = blake2b(f"fedveil held out {seed} ".encode(), digest_size=8, key=secret)

    def drawn(name: str) -> bool:
        own = start.copy()
        own.update(name.encode())
        return int.from_bytes(own.digest()) < below

    return np.fromiter((drawn(name) for name in names), bool, len(names))
