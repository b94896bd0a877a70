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

from fedveil.data.annotations.columns import Column, Names, missing_column, taken
from fedveil.data.annotations.labels import UNSURE, Labels
from fedveil.data.annotations.patients import patient_key
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
    keep = np.flatnonzero((patients.codes >= 0) | (not need_patients))
    left_out = sum(problem.left_out for problem in records.problems) + len(labels) - len(keep)
    if left_out:
        log.error(
            "%s: %s images or rows are unusable and left out: see `fedveil site check`",
            records.name,
            left_out,
        )
    nameless = np.flatnonzero(patients.codes < 0)
    keys = records.image_keys(nameless)
    owners = _owners(patients, nameless, keys).take(keep).compact()
    sites = records.sites if records.sites is not None and any(records.sites.names) else None
    sites = None if sites is None else sites.take(keep).compact()
    return Dataset(
        name=records.name,
        images=images.subset(keep),
        labels=labels[keep],
        patients=owners.codes,
        patient_names=owners.names,
        image_names=records.image_names.take(keep),
        classes=classes,
        task=options.task or "classes",
        attributes=taken(records.attributes, keep),
        sites=None if sites is None else sites.codes,
        site_names=() if sites is None else tuple(sites.names),
        split=_split(records, patients, nameless, keys, options)[keep],
        synthetic=records.synthetic,
        patients_known=need_patients,
    )


def _patients(records: Records, options: Options) -> Column:
    """Each image's patient. Similar names count as one, unless the hospital's settings state that they are different
    patients."""
    column = records.patients or missing_column(len(records.image_names))
    return column if "similar-patients" in options.accept else column.renamed(patient_key)


def _owners(patients: Column, nameless: Codes, keys: Names) -> Column:
    """Each image's patient. An image without a name counts as a separate patient, even if two have the same content."""
    seen: Counter[str] = Counter()
    single = {}
    for row, key in zip(nameless.tolist(), keys, strict=True):
        seen[key] += 1
        single[row] = f"image {key} {seen[key]}"
    named = patients.renamed(lambda name: f"patient {name}")
    return (
        Column.of(single[row] if text is None else text for row, text in enumerate(named))
        if single
        else named
    )


def _labels(records: Records, options: Options, classes: Sequence[str]) -> Labels:
    """The study's labels of each image. Those that are not the study's were removed before, each independently."""
    if records.labels.ndim == 1:
        meant = np.zeros(len(records.classes), dtype=np.int64)
        for code in np.unique(records.labels):  # a file may name classes of which it has no image
            name = records.classes[code]
            meant[code] = int(name in options.positive) if options.positive else classes.index(name)
        return meant[records.labels]
    if options.positive is not None:
        positive = np.array([name in options.positive for name in records.classes], dtype=bool)
        marked: Codes = (records.labels[:, positive] == 1).any(axis=1).astype(np.int64)
        return marked
    if options.task != "findings" and not options.label_columns:
        raise DataError(
            f"an image of {records.name} can have several labels at once",
            "fedveil needs exactly one class per image unless the task is findings",
            "join a study that names positive findings",
        )
    found = np.full((len(records.labels), len(classes)), UNSURE, dtype=np.int8)
    for code, name in enumerate(classes):
        if name in records.classes:
            found[:, code] = records.labels[:, records.classes.index(name)]
    if options.task == "findings":
        return found
    codes: Codes = (found == 1).argmax(axis=1).astype(np.int64)
    return codes


def _split(
    records: Records, patients: Column, nameless: Codes, keys: Names, options: Options
) -> npt.NDArray[np.int8]:
    """Training or test (n,): as given, or else by the hash of the patient's name, or of the image's key."""

    def drawn(names: Names) -> npt.NDArray[np.bool_]:
        return draw_test_patients(names, options.test_fraction, options.seed, options.secret)

    held_out = np.append(drawn(patients.names), False)[patients.codes]
    held_out[nameless] = drawn(keys)
    own = np.where(held_out, TEST, TRAIN)
    given = own if records.splits is None else np.where(records.splits < 0, own, records.splits)
    return given.astype(np.int8)
