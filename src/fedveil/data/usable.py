"""What of a hospital's images a study can use, each image judged by itself.

`fedveil.data.load` refuses a source for one image that is not as it should be: a person reads that, and corrects it.
A hospital that has approved a study answers whatever its images are. If one image, label or count decided whether the
others are in its sums, or whether it answers at all, that image would be told without any noise. So here

- an image is left out, or counts, by what is said of it alone: its label, its patient, its file;
- classes, channels and size are the study's; what is wrong with the source as a whole (no such file, other columns) is
  no matter of one image, and is raised.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt

from fedveil.data.cohort import TEST, TRAIN, Dataset
from fedveil.data.files import FileImages
from fedveil.data.holdout import draw_test_patients
from fedveil.data.load import read_records
from fedveil.data.records import Options, Records, letters
from fedveil.data.stack import DIGEST_BYTES, PREPROCESSING, ImageStack, Indices
from fedveil.errors import DataError, FedveilError

__all__ = ["load_usable"]

log = logging.getLogger("fedveil.site")
Codes = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.float32]

_UNUSABLE = -1


def load_usable(source: str, options: Options, *, base: Path, channels: int, need_patients: bool) -> Dataset:
    """The images that can be used, with the classes and channels that the study gives.

    Args:
        source: as for `fedveil.data.load`.
        options: with the study's classes.
        base: folder that the source is relative to.
        channels: 1 for grey images, 3 for colour.
        need_patients: whether an image of which nobody says whose it is counts nothing, rather than as a patient's own.

    Raises:
        DataError: the source as a whole cannot be read, or is of other channels as a whole.
    """
    if options.classes is None:
        raise DataError("no classes are given", "they are the study's, not the images'", "give the study's")
    records = read_records(source, options, base)
    images = _Whole(_with_channels(records, channels))
    labels, patients = _labels(records, options, options.classes), records.patients_given()
    named = [patient is not None or not need_patients for patient in patients]
    keep = np.flatnonzero((labels != _UNUSABLE) & np.array(named, dtype=bool))
    left_out = len(records.problems) + len(labels) - len(keep)
    if left_out:
        log.error(
            "%s: %s images or rows cannot be used and count as nothing: see `fedveil site check`",
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
        classes=options.classes,
        sites=site_codes.astype(np.int64) if any(sites) else None,
        site_names=tuple(str(name) for name in site_names) if any(sites) else (),
        split=_split(records, names, options)[keep],
        synthetic=records.synthetic,
        patients_known=need_patients,
    )


def _owners(patients: Sequence[str | None], names: Sequence[str]) -> list[str]:
    """Whose each image is. One that nobody names is a patient's own, also where two of them have the same content."""
    seen: Counter[str] = Counter()
    found = []
    for patient, name in zip(patients, names, strict=True):
        if patient is None:
            seen[name] += 1
        found.append(f"patient {patient}" if patient is not None else f"image {name} {seen[name]}")
    return found


def _with_channels(records: Records, channels: int) -> ImageStack:
    """The images as the study sees them; that one file is in colour changes no other."""
    images = records.images
    if isinstance(images, FileImages):
        return FileImages(
            images.paths, [replace(fact, channels=channels) for fact in images.facts], images.size
        )
    if images.channels != channels:
        raise DataError(
            f"the images here have {images.channels} channels",
            f"the study's have {channels}",
            "convert them, or leave the study",
        )
    return images


def _labels(records: Records, options: Options, classes: Sequence[str]) -> Codes:
    """The study's class of each image (n,), -1 where its label is none: by that label alone."""
    meant = np.array([_code(name, options.positive, classes) for name in records.classes], dtype=np.int64)
    if records.labels.ndim == 1:
        single: Codes = np.asarray(meant[records.labels] if len(meant) else (), dtype=np.int64)
        return single
    if options.positive is None:
        raise DataError(
            f"an image of {records.name} can have several labels at once",
            "fedveil tells classes apart of which every image has exactly one",
            "join a study that names positive findings",
        )
    found: Codes = np.asarray(records.labels[:, meant == 1].any(axis=1), dtype=np.int64)
    return found


def _code(label: str, positive: Sequence[str] | None, classes: Sequence[str]) -> int:
    """What a label means; one that is spelt almost as a positive one may be meant so, and counts nothing."""
    if positive is None:
        return classes.index(label) if label in classes else _UNUSABLE
    if label in positive:
        return 1
    return _UNUSABLE if letters(label) in {letters(name) for name in positive} else 0


def _split(records: Records, names: Sequence[str], options: Options) -> npt.NDArray[np.int8]:
    """Training or test (n,): as given, or else by the hash of whose the image is."""
    given = records.splits_given()
    drawn = draw_test_patients(names, options.test_fraction, options.seed, options.secret)
    found = [
        (TEST if held_out else TRAIN) if split is None else split
        for split, held_out in zip(given, drawn, strict=True)
    ]
    return np.array(found, dtype=np.int8)


@final
class _Whole(ImageStack):
    """Images of which one that cannot be read is black, and no other with it."""

    def __init__(self, base: ImageStack) -> None:
        self._base = base

    def __len__(self) -> int:
        return len(self._base)

    @property
    def channels(self) -> int:
        return self._base.channels

    @property
    def size(self) -> int:
        return self._base.size

    def read(self, indices: Indices) -> Pixels:
        try:
            return self._base.read(indices)
        except Exception:  # noqa: BLE001 - whatever is wrong with one image stays with that image
            empty = np.empty((0, self.channels, self.size, self.size), np.float32)
            return np.concatenate([empty, *(self._one(int(index)) for index in indices)])

    def digest(self, indices: Indices) -> list[str]:
        try:
            return self._base.digest(indices)
        except FedveilError:
            return [self._digest(int(index)) for index in indices]

    def _one(self, index: int) -> Pixels:
        try:
            return self._base.read([index])
        except Exception as error:  # noqa: BLE001 - see above
            log.error("an image counts as black: %s", error)
            return np.zeros((1, self.channels, self.size, self.size), np.float32)

    def _digest(self, index: int) -> str:
        try:
            return self._base.digest([index])[0]
        except FedveilError:
            black = f"{PREPROCESSING} black {self.channels} {self.size}"
            return blake2b(black.encode(), digest_size=DIGEST_BYTES).hexdigest()
