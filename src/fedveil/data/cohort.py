"""A data set, and the part of it that one hospital holds: images grouped by the patient they show."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fedveil.data.stack import ArrayImages, ImageStack, Indices
from fedveil.errors import DataError

__all__ = ["TEST", "TRAIN", "VALIDATION", "Cohort", "Dataset", "PatientImages"]

TRAIN, TEST, VALIDATION = 0, 1, 2


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Dataset:
    """n labelled images of P patients, checked: every reader ends here.

    ``labels`` index ``classes``; ``patients`` index ``patient_names``; ``sites`` index ``site_names`` and are
    None where the source names no hospitals; ``split`` is 0 for training, 1 for test, 2 for validation. With
    ``patients_known`` false, every image is taken for a patient of its own. ``synthetic`` images show nobody.
    """

    name: str
    images: ImageStack
    labels: npt.NDArray[np.int64]
    patients: npt.NDArray[np.int64]
    patient_names: tuple[str, ...]
    image_names: tuple[str, ...]
    classes: tuple[str, ...]
    sites: npt.NDArray[np.int64] | None = None
    site_names: tuple[str, ...] = ()
    split: npt.NDArray[np.int8]
    synthetic: bool = False
    patients_known: bool = True
    description: str = ""

    def __post_init__(self) -> None:
        sites = self.labels if self.sites is None else self.sites
        lengths = [len(self.labels), len(self.patients), len(self.split), len(self.image_names), len(sites)]
        if any(length != len(self.images) for length in lengths):
            raise DataError(
                f"{self.name} has {len(self.images)} images but columns of the lengths {lengths}",
                "there must be one label, patient, split and name an image",
                "give columns of one length",
            )
        _check_codes(self.name, "label", self.labels, len(self.classes))
        _check_codes(self.name, "patient", self.patients, len(self.patient_names))
        _check_codes(self.name, "split", self.split, 3)
        if self.sites is not None:
            _check_codes(self.name, "site", self.sites, len(self.site_names))

    @classmethod
    def empty(cls, classes: tuple[str, ...], *, channels: int, image_size: int) -> Self:
        """No image at all: what somebody has who knows of the data nothing but classes and channels."""
        nothing = np.empty(0, dtype=np.int64)
        return cls(
            name="none",
            images=ArrayImages(np.empty((0, image_size, image_size, channels), dtype=np.float32), image_size),
            labels=nothing,
            patients=nothing,
            patient_names=(),
            image_names=(),
            classes=classes,
            split=nothing.astype(np.int8),
        )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def train(self) -> npt.NDArray[np.int64]:
        """Indices of the training images."""
        return np.flatnonzero(self.split == TRAIN)

    @property
    def test(self) -> npt.NDArray[np.int64]:
        """Indices of the test images."""
        return np.flatnonzero(self.split == TEST)

    @property
    def validation(self) -> npt.NDArray[np.int64]:
        """Indices of the validation images."""
        return np.flatnonzero(self.split == VALIDATION)

    def subset(self, indices: Indices) -> "Dataset":
        """These images only, with the same classes and sites; patients are renumbered, in the old order."""
        rows = np.asarray(indices, dtype=np.int64)
        kept, patients = np.unique(self.patients[rows], return_inverse=True)
        return Dataset(
            name=self.name,
            images=self.images.subset(rows),
            labels=self.labels[rows],
            patients=patients.astype(np.int64),
            patient_names=tuple(self.patient_names[code] for code in kept),
            image_names=tuple(self.image_names[row] for row in rows),
            classes=self.classes,
            sites=None if self.sites is None else self.sites[rows],
            site_names=self.site_names,
            split=self.split[rows],
            synthetic=self.synthetic,
            patients_known=self.patients_known,
            description=self.description,
        )

    def cohort(self, name: str, indices: Indices) -> "Cohort":
        """What the hospital ``name`` holds, if these are its images."""
        rows = np.asarray(indices, dtype=np.int64)
        if not len(rows):
            raise DataError(
                f"{name} has no patients",
                "a site needs at least one",
                "leave it out, or give it images to hold",
            )
        patients = np.unique(self.patients[rows], return_inverse=True)[1].astype(np.int64)
        return Cohort(
            name=name,
            images=self.images.subset(rows),
            labels=self.labels[rows],
            patients=patients,
            classes=self.classes,
        )

    def digest(self) -> str:
        """Content hash over pixels, labels, classes, the grouping by patients, sites and split."""
        whole = blake2b(digest_size=32)
        for text in self.images.digest(np.arange(len(self))):
            whole.update(bytes.fromhex(text))
        columns: list[npt.NDArray[Any]] = [self.labels, self.patients, self.split]
        for column in columns if self.sites is None else [*columns, self.sites]:
            whole.update(b"|" + np.ascontiguousarray(column, dtype=np.int64).tobytes())
        whole.update(repr((self.classes, self.site_names)).encode())
        return whole.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class PatientImages:
    """One patient's images, float32 ``(k, channels, size, size)`` in [0, 1], and their labels ``(k,)``."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Cohort:
    """One site's training images, grouped by patient; ``len`` is the number of patients.

    ``patients`` holds local codes 0 .. len - 1, one an image, and every code occurs.
    """

    name: str
    images: ImageStack
    labels: npt.NDArray[np.int64]
    patients: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    _rows: npt.NDArray[np.int64] = field(init=False, repr=False)
    _starts: npt.NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        codes = np.unique(self.patients)
        if not len(self.images) == len(self.labels) == len(self.patients) or not len(codes):
            raise DataError(
                f"cohort {self.name} has {len(self.images)} images, {len(self.labels)} labels, "
                f"{len(self.patients)} patient codes",
                "there must be at least one image, and one label and patient code each",
                "give columns of one length",
            )
        if codes[0] != 0 or codes[-1] != len(codes) - 1:
            raise DataError(
                f"cohort {self.name} numbers {len(codes)} patients from {codes[0]} to {codes[-1]}",
                "they must be numbered 0, 1, 2, ... without gaps",
                "build it with Dataset.cohort",
            )
        _check_codes(self.name, "label", self.labels, len(self.classes))
        rows = np.argsort(self.patients, kind="stable")
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_starts", np.searchsorted(self.patients[rows], np.arange(len(codes) + 1)))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def rows(self, patient: int) -> npt.NDArray[np.int64]:
        """Indices of the patient's images."""
        if not 0 <= patient < len(self):
            raise IndexError(f"{self.name} has {len(self)} patients; there is no patient {patient}")
        return self._rows[self._starts[patient] : self._starts[patient + 1]]

    def __getitem__(self, patient: int) -> PatientImages:
        rows = self.rows(patient)
        return PatientImages(self.images.read(rows), self.labels[rows])

    def __iter__(self) -> Iterator[PatientImages]:
        return (self[patient] for patient in range(len(self)))


def _check_codes(name: str, column: str, codes: npt.NDArray[Any], count: int) -> None:
    if len(codes) and (int(codes.min()) < 0 or int(codes.max()) >= count):
        raise DataError(
            f"{name} holds {column} codes from {codes.min()} to {codes.max()}",
            f"with {count} names they must lie in 0 .. {count - 1}",
            f"give every {column} a name",
        )
