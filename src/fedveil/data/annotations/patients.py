"""Ambiguous patient names: the unit of the guarantee must not be guessed."""

import re
from collections.abc import Iterator

import numpy as np

from fedveil.data.annotations.columns import Column
from fedveil.data.annotations.labels import Fault
from fedveil.data.options import Options

__all__ = ["patient_key", "patient_pairs", "placeholder_fault"]

PLACEHOLDER = re.compile(
    r"|anon(ym(ous|i[sz]ed))?|de-?identified|removed|unknown|notavailable|none|null|nan|n/?a|x{3,}|[-?]+|-\d+(\.0)?"
)
ZEROS = re.compile(r"(?<!\d)0+(?=\d)")


def patient_key(name: str) -> str:
    """The name without differences in spelling: letter case, spaces, leading zeros of numbers.

    It depends on the name alone, not on other patients' names. Where each image is judged by itself, similar names
    count as one patient: two people who are taken for one have half the protection each, since one of them moves a sum
    by twice its bound at most.

    >>> {patient_key(name) for name in ("P 7", "p7", "P007")}, patient_key("P70")
    ({'p7'}, 'p70')
    """
    return ZEROS.sub("", "".join(name.split()).casefold())


def is_placeholder(name: str) -> bool:
    """Whether the name is a placeholder.

    >>> is_placeholder("ANONYMOUS"), is_placeholder("A-17")
    (True, False)
    """
    return PLACEHOLDER.fullmatch(re.sub(r"[\s_]+", "", name).casefold()) is not None


def placeholder_fault(name: str, options: Options) -> Fault | None:
    """Why a patient's name is unusable; None if it is usable."""
    if "placeholder-patients" in options.accept or not is_placeholder(name):
        return None
    return (
        f"the patient is called {name}" if name else "the patient has no name",
        "this is a placeholder, and all images with it would count as one patient's",
        'name the patients, or set data.accept = ["placeholder-patients"] if it is one patient',
    )


def patient_pairs(
    patients: Column, identifiers: Column, options: Options
) -> Iterator[tuple[int, int, Fault]]:
    """Pairs of rows (later, earlier) that may show one patient under two names, each pair of names once.

    Args:
        patients: the patient of each row.
        identifiers: PatientID of each row's DICOM file, if it has one.
        options: what the study accepts.
    """
    similar = patients.renamed(patient_key)
    if "similar-patients" not in options.accept:
        for later, earlier in _clashes(similar, patients):
            yield (
                later,
                earlier,
                (
                    f"patient {patients[later]} is spelt {patients[earlier]} elsewhere",
                    "a patient must have one name, or the guarantee covers only part of their images",
                    'use one spelling, or set data.accept = ["similar-patients"] if they are two patients',
                ),
            )
    if "dicom-patients" not in options.accept:
        known = identifiers.renamed(lambda name: "" if is_placeholder(name) else patient_key(name))
        for later, earlier in _clashes(known, similar):
            yield (
                later,
                earlier,
                (
                    f"the PatientID {identifiers[later]} is patient {patients[later]} here "
                    f"and {patients[earlier]} elsewhere",
                    "the patient column must not split a patient, or the guarantee covers only part of their images",
                    'correct it, or set data.accept = ["dicom-patients"] if the column is right',
                ),
            )


def _clashes(keys: Column, names: Column) -> Iterator[tuple[int, int]]:
    """Rows of one key (unless it is empty) and two names: the first row of each further name, and that of the first."""
    rows = np.flatnonzero(np.array(keys.map(bool, False))[keys.codes])
    _, first, group = np.unique(keys.codes[rows], return_index=True, return_inverse=True)
    earlier = rows[first][group]
    pairs = keys.codes[rows] * (len(names.names) + 1) + names.codes[rows]
    for place in np.sort(np.unique(pairs, return_index=True)[1]):
        if names.codes[rows[place]] != names.codes[earlier[place]]:
            yield int(rows[place]), int(earlier[place])
