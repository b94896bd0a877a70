"""What a reader found, before anybody has judged it; the judgement; and the data set that comes out of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedveil.data.cohort import TEST, TRAIN, VALIDATION, Dataset
from fedveil.data.files import FileImages
from fedveil.data.holdout import draw_test_patients
from fedveil.data.stack import ImageStack
from fedveil.errors import DataError, InvalidValue
from fedveil.names import check_site_name

__all__ = [
    "SPLITS",
    "SPLIT_NAMES",
    "Given",
    "Options",
    "Problem",
    "Records",
    "assemble",
    "find_problems",
    "letters",
    "raise_first",
    "study_labels",
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
    """One thing that is wrong, and where: a file, with its line where it has lines."""

    place: str
    found: str
    rule: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}: {self.found}; {self.rule}: {self.remedy.rstrip('.')}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the study says about its data; the same for every kind of source.

    ``classes`` fixes the classes and their order, for a hospital that may not hold all of them. ``positive``
    makes the task binary: the named classes, not all of which such a hospital needs to hold, against the rest. Where
    the source has no split, each patient is held out with the chance ``test_fraction``, by a hash of ``seed`` and
    their name that is keyed with ``secret``.
    """

    image_size: int = 64
    positive: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    seed: int = 0
    secret: bytes = b""
    test_fraction: float = 0.2
    allow_patient_overlap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What is said of one image alone."""

    patient: str | None
    site: str | None
    split: int | None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Records:
    """One entry an image in every column; ``place(i)`` is the file and line to blame for image i.

    ``labels`` are codes into ``classes``, ``(n,)``, or one 0/1 column a class where an image can have several
    findings, ``(n, len(classes))``. ``patients``, ``sites``, ``splits`` are None where the source has none, or not for
    every image; ``rows`` says what it has for each, where that may differ.
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
        """Each image's patient, None where nobody names one; unlike ``patients`` whatever is said of the others."""
        if self.rows is not None:
            return [row.patient for row in self.rows]
        return list(self.patients or (None,) * len(self.image_names))

    def sites_given(self) -> list[str | None]:
        """Each image's site, None where nobody names one."""
        if self.rows is not None:
            return [row.site for row in self.rows]
        return list(self.sites or (None,) * len(self.image_names))

    def splits_given(self) -> list[int | None]:
        """Each image's split, None where nobody gives one."""
        if self.rows is not None:
            return [row.split for row in self.rows]
        return [None] * len(self.image_names) if self.splits is None else [int(code) for code in self.splits]

    def image_keys(self) -> Sequence[str]:
        """What tells each image from the others wherever it stands: its file, or in an array its content."""
        if isinstance(self.images, FileImages):
            return self.image_names
        return self.images.digest(np.arange(len(self.images)))


def find_problems(records: Records, options: Options) -> Iterator[Problem]:
    """Everything that stands against training on these records, the reader's findings first."""
    yield from records.problems
    if not len(records.images):
        yield Problem(
            records.name,
            "there are no images",
            "a source must hold at least one",
            "check that it is the right one",
        )
        return
    if records.patients is not None and not options.allow_patient_overlap:
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
            )


def _site_problems(records: Records) -> Iterator[Problem]:
    """Names that could be taken for another site's, or for a path: a site's ledger is a file of its name."""
    for site in sorted(set(records.sites or ())):
        try:
            check_site_name(site)
        except InvalidValue as error:
            place = records.place((records.sites or ()).index(site))
            yield Problem(place, error.found, error.rule, error.remedy)


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
                    f"a patient belongs to one {column}, or nothing said about patients holds",
                    "correct the table, or set allow_patient_overlap = true if it is meant",
                )


def _label_problems(records: Records, options: Options) -> Iterator[Problem]:
    try:
        labels, classes = study_labels(records, options)
    except InvalidValue as error:
        yield Problem(records.name, error.found, error.rule, error.remedy)
        return
    train = np.ones(len(labels), bool) if records.splits is None else records.splits == TRAIN
    if not train.any():
        yield Problem(
            records.name,
            "no image is in the training split",
            "there must be some to learn from",
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
    """The first problem as an error that says how many more there are; nothing if there are none."""
    if problems:
        first, more = problems[0], len(problems) - 1
        rest = f", and see the {more} other problems with `fedveil data check {source}`" if more else ""
        raise DataError(f"{first.place}: {first.found}", first.rule, first.remedy.rstrip(".") + rest)


def assemble(records: Records, options: Options, source: str) -> Dataset:
    """The data set, or the first problem as a DataError."""
    _check_options(options)
    raise_first(list(find_problems(records, options)), source)
    labels, classes = study_labels(records, options)
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


def study_labels(records: Records, options: Options) -> tuple[Codes, tuple[str, ...]]:
    """Labels and classes as the study wants them: merged by ``positive``, or in the order of ``classes``."""
    labels, classes = records.labels, records.classes
    if options.positive is not None:
        asked, study = options.positive, options.classes
        wanted = asked if study is None else _those_here(asked, classes, study)
        named = [_position(name, classes, "positive") for name in wanted]
        if not asked or (study is None and len(set(named)) == len(classes) and labels.ndim == 1):
            raise InvalidValue(
                f"positive names {len(named)} of the {len(classes)} classes",
                "it must name at least one class and leave at least one",
                f"choose among {', '.join(classes)}",
            )
        merged = np.asarray(labels[:, named].any(axis=1) if labels.ndim == 2 else np.isin(labels, named))
        others = [name for code, name in enumerate(classes) if code not in named]
        negative = " or ".join(others) if labels.ndim == 1 and len(others) <= 3 else "other"
        return merged.astype(np.int64), (negative, "positive")
    if labels.ndim == 2:
        raise InvalidValue(
            f"an image of {records.name} can have several labels at once",
            "fedveil tells classes apart of which every image has exactly one",
            f"set positive to the findings that count, among {', '.join(classes)}",
        )
    if options.classes is None:
        return labels, classes
    order = np.array([_position(name, options.classes, "classes") for name in classes], dtype=np.int64)
    return order[labels].astype(np.int64), options.classes


def _those_here(positive: Sequence[str], classes: tuple[str, ...], study: tuple[str, ...]) -> Sequence[str]:
    """The positive classes that occur here; others need not, since what patients have is no reason to stay away.

    All are asked for where one is spelt differently here, or where no name here is one of the study's: a hospital
    with names of its own would take part with every label wrong.
    """
    known = {*positive, *study[0].split(" or ")}
    plain = {letters(name) for name in classes if name not in positive}
    if known.isdisjoint(classes) or any(letters(name) in plain for name in positive):
        return positive
    return [name for name in positive if name in classes]


def letters(name: str) -> str:
    """A name without case, spaces and signs, for spellings that are meant alike.

    >>> letters("Pleural-Effusion ") == letters("pleural effusion")
    True
    """
    return "".join(filter(str.isalnum, name.casefold()))


def _position(name: str, classes: tuple[str, ...], setting: str) -> int:
    if name not in classes:
        raise InvalidValue(
            f"the class {name} is unknown",
            f"the classes are {', '.join(classes)}",
            f"correct it, or the setting {setting}",
        )
    return classes.index(name)


def _check_options(options: Options) -> None:
    if not 0 <= options.test_fraction < 1:
        raise InvalidValue(
            f"test_fraction is {options.test_fraction}",
            "it must lie in [0, 1)",
            "give the fraction of patients to hold out for the test",
        )
