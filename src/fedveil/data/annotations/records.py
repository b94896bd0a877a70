"""The output of a reader before checks, the checks, and the resulting data set."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.columns import TEXT, Column, Names, missing_column, taken
from fedveil.data.annotations.labels import (
    Fault,
    Labels,
    findings,
    joined_labels,
    label_faults,
    resolved,
    split_findings,
    study_labels,
)
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
    "Problem",
    "Records",
    "assemble",
    "find_problems",
    "judged",
    "raise_first",
    "without_lost_classes",
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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Records:
    """What a reader found: one entry per image in every column; ``place(i)`` is the file and line of image i.

    ``labels`` are codes into ``classes``, ``(n,)``, or one column per class if an image can have several findings,
    ``(n, len(classes))``: 1 or 0, or -1 if unknown. ``patients``, ``sites`` and ``splits`` are None if the source has
    none; single entries may be missing, -1. ``attributes`` are further columns by their public names.
    """

    name: str
    images: ImageStack
    labels: Labels
    classes: tuple[str, ...]
    image_names: Names
    place: Callable[[int], str]
    patients: Column | None = None
    sites: Column | None = None
    splits: npt.NDArray[np.int8] | None = None
    attributes: Mapping[str, Column] = field(default_factory=dict)
    synthetic: bool = False
    description: str = ""
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def image_keys(self, rows: Codes) -> Names:
        """Identifies images independently of their position: by their file, or in an array by their content."""
        if isinstance(self.images, FileImages):
            return self.image_names.take(rows)
        return Names(self.images.digest(rows))

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
            image_names=self.image_names.take(rows),
            place=lambda row: place(int(rows[row])),
            patients=None if self.patients is None else self.patients.take(rows),
            sites=None if self.sites is None else self.sites.take(rows),
            splits=None if self.splits is None else self.splits[rows],
            attributes=taken(self.attributes, rows),
        )


def judged(records: Records, options: Options) -> Records:
    """The records without images whose annotations are unusable, each with its problem or a note.

    Every image is judged independently. Labels that list findings become one column per finding.
    """
    if records.labels.ndim == 2:
        records = replace(records, labels=resolved(records.labels, options))
    elif options.task == "findings" and (options.separator or options.classes):
        return judged_findings(records, options)
    wrong, unknown = label_faults(records.labels, records.classes, options)
    records = _without(records, wrong, unknown, options)
    if options.separator and records.labels.ndim == 1:
        labels, classes = findings(records.labels, records.classes, options)
        records = replace(records, labels=labels, classes=classes)
    return records


def judged_findings(records: Records, options: Options) -> Records:
    """As `judged`, for one column of labels that list the findings of ``options.classes``."""
    wrong, _ = label_faults(records.labels, records.classes, options)
    labels, classes = findings(records.labels, records.classes, options)
    others = sorted(
        {one for text in records.classes for one in split_findings(text, options.separator)} - set(classes)
    )
    notes = (
        [f"labels that are no finding of data.classes count as none: {', '.join(others)}"] if others else []
    )
    found = replace(
        records, labels=resolved(labels, options), classes=classes, notes=(*records.notes, *notes)
    )
    unknown = {
        row: one for row, one in label_faults(found.labels, classes, options)[1].items() if row not in wrong
    }
    return _without(found, wrong, unknown, options)


def _without(
    records: Records, wrong: dict[int, Fault], unknown: dict[int, Fault], options: Options
) -> Records:
    """Leave out images with an unusable or unknown label, or with a patient that is a placeholder."""
    dropped = unknown if options.unknown_labels == "drop" else {}
    faults = wrong if dropped else wrong | unknown
    if records.patients is not None:
        named = records.patients.map(lambda name: placeholder_fault(name, options), None)
        nobody = np.flatnonzero(np.array([fault is not None for fault in named])[records.patients.codes])
        faults = faults | {int(row): named[records.patients.codes[row]] for row in nobody}
    problems = [Problem(records.place(row), *faults[row], left_out=True) for row in sorted(faults)]
    notes = [f"{len(dropped)} images of unknown label are left out"] if dropped else []
    if faults or dropped:
        keep = np.ones(len(records.images), dtype=np.bool_)
        keep[[*faults, *dropped]] = False
        records = without_lost_classes(records.subset(np.flatnonzero(keep)), records.labels)
    return replace(records, problems=(*records.problems, *problems), notes=(*records.notes, *notes))


def without_lost_classes(records: Records, before: Labels) -> Records:
    """Drop the classes that have lost all their images, if images have one class each."""
    if records.labels.ndim == 2:
        return records
    lost = np.setdiff1d(before, records.labels)
    kept = np.setdiff1d(np.arange(len(records.classes)), lost)
    order = np.full(len(records.classes), -1, np.int64)
    order[kept] = np.arange(len(kept))
    classes = tuple(records.classes[code] for code in kept)
    return replace(records, labels=order[records.labels], classes=classes)


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
        yield from _doubtful_patients(records, records.patients, options)
        if not options.allow_patient_overlap:
            yield from _overlaps(records, records.patients)
    yield from _label_problems(records, options)
    yield from _site_problems(records)
    if records.sites is not None and records.splits is not None:
        trained = records.sites.codes[records.splits == TRAIN]
        for code in np.setdiff1d(records.sites.codes, trained):
            yield Problem(
                records.place(int(np.flatnonzero(records.sites.codes == code)[0])),
                f"the site {records.sites.names[code]} has no patients to train on",
                "every site needs at least one",
                "give it training images, or leave its rows out",
                left_out=True,
            )


def _site_problems(records: Records) -> Iterator[Problem]:
    """Names that could be confused with another site's, or with a path: a site's ledger file has its name."""
    if records.sites is None:
        return
    for code in np.unique(records.sites.codes):
        try:
            check_site_name(records.sites.names[code])
        except InvalidValue as error:
            place = records.place(int(np.flatnonzero(records.sites.codes == code)[0]))
            yield Problem(place, error.found, error.rule, error.remedy)


def _doubtful_patients(records: Records, patients: Column, options: Options) -> Iterator[Problem]:
    """Patients who may have two names. They can still take part: a hospital is responsible for its own table."""
    images = records.images
    told = images.facts.patients if isinstance(images, FileImages) else missing_column(len(images))
    for row, earlier, (found, rule, remedy) in patient_pairs(patients, told, options):
        place = f"{found} (at {records.place(earlier)})"
        yield Problem(records.place(row), place, rule, remedy, left_out=True)


def _overlaps(records: Records, patients: Column) -> Iterator[Problem]:
    """Patients in two sites or splits, each once per column, at the first row that differs from their first."""
    columns: list[tuple[str, Codes, Sequence[str]]] = []
    if records.sites is not None:
        columns.append(("site", records.sites.codes, records.sites.names))
    if records.splits is not None:
        columns.append(("split", records.splits.astype(np.int64), SPLITS))
    told: list[tuple[int, Problem]] = []
    _, first, whose = np.unique(patients.codes, return_index=True, return_inverse=True)
    for column, codes, names in columns:
        before = codes[first][whose]
        rows = np.flatnonzero(codes != before)
        for row in rows[np.sort(np.unique(whose[rows], return_index=True)[1])]:
            problem = Problem(
                records.place(int(row)),
                f"patient {patients[row]} is in the {column} {names[codes[row]]}, "
                f"but in {names[before[row]]} at {records.place(int(first[whose[row]]))}",
                f"a patient must belong to one {column}, or no guarantee for patients holds",
                "correct the table, or set allow_patient_overlap = true if it is meant",
                left_out=True,
            )
            told.append((int(row), problem))
    yield from (problem for _, problem in sorted(told, key=lambda one: one[0]))


def _label_problems(records: Records, options: Options) -> Iterator[Problem]:
    try:
        labels, classes = study_labels(records.labels, records.classes, options)
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
    if labels.ndim == 2:
        return
    learned = np.unique(labels[train])
    unseen = np.setdiff1d(labels[~train], learned if options.classes is None else labels)
    for code in unseen:
        row = int(np.flatnonzero(labels == code)[0])
        yield Problem(
            records.place(row),
            f"the label {classes[code]} occurs only outside the training images",
            "a class must be learned before it is tested",
            "give training images of it, or leave those rows out",
        )
    if len(learned) == 1 and not len(unseen) and not options.classes:
        yield Problem(
            records.name,
            f"every training image has the label {classes[learned[0]]}",
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
    labels, classes = study_labels(records.labels, records.classes, options)
    patients = None if records.patients is None else records.patients.compact()
    whose = numbered(len(records.images)) if patients is None else patients
    sites = None if records.sites is None else records.sites.compact()
    split = records.splits
    if split is None:
        own = records.image_keys(np.arange(len(whose))) if patients is None else patients.names
        held_out = draw_test_patients(own, options.test_fraction, options.seed, options.secret)
        split = np.where(held_out if patients is None else held_out[patients.codes], TEST, TRAIN)
    return Dataset(
        name=records.name,
        images=records.images,
        labels=labels,
        patients=whose.codes,
        patient_names=whose.names,
        image_names=records.image_names,
        classes=classes,
        task=options.task or "classes",
        sites=None if sites is None else sites.codes,
        site_names=() if sites is None else tuple(sites.names),
        split=split.astype(np.int8),
        attributes=records.attributes,
        patients_known=patients is not None,
        synthetic=records.synthetic,
        description=records.description,
    )


def numbered(count: int) -> Column:
    """A separate patient for each image: image-1, image-2, ..., sorted as texts."""
    order = np.argsort(np.arange(1, count + 1).astype(np.bytes_), kind="stable")
    codes = np.empty(count, np.int64)
    codes[order] = np.arange(count)
    return Column(codes, Names(np.strings.add("image-", (order + 1).astype(TEXT))))
