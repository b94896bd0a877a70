"""The usable images of a hospital for a study, each image judged independently.

`fedveil.data.load` refuses a source because of one faulty image: a person reads the error and corrects the image. A
hospital that has approved a study answers independently of its images. If one image, label or count decided whether
the others are in its sums, or whether the hospital answers at all, it would be revealed without any noise. So here

- an image is used or left out by its own annotations alone: its label, its patient, its file;
- classes, channels and size are the study's; problems of the source as a whole (a missing file, other columns) do
not concern one image, and are raised.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.patients import patient_name
from fedveil.data.annotations.records import Records
from fedveil.data.dataset import TEST, TRAIN, Dataset
from fedveil.data.embeddings import Embeddings
from fedveil.data.image_store import OddImages
from fedveil.data.load import read_records
from fedveil.data.options import Options
from fedveil.data.split import draw_test_patients
from fedveil.errors import DataError

__all__ = ["load_usable"]

log = logging.getLogger("fedveil.site")
Codes = npt.NDArray[np.int64]


def load_usable(source: str, options: Options, *, base: Path, need_patients: bool) -> Dataset:
    """The usable images, with the classes, channels and size of the study.

    Args:
        source: as for `fedveil.data.load`.
        options: with the study's classes and channels.
        base: folder that the source is relative to.
        need_patients: whether an image without a patient is left out, instead of counting as a separate patient.

    Raises:
        DataError: the source as a whole cannot be read.
    """
    classes, options = options.classes, replace(options, leave_out=True)
    records = read_records(source, options, base)
    embedded = isinstance(
        records.images, Embeddings
    )  # in memory, and judged row by row: no image can fail later
    if classes is None or (options.reading.channels is None and not embedded):
        raise DataError(
            "no classes or no channels are given",
            "they must come from the study, not from the images",
            "give the study's",
        )
    images = records.images if embedded else OddImages(records.images)
    labels, patients = _labels(records, options, classes), _patients(records, options)
    keep = np.flatnonzero(np.array([name is not None or not need_patients for name in patients], dtype=bool))
    left_out = sum(problem.left_out for problem in records.problems) + len(labels) - len(keep)
    if left_out:
        log.error(
            "%s: %s images or rows are unusable and left out: see `fedveil site check`",
            records.name,
            left_out,
        )
    keys = records.image_keys() if any(patient is None for patient in patients) else ()
    names = [patient if patient is not None else keys[row] for row, patient in enumerate(patients)]
    owners = _owners(patients, names)
    patient_names, codes = np.unique(
        np.array([owners[row] for row in keep], dtype=np.str_), return_inverse=True
    )
    sites = [site or "" for site in records.sites_given()]
    site_names, site_codes = np.unique(
        np.array([sites[row] for row in keep], dtype=np.str_), return_inverse=True
    )
    return Dataset(
        name=records.name,
        images=images.subset(keep),
        labels=labels[keep],
        patients=codes.astype(np.int64),
        patient_names=tuple(str(name) for name in patient_names),
        image_names=tuple(records.image_names[row] for row in keep),
        classes=classes,
        sites=site_codes.astype(np.int64) if any(sites) else None,
        site_names=tuple(str(name) for name in site_names) if any(sites) else (),
        split=_split(records, names, options)[keep],
        synthetic=records.synthetic,
        patients_known=need_patients,
    )


def _patients(records: Records, options: Options) -> list[str | None]:
    """Each image's patient. Similar names count as one, unless the hospital's settings state that they are different
    patients."""
    return [patient_name(name, options) for name in records.patients_given()]


def _owners(patients: Sequence[str | None], names: Sequence[str]) -> list[str]:
    """Each image's patient. An image without a name counts as a separate patient, even if two have the same content."""
    seen: Counter[str] = Counter()
    found = []
    for patient, name in zip(patients, names, strict=True):
        if patient is None:
            seen[name] += 1
        found.append(f"patient {patient}" if patient is not None else f"image {name} {seen[name]}")
    return found


def _labels(records: Records, options: Options, classes: Sequence[str]) -> Codes:
    """The study's class of each image (n,). Labels that are not the study's were removed before, each independently."""
    if records.labels.ndim == 1:
        meant = np.zeros(len(records.classes), dtype=np.int64)
        for code in np.unique(records.labels):  # a file may name classes of which it has no image
            name = records.classes[code]
            meant[code] = int(name in options.positive) if options.positive else classes.index(name)
        return meant[records.labels]
    if options.positive is None:
        raise DataError(
            f"an image of {records.name} can have several labels at once",
            "fedveil needs exactly one class per image",
            "join a study that names positive findings",
        )
    positive = np.array([name in options.positive for name in records.classes], dtype=bool)
    found: Codes = (records.labels[:, positive] == 1).any(axis=1).astype(np.int64)
    return found


def _split(records: Records, names: Sequence[str], options: Options) -> npt.NDArray[np.int8]:
    """Training or test (n,): as given, or else by the hash of the patient's name."""
    given = records.splits_given()
    drawn = draw_test_patients(names, options.test_fraction, options.seed, options.secret)
    found = [
        (TEST if held_out else TRAIN) if split is None else split
        for split, held_out in zip(given, drawn, strict=True)
    ]
    return np.array(found, dtype=np.int8)
