"""The output of a reader before checks, the checks, and the resulting data set."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.labels import Fault, findings, joined_labels, label_faults, study_labels
from fedveil.data.annotations.patients import patient_pairs, placeholder_fault
from fedveil.data.dataset import TEST, TRAIN, VALIDATION, Dataset
from fedveil.data.formats.image_files import FileImages
from fedveil.data.image_store import ArrayImages, ImageStack
from fedveil.data.options import Options
from fedveil.data.split import draw_test_patients
from fedveil.errors import DataError, InvalidValue, printable
from fedveil.names import check_site_name

__all__ = [
    "SPLITS",
    "SPLIT_NAMES",
    "Given",
    "Problem",
    "Records",
    "assemble",
    "find_problems",
    "judged",
    "raise_first",
]

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "0"), TRAIN),
    **dict.fromkeys(("test", "testing", "1"), TEST),
    **dict.fromkeys(("validation", "valid", "val", "2"), VALIDATION),
}
SPLITS = ("train", "test", "validation")

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem and its place: a file, with its line if it has lines.

    With ``left_out`` it concerns one image, which is not among the records; the others are usable.
    """

    place: str
    found: str
    rule: str
    remedy: str
    left_out: bool = False

    def __post_init__(self) -> None:
        for name in ("place", "found", "rule", "remedy"):
            object.__setattr__(self, name, printable(getattr(self, name)))

    def __str__(self) -> str:
        return f"{self.place}: {self.found}; {self.rule}: {self.remedy.rstrip('.')}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The annotations of one image."""

    patient: str | None
    site: str | None
    split: int | None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Records:
    """One entry per image in every column; ``place(i)`` is the file and line of image i.

    ``labels`` are codes into ``classes``, ``(n,)``, or one column per class if an image can have several findings,
    ``(n, len(classes))``: 1 or 0, or -1 if unknown. ``patients``, ``sites``, ``splits`` are None if the source has
    none, or not for every image; ``rows`` has the annotations of each image then.
    """

    name: str
    images: ImageStack
    labels: Codes
    classes: tuple[str, ...]
    image_names: tuple[str, ...]
    place: Callable[[int], str]
    patients: tuple[str, ...] | None = None
    sites: tuple[str, ...] | None = None
    splits: npt.NDArray[np.int8] | None = None
    synthetic: bool = False
    description: str = ""
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = field(default=())
    rows: tuple["Given", ...] | None = None

    def patients_given(self) -> list[str | None]:
        """Each image's patient, None if unnamed; unlike ``patients`` independent of the other images."""
        if self.rows is not None:
            return [row.patient for row in self.rows]
        return list(self.patients or (None,) * len(self.image_names))

    def sites_given(self) -> list[str | None]:
        """Each image's site, None if unnamed."""
        if self.rows is not None:
            return [row.site for row in self.rows]
        return list(self.sites or (None,) * len(self.image_names))

    def splits_given(self) -> list[int | None]:
        """Each image's split, None if not given."""
        if self.rows is not None:
            return [row.split for row in self.rows]
        return [None] * len(self.image_names) if self.splits is None else [int(code) for code in self.splits]

    def image_keys(self) -> Sequence[str]:
        """Identifies each image independently of its position: its file, or in an array its content."""
        if isinstance(self.images, FileImages):
            return self.image_names
        return self.images.digest(np.arange(len(self.images)))

    def subset(self, rows: Codes) -> "Records":
        """Only these images, in that order."""
        images, place = self.images, self.place
        if isinstance(images, ArrayImages):
            kept: ImageStack = ArrayImages(images.stored(rows), images.size, images.reading)
        else:
            kept = images.subset(rows)
        return replace(
            self,
            images=kept,
            labels=self.labels[rows],
            image_names=tuple(self.image_names[row] for row in rows),
            place=lambda row: place(int(rows[row])),
            patients=None if self.patients is None else tuple(self.patients[row] for row in rows),
            sites=None if self.sites is None else tuple(self.sites[row] for row in rows),
            splits=None if self.splits is None else self.splits[rows],
            rows=None if self.rows is None else tuple(self.rows[row] for row in rows),
        )


def judged(records: Records, options: Options) -> Records:
    """The records without images whose annotations are unusable, each with its problem or a note.

    Every image is judged independently.
    """
    wrong, unknown = label_faults(records.labels, records.classes, options)
    if options.unknown_labels == "drop":
        dropped = set(unknown)
    else:
        dropped = set()
        wrong |= unknown
    patients = records.patients_given()
    named = {name: placeholder_fault(name, options) for name in set(patients) if name is not None}
    nobody = {row: named[name] for row, name in enumerate(patients) if name is not None and named[name]}
    faults: dict[int, Fault] = wrong | {row: fault for row, fault in nobody.items() if fault}
    problems = [Problem(records.place(row), *faults[row], left_out=True) for row in sorted(faults)]
    notes = [f"{len(dropped)} images of unknown label are left out"] if dropped else []
    if faults or dropped:
        rows = [row for row in range(len(records.images)) if row not in faults and row not in dropped]
        records = _without_lost_classes(records.subset(np.array(rows, np.int64)), records.labels)
    if options.separator and records.labels.ndim == 1:
        labels, classes = findings(records.labels, records.classes, options.separator)
        records = replace(records, labels=labels, classes=classes)
    return replace(
        records,
        problems=(*records.problems, *problems),
        notes=(*records.notes, *notes),
    )


def _without_lost_classes(records: Records, before: Codes) -> Records:
    """Drop the classes that have lost all their images, if images have one class each."""
    if records.labels.ndim == 2:
        return records
    lost = set(before.tolist()) - set(records.labels.tolist())
    kept = [code for code in range(len(records.classes)) if code not in lost]
    order = np.full(len(records.classes), -1, np.int64)
    order[kept] = np.arange(len(kept))
    return replace(
        records, labels=order[records.labels], classes=tuple(records.classes[code] for code in kept)
    )


def find_problems(records: Records, options: Options) -> Iterator[Problem]:
    """All problems that prevent training on these records, the reader's first."""
    yield from records.problems
    if not len(records.images):
        yield Problem(
            records.name,
            "there are no images",
            "a source must hold at least one",
            "check that it is the right one",
        )
        return
    if records.patients is not None:
        yield from _doubtful_patients(records, options)
        if not options.allow_patient_overlap:
            yield from _overlaps(records)
    yield from _label_problems(records, options)
    yield from _site_problems(records)
    if records.sites is not None and records.splits is not None:
        sites = np.array(records.sites)
        for site in sorted(set(records.sites) - set(sites[records.splits == TRAIN])):
            yield Problem(
                records.place(int(np.flatnonzero(sites == site)[0])),
                f"the site {site} has no patients to train on",
                "every site needs at least one",
                "give it training images, or leave its rows out",
                left_out=True,
            )


def _site_problems(records: Records) -> Iterator[Problem]:
    """Names that could be confused with another site's, or with a path: a site's ledger file has its name."""
    for site in sorted(set(records.sites or ())):
        try:
            check_site_name(site)
        except InvalidValue as error:
            place = records.place((records.sites or ()).index(site))
            yield Problem(place, error.found, error.rule, error.remedy)


def _doubtful_patients(records: Records, options: Options) -> Iterator[Problem]:
    """Patients who may have two names. They can still take part: a hospital is responsible for its own table."""
    images, patients = records.images, records.patients or ()
    told = (
        [facts.patient for facts in images.facts] if isinstance(images, FileImages) else [None] * len(images)
    )
    for row, earlier, (found, rule, remedy) in patient_pairs(patients, told, options):
        place = f"{found} (at {records.place(earlier)})"
        yield Problem(records.place(row), place, rule, remedy, left_out=True)


def _overlaps(records: Records) -> Iterator[Problem]:
    first: dict[tuple[str, str], tuple[str, int]] = {}
    seen: set[tuple[str, str]] = set()
    for row, patient in enumerate(records.patients or ()):
        belongs = {} if records.sites is None else {"site": records.sites[row]}
        if records.splits is not None:
            belongs["split"] = SPLITS[records.splits[row]]
        for column, value in belongs.items():
            before, where = first.setdefault((column, patient), (value, row))
            if before != value and (column, patient) not in seen:
                seen.add((column, patient))
                yield Problem(
                    records.place(row),
                    f"patient {patient} is in the {column} {value}, "
                    f"but in {before} at {records.place(where)}",
                    f"a patient must belong to one {column}, or no guarantee for patients holds",
                    "correct the table, or set allow_patient_overlap = true if it is meant",
                    left_out=True,
                )


def _label_problems(records: Records, options: Options) -> Iterator[Problem]:
    try:
        labels, classes = study_labels(records.name, records.labels, records.classes, options)
    except InvalidValue as error:
        yield Problem(records.name, error.found, error.rule, error.remedy)
        return
    if records.labels.ndim == 1:
        for code, fault in joined_labels(records.classes, options):
            yield Problem(records.place(int(np.flatnonzero(records.labels == code)[0])), *fault)
    train = np.ones(len(labels), bool) if records.splits is None else records.splits == TRAIN
    if not train.any():
        yield Problem(
            records.name,
            "no image is in the training split",
            "there must be training images",
            "mark some as train",
        )
        return
    unseen = [] if options.classes else sorted(set(labels[~train]) - set(labels[train]))
    for code in unseen:
        row = int(np.flatnonzero(labels == code)[0])
        yield Problem(
            records.place(row),
            f"the label {classes[code]} occurs only outside the training images",
            "a class must be learned before it is tested",
            "give training images of it, or leave those rows out",
        )
    if len(set(labels[train])) == 1 and not unseen and not options.classes:
        yield Problem(
            records.name,
            f"every training image has the label {classes[labels[train][0]]}",
            "a classifier needs at least two classes",
            "add images of another class, or name the classes that other sites hold",
        )


def raise_first(problems: Sequence[Problem], source: str) -> None:
    """Raise the first problem as an error that states the number of others; do nothing if there are none."""
    if problems:
        first, more = problems[0], len(problems) - 1
        rest = f", and see the {more} other problems with `fedveil data check {source}`" if more else ""
        raise DataError(f"{first.place}: {first.found}", first.rule, first.remedy.rstrip(".") + rest)


def assemble(records: Records, options: Options, source: str) -> Dataset:
    """The data set, or the first problem as a DataError."""
    raise_first(list(find_problems(records, options)), source)
    labels, classes = study_labels(records.name, records.labels, records.classes, options)
    count = len(records.images)
    names = records.patients or tuple(f"image-{row + 1}" for row in range(count))
    patient_names, patients = np.unique(np.array(names), return_inverse=True)
    sites: Codes | None = None
    site_names: tuple[str, ...] = ()
    if records.sites is not None:
        unique_sites, codes = np.unique(np.array(records.sites), return_inverse=True)
        sites, site_names = codes.astype(np.int64), tuple(str(site) for site in unique_sites)
    split = records.splits
    if split is None:
        own = records.patients or records.image_keys()
        held_out = draw_test_patients(own, options.test_fraction, options.seed, options.secret)
        split = np.where(held_out, TEST, TRAIN)
    return Dataset(
        name=records.name,
        images=records.images,
        labels=labels,
        patients=patients.astype(np.int64),
        patient_names=tuple(str(name) for name in patient_names),
        image_names=records.image_names,
        classes=classes,
        sites=sites,
        site_names=site_names,
        split=split.astype(np.int8),
        patients_known=records.patients is not None,
        synthetic=records.synthetic,
        description=records.description,
    )
