"""A data set, and one hospital's part of it: images grouped by patient."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.columns import Column, Names, taken
from fedveil.data.image_store import ArrayImages, ImageStack, Indices
from fedveil.data.options import Axis
from fedveil.data.windows import FILE, Window
from fedveil.errors import DataError

__all__ = ["TEST", "TRAIN", "VALIDATION", "Cohort", "Dataset", "PatientImages"]

TRAIN, TEST, VALIDATION = 0, 1, 2
DIGESTS = 4096
"""Content hashes that are in memory as texts at the same time."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class Dataset:
    """n labelled images of P patients, checked: every reader ends here.

    ``labels`` are (n,) int64 and index ``classes``; with the task "grades" these are in order. With the task
    "findings" they are (n, K) int8, one column per class: 1, 0, or -1 if unknown. ``patients`` index
    ``patient_names``; ``sites`` index ``site_names`` and are None if the source names no hospitals; ``split`` is 0 for
    training, 1 for test, 2 for validation. ``attributes`` are further columns by public names, such as age and sex;
    their values are private. With ``patients_known`` false, every image counts as a separate patient. ``synthetic``
    images show no real person.
    """

    name: str
    images: ImageStack
    labels: npt.NDArray[Any]
    patients: npt.NDArray[np.int64]
    patient_names: Sequence[str]
    image_names: Sequence[str]
    classes: tuple[str, ...]
    task: str = "classes"
    attributes: Mapping[str, Column] = field(default_factory=dict)
    sites: npt.NDArray[np.int64] | None = None
    site_names: tuple[str, ...] = ()
    split: npt.NDArray[np.int8]
    synthetic: bool = False
    patients_known: bool = True
    description: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "patient_names", Names(self.patient_names))
        object.__setattr__(self, "image_names", Names(self.image_names))
        sites = self.labels if self.sites is None else self.sites
        columns = (self.labels, self.patients, self.split, self.image_names, sites, *self.attributes.values())
        lengths = [len(column) for column in columns]
        if any(length != len(self.images) for length in lengths):
            raise DataError(
                f"{self.name} has {len(self.images)} images but columns of the lengths {lengths}",
                "there must be one label, patient, split and name per image",
                "give columns of one length",
            )
        _check_labels(self.name, self.labels, self.classes, self.task)
        _check_codes(self.name, "patient", self.patients, len(self.patient_names))
        _check_codes(self.name, "split", self.split, 3)
        if self.sites is not None:
            _check_codes(self.name, "site", self.sites, len(self.site_names))

    @classmethod
    def empty(
        cls, classes: tuple[str, ...], *, channels: int, image_size: int, task: str = "classes"
    ) -> Self:
        """A data set without images, of which only classes and channels are known."""
        nothing = np.empty(0, dtype=np.int64)
        return cls(
            name="none",
            images=ArrayImages(np.empty((0, image_size, image_size, channels), dtype=np.float32), image_size),
            labels=np.empty((0, len(classes)), np.int8) if task == "findings" else nothing,
            task=task,
            patients=nothing,
            patient_names=(),
            image_names=(),
            classes=classes,
            split=nothing.astype(np.int8),
        )

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        *,
        patients: Iterable[Any] | None = None,
        sites: Iterable[Any] | None = None,
        split: Iterable[Any] | None = None,
        classes: Sequence[str] | None = None,
        positive: Sequence[str] | None = None,
        test_fraction: float = 0.2,
        seed: int = 0,
        allow_patient_overlap: bool = False,
        accept: Sequence[str] = (),
        unknown_labels: str | int = "refuse",
        task: str = "classes",
        attributes: Mapping[str, Iterable[Any]] | None = None,
        window: Window = FILE,
        slices: int | None = None,
        axis: Axis = "axial",
        name: str = "arrays",
    ) -> "Dataset":
        """A data set from images in memory.

        Args:
            images: a numpy array (n, height, width) or (n, height, width, 1 or 3), or a torch tensor (n, height, width)
                or (n, 1 or 3, height, width); uint8, uint16, or floats in [0, 1].
            labels: (n,) class names, or whole numbers; for findings (n, K) of 1, 0, or -1 or NaN if unknown.
            patients: (n,) the patient of each image; without them every image counts as a separate patient, and the
                guarantee covers one image.
            sites: (n,) the hospital of each image; without them a study simulates hospitals.
            split: (n,) train, test or validation; without it test patients are drawn.
            classes: names of the classes in order, which whole numbers index. They are public. By default those that
                occur.
            positive: classes that together form the positive class of a binary task.
            test_fraction: probability that a patient is drawn for testing.
            seed: of that draw; public.
            allow_patient_overlap: accept a patient in two sites, or in training and test.
            accept: problems to accept instead of refusing them, as ``data.accept`` of a study file.
            unknown_labels: "refuse", or "drop" for images whose label is -1, "uncertain" or similar; for findings also
                "unknown", which keeps them as such, or 0 or 1.
            task: "classes", "findings" or "grades", which are classes in order.
            attributes: further columns (n,) by public names, such as age and sex.
            window: stored values that map to black and white, as ``data.window`` of a study file; with it, any
                numbers may be stored.
            slices: ``images`` are volumes (n, depth, height, width), each brought to that many slices.
            axis: along which they are cut: "axial" (the depth), "coronal" (the height) or "sagittal" (the width).
            name: for reports and errors.

        Raises:
            DataError: the columns are inconsistent, or no classifier can be learned from them.

        >>> images = np.zeros((4, 8, 8), np.uint8)
        >>> Dataset.from_arrays(images, ["ill", "well"] * 2, patients=[1, 2, 3, 4], test_fraction=0.0)
        Dataset arrays: 4 images of 4 patients, classes ill, well; 4 to train on, 0 to test
        """
        from fedveil.data.formats.arrays import Columns, from_arrays

        columns = Columns(
            patients=patients,
            sites=sites,
            split=split,
            classes=classes,
            positive=positive,
            test_fraction=test_fraction,
            seed=seed,
            allow_patient_overlap=allow_patient_overlap,
            accept=accept,
            unknown_labels=unknown_labels,
            task=task,
            attributes=attributes or {},
            window=window,
            slices=slices,
            axis=axis,
            name=name,
        )
        return from_arrays(images, labels, columns)

    @classmethod
    def from_features(cls, features: Any, labels: Any, **columns: Any) -> "Dataset":
        """A data set from embeddings (n, d) instead of images, for a linear head; see `from_arrays` for the rest.

        The encoder must be public: no guarantee here covers its training data.
        """
        from fedveil.data.formats.arrays import Columns, from_features

        return from_features(features, labels, Columns(**columns))

    @classmethod
    def from_frame(cls, frame: Any, *, base: Path | str = ".", **settings: Any) -> "Dataset":
        """A data set from a table of image files: a pandas or polars DataFrame, or a mapping of columns.

        Args:
            frame: columns ``path`` and ``label``, and optionally ``patient``, ``site`` and ``split``.
            base: where relative paths start.
            settings: as `fedveil.data.load` takes them, such as ``positive`` and ``test_fraction``.

        Raises:
            DataError: as for a manifest, whose checks apply; the header is line 1.
        """
        from fedveil.data.formats.arrays import from_frame

        return from_frame(frame, Path(base), settings)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return (
            f"Dataset {self.name}: {len(self)} images of {len(self.patient_names)} patients, "
            f"classes {', '.join(self.classes)}; {len(self.train)} to train on, {len(self.test)} to test"
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
        """Only these images, with the same classes and sites; patients are renumbered, in the old order."""
        rows = np.asarray(indices, dtype=np.int64)
        kept, patients = np.unique(self.patients[rows], return_inverse=True)
        return Dataset(
            name=self.name,
            images=self.images.subset(rows),
            labels=self.labels[rows],
            patients=patients.astype(np.int64),
            patient_names=Names(self.patient_names).take(kept),
            image_names=Names(self.image_names).take(rows),
            classes=self.classes,
            task=self.task,
            attributes=taken(self.attributes, rows),
            sites=None if self.sites is None else self.sites[rows],
            site_names=self.site_names,
            split=self.split[rows],
            synthetic=self.synthetic,
            patients_known=self.patients_known,
            description=self.description,
        )

    def cohort(self, name: str, indices: Indices) -> "Cohort":
        """The cohort of the hospital ``name``, which consists of these images."""
        rows = np.asarray(indices, dtype=np.int64)
        if not len(rows):
            raise DataError(
                f"{name} has no patients",
                "a site needs at least one",
                "remove it, or give it images",
            )
        patients = np.unique(self.patients[rows], return_inverse=True)[1].astype(np.int64)
        return Cohort(
            name=name,
            images=self.images.subset(rows),
            labels=self.labels[rows],
            patients=patients,
            classes=self.classes,
            task=self.task,
            attributes=taken(self.attributes, rows),
        )

    def digest(self) -> str:
        """Content hash over pixels, labels, classes, the grouping by patients, sites and split."""
        whole = blake2b(digest_size=32)
        for start in range(0, len(self), DIGESTS):
            for text in self.images.digest(np.arange(start, min(start + DIGESTS, len(self)))):
                whole.update(bytes.fromhex(text))
        columns: list[npt.NDArray[Any]] = [self.labels, self.patients, self.split]
        for column in columns if self.sites is None else [*columns, self.sites]:
            whole.update(b"|" + np.ascontiguousarray(column, dtype=np.int64).tobytes())
        whole.update(repr((self.classes, self.site_names)).encode())
        return whole.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class PatientImages:
    """One patient's images, float32 ``(k, channels, size, size)`` in [0, 1], and their labels, (k,) or (k, K)."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Cohort:
    """One site's training images, grouped by patient; ``len`` is the number of patients.

    ``patients`` holds local codes 0 .. len - 1, one per image, and every code occurs. Labels, task and attributes are
    those of the `Dataset` that it is a part of.
    """

    name: str
    images: ImageStack
    labels: npt.NDArray[Any]
    patients: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    task: str = "classes"
    attributes: Mapping[str, Column] = field(default_factory=dict)
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
        _check_labels(self.name, self.labels, self.classes, self.task)
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


def _check_labels(name: str, labels: npt.NDArray[Any], classes: tuple[str, ...], task: str) -> None:
    if task != "findings":
        _check_codes(name, "label", labels, len(classes))
    elif labels.ndim != 2 or labels.shape[1] != len(classes) or not np.isin(labels, (-1, 0, 1)).all():
        raise DataError(
            f"{name} has labels of the shape {labels.shape} for {len(classes)} findings",
            "there must be one column per finding, of 1, 0 and -1",
            "give labels (n, K), and the name of each finding",
        )


def _check_codes(name: str, column: str, codes: npt.NDArray[Any], count: int) -> None:
    if len(codes) and (int(codes.min()) < 0 or int(codes.max()) >= count):
        raise DataError(
            f"{name} holds {column} codes from {codes.min()} to {codes.max()}",
            f"with {count} names they must be in 0 .. {count - 1}",
            f"give every {column} a name",
        )
