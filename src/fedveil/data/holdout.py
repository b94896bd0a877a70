"""Draws the patients to test on where a source has no split, and says which label stands for a patient."""

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
    patients: Codes, labels: Codes, sites: Codes | None, fraction: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Marks the images of a random ``fraction`` of the patients, drawn alike from every site and label.

    In each stratum at least one patient stays for training, so that no site and no class is lost to the test.
    """
    label = patient_labels(patients, labels)
    site = np.zeros(len(label), np.int64)
    if sites is not None:
        site[patients] = sites
    strata = np.unique(np.stack([site, label]), axis=1, return_inverse=True)[1].ravel()
    order = np.random.default_rng([seed, HOLDOUT_STREAM]).permutation(len(label))
    chosen = np.zeros(len(label), bool)
    wanted, seen = 0, 0
    for stratum in range(int(strata.max()) + 1):
        members = order[strata[order] == stratum]
        seen += len(members)
        # Rounding is carried from stratum to stratum, so that many small ones still give the fraction.
        take = min(max(round(fraction * seen) - wanted, 0), len(members) - 1)
        chosen[members[:take]] = True
        wanted += take
    return chosen[patients]
