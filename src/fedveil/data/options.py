"""Settings for reading images, by a study or a hospital: public, and independent of the images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, TypedDict

from fedveil.data.annotations.presets import PRESETS, Preset
from fedveil.data.windows import FILE, Window, check_window
from fedveil.errors import InvalidValue

__all__ = [
    "ACCEPTABLE",
    "AXES",
    "COLUMNS",
    "MEGAPIXELS",
    "TASKS",
    "UNKNOWNS",
    "Options",
    "Reading",
    "Settings",
]

COLUMNS = ("path", "label", "patient", "site", "split")
"""The columns of a table by meaning; the first two are required."""

TASKS = ("classes", "findings", "grades")
"""What labels are: one class per image, any number of findings per image, or one of ordered grades."""

UNKNOWNS: tuple[str | int, ...] = ("refuse", "drop", "unknown", 0, 1)
"""What becomes of unknown labels; the last three apply to findings."""

Axis = Literal["axial", "coronal", "sagittal"]
AXES: tuple[Axis, ...] = ("axial", "coronal", "sagittal")
"""Along which a volume is cut into slices: from the feet to the head, from front to back, from right to left."""

MEGAPIXELS = 30.0
"""Largest image that is decoded, unless a setting allows more. A mammogram at 50 µm has 29."""

LARGEST_SLICES = 256
"""Largest number of slices that a study may ask for."""

ACCEPTABLE = {
    "similar-patients": "patients whose names differ only in letter case, spaces or leading zeros",
    "placeholder-patients": 'patients called "ANONYMOUS", "unknown" or similar',
    "dicom-patients": "a patient column that splits one patient of the DICOM files",
    "joined-labels": "labels that look like several findings, or that contain the name of a positive class",
    "repeated-rows": "rows that repeat an image with the same annotations",
}
"""Problems that are refused unless a setting accepts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How every image is converted to the shape and scale of a study, independently of others.

    ``channels`` is 1 for grey and 3 for colour; None takes those of the first image of a source, whose header is
    then public. ``window`` sets the stored values that map to black and white, see :mod:`fedveil.data.windows`.
    Images of more than ``max_megapixels`` are refused before they are decoded.

    With ``slices`` every image is a volume, brought to that many grey slices along ``axis``; None reads images.
    ``spacing`` sets the distances, in mm, of slices and of pixels; None covers each volume as a whole.
    """

    channels: int | None = None
    window: Window = FILE
    max_megapixels: float = MEGAPIXELS
    slices: int | None = None
    axis: Axis = "axial"
    spacing: tuple[float, float] | None = None

    @property
    def volume_key(self) -> str:
        """Identifies the settings that determine a volume's slices, for content hashes; empty for images."""
        return f"volumes-1 {self.slices} {self.axis} {self.spacing} " if self.slices else ""

    def check(self) -> None:
        """Refuse settings that cannot be, as InvalidValue."""
        check_window(self.window)
        if self.slices is not None and not 2 <= self.slices <= LARGEST_SLICES:
            raise InvalidValue(
                f"slices is {self.slices}",
                f"it must lie between 2 and {LARGEST_SLICES}",
                "16 suits many studies",
            )
        if self.axis not in AXES:
            raise InvalidValue(f"axis is {self.axis}", f"it must be one of {', '.join(AXES)}", "choose one")
        if self.slices is None and (self.spacing is not None or self.axis != "axial"):
            raise InvalidValue(
                "axis or spacing is set, and slices is not",
                "both are for volumes",
                "set slices, or remove them",
            )
        if self.slices is not None and self.channels == 3:
            raise InvalidValue("channels is 3, and slices is set", "volumes are grey", "set channels = 1")
        if self.spacing is not None and not all(0.01 <= one <= 50 for one in self.spacing):
            raise InvalidValue(
                f"spacing is {list(self.spacing)}",
                "it must hold two distances of 0.01 to 50 mm, of slices and of pixels",
                "write spacing = [2.5, 1.5], or remove it",
            )


class Settings(TypedDict, total=False):
    """The keywords of :func:`fedveil.data.load`; see :class:`Options`."""

    image_size: int
    channels: int | None
    window: Window
    max_megapixels: float
    slices: int | None
    axis: Axis
    spacing: tuple[float, float] | None
    positive: Sequence[str] | None
    classes: Sequence[str] | None
    separator: str
    task: str | None
    unknown_labels: str | int
    preset: str
    columns: Mapping[str, str | Sequence[str]]
    attributes: Mapping[str, str]
    layout: str
    accept: Sequence[str]
    seed: int
    secret: bytes
    test_fraction: float
    allow_patient_overlap: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The study's settings for its data; the same for every kind of source.

    ``classes`` sets the classes and their order; a hospital need not have all of them. ``positive`` makes the task
    binary: the named classes, of which a hospital may also lack some, against the rest. With a ``separator`` a label
    is a list of findings, and an image is positive if any of its findings is.

    ``task`` is "classes" (the default), "findings" if an image can have any number of the findings in ``classes``, or
    "grades" if the classes are ordered. A label is unknown if it is blank, -1, "uncertain" or similar;
    ``unknown_labels`` is "refuse", "drop" for such images, or for findings "unknown" (they stay -1), 0 or 1.

    ``columns`` names the columns of a table if they are not called path, label, patient, site and split; several
    label columns hold one finding each. ``attributes`` names further columns to carry along, by public names, such as
    age and sex. ``preset`` sets all of these for a well-known table. ``layout`` is the meaning of the folders above an
    image, such as "split/class". ``accept`` lists problems to accept instead of refusing them, see `ACCEPTABLE`.

    If the source has no split, each patient is held out with probability ``test_fraction``, by a hash of ``seed``
    and their name that is keyed with ``secret``.

    With ``leave_out`` each image is judged independently by these settings, see :mod:`fedveil.data.annotations.usable`.
    """

    image_size: int = 64
    reading: Reading = Reading()
    positive: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    separator: str = ""
    task: str | None = None
    unknown_labels: str | int = "refuse"
    preset: str = ""
    columns: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    layout: str = ""
    accept: tuple[str, ...] = ()
    seed: int = 0
    secret: bytes = b""
    test_fraction: float = 0.2
    allow_patient_overlap: bool = False
    leave_out: bool = False

    def __post_init__(self) -> None:
        self._check_choices()
        self._fill_from_preset()
        unknown = sorted(set(self.accept) - set(ACCEPTABLE))
        if unknown:
            raise InvalidValue(
                f"accept holds {', '.join(unknown)}",
                f"it may list any of {', '.join(ACCEPTABLE)}",
                "correct it",
            )
        if not 0 <= self.test_fraction < 1:
            raise InvalidValue(
                f"test_fraction is {self.test_fraction}",
                "it must lie in [0, 1)",
                "give the fraction of patients to hold out for the test",
            )
        self.reading.check()

    def _check_choices(self) -> None:
        if self.preset and self.preset not in PRESETS:
            raise InvalidValue(
                f"preset is {self.preset}",
                f"it must be one of {', '.join(PRESETS)}",
                "choose one, or name the columns in [data.columns]",
            )
        if self.task not in (None, *TASKS):
            raise InvalidValue(f"task is {self.task}", f"it must be one of {', '.join(TASKS)}", "choose one")
        if self.unknown_labels not in UNKNOWNS or isinstance(self.unknown_labels, bool):
            raise InvalidValue(
                f"unknown_labels is {self.unknown_labels!r}",
                'it must be "refuse", "drop", "unknown", 0 or 1',
                "choose one",
            )
        if self.unknown_labels == "unknown" and (self.positive or self.task in ("classes", "grades")):
            raise InvalidValue(
                'unknown_labels is "unknown"',
                "an image of one class needs to have it; only one of several findings may stay unknown",
                'set task = "findings", or unknown_labels = "drop"',
            )
        if self.positive and self.task in ("findings", "grades"):
            raise InvalidValue(
                f"positive is set, and task is {self.task}",
                "positive makes the task binary",
                'remove one of them, or set task = "classes"',
            )

    def _fill_from_preset(self) -> None:
        """What the preset sets and nobody else does. With ``positive`` its findings become two classes."""
        known = self.table
        columns = {**known.columns, **{key: name for key, name in self.columns.items() if name}}
        several = not isinstance(columns.get("label", ""), str)
        task = self.task or ("classes" if self.positive else known.task)
        classes = self.classes if self.positive else self.classes or known.classes or None
        if task == "findings" and several and classes is None:
            classes = tuple(columns["label"])
        for name, value in {
            "columns": columns,
            "attributes": {**known.attributes, **self.attributes},
            "task": task,
            "classes": classes,
            "separator": self.separator or known.separator,
            "accept": tuple(dict.fromkeys((*self.accept, *known.accept))),
        }.items():
            object.__setattr__(self, name, value)

    @property
    def table(self) -> Preset:
        """How the table is read, by the preset; without one, as it stands."""
        return PRESETS[self.preset] if self.preset else Preset(columns={})

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Columns that hold one finding each; empty if one column holds all labels."""
        named = self.columns.get("label", "")
        return () if isinstance(named, str) else tuple(named)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Options from the keywords of :func:`fedveil.data.load`."""
        given: dict[str, Any] = dict(settings)
        reading = Reading(**{one.name: given.pop(one.name) for one in fields(Reading) if one.name in given})
        for name in ("positive", "classes"):
            if given.get(name) is not None:
                given[name] = tuple(given[name])
        if "accept" in given:
            given["accept"] = tuple(given["accept"])
        return cls(reading=reading, **given)
