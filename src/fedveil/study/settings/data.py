"""The [data] table of a study file: where images are, and how they are preprocessed."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from fedveil.data import Reading, Settings, check_window
from fedveil.data.annotations.presets import PRESETS
from fedveil.data.options import ACCEPTABLE, LARGEST_SLICES, MEGAPIXELS, Axis, Options
from fedveil.data.windows import FILE, HOUNSFIELD
from fedveil.errors import InvalidValue

__all__ = ["NOTHING", "ColumnSettings", "DataSettings", "SiteSettings", "Table"]

NAME = r"^[a-z][a-z0-9_-]{0,39}$"
"""What an attribute may be called; its name is public."""

NOTHING = "none"
"""The data source of a coordinator without any images."""

Texts = Annotated[tuple[str, ...], Field(strict=False)]
Pair = Annotated[tuple[float, float], Field(strict=False)]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


class Table(BaseModel):
    """One table of a study file: frozen, strict, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SiteSettings(Table):
    """Simulated hospitals, if the data names none."""

    count: int = Field(default=5, ge=1, le=1000, description="number of hospitals")
    scheme: Literal["iid", "dirichlet", "quantity"] = Field(
        default="dirichlet",
        description="how patients are split: evenly, with skewed labels, or with skewed sizes",
    )
    alpha: float = Field(default=0.5, gt=0, description="similarity of hospitals: smaller is more skewed")


class _Names(dict[str, str]):
    """A table of names that nobody changes, so that a study can be the key of a cache."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


class ColumnSettings(Table):
    """A table's column names; empty if they are as here."""

    path: str = Field(default="", description='column of the image file, such as "Image Index"')
    label: str | Texts = Field(
        default="",
        description='column of the label, such as "Finding Labels", or a list of columns, one 0/1 column per finding',
    )
    patient: str = Field(default="", description='column of the patient, such as "Patient ID"')
    site: str = Field(default="", description="column of the hospital")
    split: str = Field(default="", description="column of the split: train, test or validation")
    attributes: Annotated[dict[Annotated[str, Field(pattern=NAME)], str], AfterValidator(_Names)] = Field(
        default_factory=_Names, description='further columns to carry along, such as { age = "Patient Age" }'
    )

    @property
    def settings(self) -> Settings:
        """Keywords of `fedveil.data.load`."""
        return {"columns": self.model_dump(exclude={"attributes"}), "attributes": self.attributes}


class DataSettings(Table):
    """The images: where they are, how they are preprocessed, and the classes of the task."""

    source: str = Field(
        default="phantom",
        description='"phantom", "medmnist:NAME", a manifest .csv, .tsv, .parquet or .xlsx, a folder, an .npz file, '
        'or for a coordinator "none"',
    )
    classes: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="names of the classes or findings in order; with positive: the negative class, then the positive",
    )
    channels: Literal[1, 3] | None = Field(
        default=None,
        description="1 converts images to grey, 3 to colour; default as in the first image, whose header is public",
    )
    image_size: int = Field(default=64, ge=8, le=1024, description="pixels along each side after resizing")
    window: str | Pair = Field(
        default=FILE,
        description="stored values that map to black and white: [centre, width], "
        '"file" (as each DICOM file says), "full range", ' + _quoted(HOUNSFIELD),
    )
    max_megapixels: float = Field(
        default=MEGAPIXELS, gt=0, le=10_000, description="largest image that is decoded"
    )
    slices: int | None = Field(
        default=None,
        ge=2,
        le=LARGEST_SLICES,
        description="images are volumes, each brought to that many slices of image_size x image_size; default: images",
    )
    axis: Axis = Field(
        default="axial",
        description='how volumes are cut: "axial", "coronal" or "sagittal", by the orientation in their headers',
    )
    spacing: Pair | None = Field(
        default=None,
        description="distances in mm of a volume's slices and of pixels, about its centre; default: all of each volume",
    )
    positive: tuple[str, ...] = Field(
        default=(), strict=False, description="classes that together form the positive class of a binary task"
    )
    separator: str = Field(
        default="",
        max_length=3,
        description='what separates findings in a label, such as "|"; positive if any of them is',
    )
    task: Literal["classes", "findings", "grades"] | None = Field(
        default=None,
        description='what labels are: one of the "classes", any number of "findings", or "grades", which are ordered '
        'classes; default "classes", or as the preset says',
    )
    unknown_labels: Literal["refuse", "drop", "unknown", 0, 1] = Field(
        default="refuse",
        description='what to do with labels that are blank, -1, "uncertain" or similar: "refuse" them, "drop" their '
        'images, or for findings keep them "unknown", or as 0 or 1',
    )
    preset: str = Field(
        default="",
        description="a well-known table, whose columns, findings and folders are filled in: "
        + _quoted(PRESETS),
    )
    layout: str = Field(
        default="",
        description='meaning of the folder levels, such as "split/class"; default detected',
    )
    accept: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="problems to accept instead of refusing them: " + _quoted(ACCEPTABLE),
    )
    test_fraction: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="fraction of patients held out for testing if the data has no test split",
    )
    allow_patient_overlap: bool = Field(
        default=False, description="accept a patient in two sites, or in training and test"
    )
    subgroup: str = Field(
        default="",
        pattern=NAME.replace("$", "$|^$"),
        description="attribute whose groups are evaluated on held-out patients, with privacy.subgroup_share",
    )
    subgroup_values: tuple[str, ...] = Field(
        default=(),
        strict=False,
        max_length=12,
        description="its values, declared beforehand; those of age and sex are fixed",
    )
    columns: ColumnSettings = ColumnSettings()
    sites: SiteSettings = SiteSettings()

    @field_validator("window")
    @classmethod
    def _is_window(cls, value: object) -> object:
        try:
            return check_window(value)
        except InvalidValue as error:
            raise ValueError(f"{error.rule}: {error.remedy}") from None

    @field_validator("accept")
    @classmethod
    def _can_be_accepted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not set(value) <= set(ACCEPTABLE):
            raise ValueError(f"it may list any of {', '.join(ACCEPTABLE)}")
        return value

    @model_validator(mode="after")
    def _tells_the_task(self) -> Self:
        """Check classes and channels; a coordinator without images cannot derive them from data."""
        if self.classes and (not all(self.classes) or not 2 <= len(set(self.classes)) == len(self.classes)):
            raise ValueError("classes must be at least two different names, as hospitals use them")
        if self.source == NOTHING and self.channels is None:
            raise ValueError(f'the source "{NOTHING}" needs channels: 1 for grey images, 3 for colour')
        if self.source == NOTHING and not self.classes:
            raise ValueError(
                f'the source "{NOTHING}" needs classes: at least two different names, as hospitals use them'
            )
        if self.classes and self.positive and len(self.classes) != 2:
            raise ValueError("with positive there are two classes: name the negative one first")
        try:
            Options.of(self.settings)
        except InvalidValue as error:
            raise ValueError(f"{error.found}; {error.rule}: {error.remedy}") from None
        return self

    @property
    def reading(self) -> Reading:
        """How every image is converted to one shape and scale."""
        return Reading(
            channels=self.channels,
            window=self.window,
            max_megapixels=self.max_megapixels,
            slices=self.slices,
            axis=self.axis,
            spacing=self.spacing,
        )

    @property
    def public(self) -> Settings:
        """The preprocessing of every image: keywords of `fedveil.data.load`."""
        return {
            "image_size": self.image_size,
            "channels": self.channels,
            "window": self.window,
            "max_megapixels": self.max_megapixels,
            "slices": self.slices,
            "axis": self.axis,
            "spacing": self.spacing,
            "positive": self.positive or None,
            "classes": self.classes or None,
            "separator": self.separator,
            "task": self.task,
            "unknown_labels": self.unknown_labels,
        }

    @property
    def meaning(self) -> str:
        """The task: as set, or else as the preset says."""
        return Options.of(self.settings).task or "classes"

    @property
    def settings(self) -> Settings:
        """All keywords of `fedveil.data.load` except seed and secret."""
        return {
            **self.public,
            **self.columns.settings,
            "preset": self.preset,
            "layout": self.layout,
            "accept": self.accept,
            "test_fraction": self.test_fraction,
            "allow_patient_overlap": self.allow_patient_overlap,
        }
