"""Ambiguous patient names: the unit of the guarantee must not be guessed."""

import re
from collections.abc import Iterator, Sequence

from fedveil.data.annotations.labels import Fault
from fedveil.data.options import Options

__all__ = ["patient_key", "patient_name", "patient_pairs", "placeholder_fault"]

PLACEHOLDER = re.compile(
    r"|anon(ym(ous|i[sz]ed))?|de-?identified|removed|unknown|notavailable|none|null|nan|n/?a|x{3,}|[-?]+|-\d+(\.0)?"
)


def patient_key(name: str) -> str:
    """The name without differences in spelling: letter case, spaces, leading zeros of numbers.

    It depends on the name alone, not on other patients' names.

    >>> {patient_key(name) for name in ("P 7", "p7", "P007")}, patient_key("P70")
    ({'p7'}, 'p70')
    """
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"\s+", "", name).casefold())


def patient_name(name: str | None, options: Options) -> str | None:
    """Whose an image is where each is judged by itself: similar names count as one, unless they are said to be several.

    Two people who are taken for one have half the protection each: one of them moves a sum by twice its bound at most.
    """
    return name if name is None or "similar-patients" in options.accept else patient_key(name)


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
    patients: Sequence[str], identifiers: Sequence[str | None], options: Options
) -> Iterator[tuple[int, int, Fault]]:
    """Pairs of rows (later, earlier) that may show one patient under two names, each pair of names once.

    Args:
        patients: the patient of each row.
        identifiers: PatientID of each row's DICOM file; None if it has none.
        options: what the study accepts.
    """
    if "similar-patients" not in options.accept:
        for later, earlier in _clashes([patient_key(name) for name in patients], patients):
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
        known = ["" if one is None or is_placeholder(one) else patient_key(one) for one in identifiers]
        for later, earlier in _clashes(known, [patient_key(name) for name in patients]):
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


def _clashes(keys: Sequence[str], names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Rows of one key (unless it is empty) and two names: the first row of each further name, and that of the first."""
    first: dict[str, int] = {}
    told: set[tuple[str, str]] = set()
    for row, (key, name) in enumerate(zip(keys, names, strict=True)):
        earlier = first.setdefault(key, row)
        if key and names[earlier] != name and (key, name) not in told:
            told.add((key, name))
            yield row, earlier
