"""Data sets from data in memory: arrays of images, embeddings, a table of files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.columns import Column, numbers
from fedveil.data.annotations.labels import Labels
from fedveil.data.annotations.records import SPLIT_NAMES, Records, assemble, judged
from fedveil.data.annotations.table import class_codes, class_order
from fedveil.data.dataset import Dataset
from fedveil.data.embeddings import Embeddings
from fedveil.data.formats.image_files import FileImages
from fedveil.data.formats.manifest import sheet_records
from fedveil.data.formats.tables import cell_text, frame_sheet
from fedveil.data.image_store import OUTSIDE, ArrayImages, ImageStack
from fedveil.data.options import Axis, Options, Reading, Settings
from fedveil.data.windows import FILE, Window
from fedveil.errors import DataError

__all__ = ["Columns", "array_of", "as_pixels", "from_arrays", "from_features", "from_frame", "sized"]

Array = npt.NDArray[Any]
SIZE = 64
"""Pixels along each side unless a study sets another size, see `sized`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The annotations of every image except its label; see `Dataset.from_arrays`."""

    patients: Iterable[Any] | None = None
    sites: Iterable[Any] | None = None
    split: Iterable[Any] | None = None
    classes: Sequence[str] | None = None
    positive: Sequence[str] | None = None
    test_fraction: float = 0.2
    seed: int = 0
    allow_patient_overlap: bool = False
    accept: Sequence[str] = ()
    unknown_labels: str | int = "refuse"
    task: str = "classes"
    attributes: Mapping[str, Iterable[Any]] = field(default_factory=dict)
    window: Window = FILE
    slices: int | None = None
    axis: Axis = "axial"
    name: str = "arrays"


def from_arrays(images: Any, labels: Any, columns: Columns) -> Dataset:
    """See `Dataset.from_arrays`."""
    reading = Reading(window=columns.window, slices=columns.slices, axis=columns.axis)
    reading.check()
    return _dataset(_stack(images, SIZE, reading), labels, columns)


def from_features(features: Any, labels: Any, columns: Columns) -> Dataset:
    """See `Dataset.from_features`."""
    return _dataset(Embeddings(array_of(features)), labels, columns)


def _stack(images: Any, size: int, reading: Reading) -> ArrayImages:
    """Images in memory, all of which are readable; otherwise the error names the first that is not."""
    pixels = array_of(images) if reading.slices else _channels_last(images)
    stack = ArrayImages(pixels, size, reading)
    outside = stack.outside()
    if len(outside):
        found, rule, remedy = OUTSIDE
        raise DataError(f"image {outside[0]}: {found}", rule, remedy)
    return stack


def from_frame(frame: Any, base: Path, settings: Settings) -> Dataset:
    """See `Dataset.from_frame`: the table is read like a manifest, with all of its checks."""
    options, notes = Options.of(settings), list[str]()
    records = sheet_records(frame_sheet(frame, base), "frame", options, notes)
    return assemble(judged(records, options), options, "the table")


def sized(dataset: Dataset, size: int, reading: Reading) -> Dataset:
    """The data set with its images read at another size, with other channels or another window.

    If ``reading`` names no channels, those of the data set are used. Embeddings have none of these.
    """
    images = dataset.images
    wanted = replace(reading, channels=reading.channels or images.channels)
    same = images.size == size and replace(images.reading, channels=images.channels) == wanted
    if same or isinstance(images, Embeddings):
        return dataset
    if isinstance(images, ArrayImages):
        stored = images.stored(np.arange(len(images)))
        return replace(dataset, images=_stack(stored, size, wanted))
    if isinstance(images, FileImages):
        return replace(dataset, images=FileImages(images.paths, images.facts, size, wanted))
    raise DataError(
        f"the images are read at {images.size} pixels in {images.channels} channels by {images.reading.window!r}, "
        f"and the study asks for {size}, {wanted.channels} and {wanted.window!r}",
        "a part of a data set must be read like the whole",
        "set image_size, channels and window in the study to those of the images",
    )


def as_pixels(images: Any, size: int, reading: Reading) -> npt.NDArray[np.float32]:
    """Images as model input: float32 (k, planes, size, size) in [0, 1], by the reading."""
    stack = _stack(images, size, reading)
    return stack.read(np.arange(len(stack)))


def array_of(values: Any) -> Array:
    """A numpy array of a numpy array, a torch tensor on any device, or a list; torch itself is not imported."""
    if _is_tensor(values):
        values = values.detach().cpu().numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(
            f"values cannot be put in one array ({error})", "all rows must have one shape", "resize them"
        ) from None


def _is_tensor(values: Any) -> bool:
    return hasattr(values, "detach") and hasattr(values, "cpu")


def _channels_last(images: Any) -> Array:
    """(n, h, w) or (n, h, w, c): tensors come with channels first, as torch has them."""
    pixels = array_of(images)
    if _is_tensor(images) and pixels.ndim == 4:
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[3] not in (1, 3):
        raise DataError(
            f"images have the shape {pixels.shape}",
            "an array has the channels last, (n, height, width, channels); a torch tensor has them first",
            "give images.transpose(0, 2, 3, 1), or the tensor",
        )
    return pixels


def _dataset(images: ImageStack, labels: Any, columns: Columns) -> Dataset:
    count = len(images)
    codes, classes = _labels(labels, columns, count)
    records = Records(
        name=columns.name,
        images=images,
        labels=codes,
        classes=classes,
        image_names=numbers(count),
        place=lambda row: f"{columns.name}, row {row}",
        patients=_column("patients", columns.patients, count),
        sites=_column("sites", columns.sites, count),
        splits=_splits(columns.split, count),
        attributes={
            name: _column(name, values, count, filled=False) for name, values in columns.attributes.items()
        },
    )
    options = Options(
        positive=None if columns.positive is None else tuple(columns.positive),
        seed=columns.seed,
        test_fraction=columns.test_fraction,
        allow_patient_overlap=columns.allow_patient_overlap,
        accept=tuple(columns.accept),
        unknown_labels=columns.unknown_labels,
        task=columns.task,
        classes=None if columns.classes is None else classes,
    )
    return assemble(judged(records, options), options, columns.name)


def _labels(labels: Any, columns: Columns, count: int) -> tuple[Labels, tuple[str, ...]]:
    """Codes and class names; whole numbers index the classes where these are given, and are names otherwise."""
    values, classes = array_of(labels), columns.classes
    if values.ndim == 2 and columns.task == "findings":
        return _findings(values, columns, count)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(
            f"labels have the shape {values.shape}",
            "there must be one label for each image",
            'give one column of numbers or names, or set task = "findings"',
        )
    column = _column("labels", values, count)
    if classes is None:
        return class_codes(column)
    known, names = tuple(str(one) for one in classes), tuple(column.names)
    if all(name.isdecimal() for name in names) and not set(names) <= set(known):
        inside = all(int(name) < len(known) for name in names)
        names = tuple(known[int(name)] for name in names) if inside else names
    strange = class_order(set(names) - set(known))
    if strange:
        raise DataError(
            f"labels hold {', '.join(strange[:5])}",
            f"the classes are {', '.join(known)}",
            "correct the labels, or name every class",
        )
    codes = np.array([known.index(name) for name in names], dtype=np.int64)
    return codes[column.codes], known


def _findings(values: Array, columns: Columns, count: int) -> tuple[Labels, tuple[str, ...]]:
    """One column of 1, 0 and -1 per finding; NaN is unknown."""
    names = tuple(str(one) for one in columns.classes or range(values.shape[1]))
    numbers = values.astype(np.float64) if values.dtype.kind in "biuf" else np.full(values.shape, 2.0)
    known = np.where(np.isnan(numbers), -1.0, numbers)
    if len(values) != count or len(names) != values.shape[1] or not np.isin(known, (-1, 0, 1)).all():
        raise DataError(
            f"labels have the shape {values.shape} and the type {values.dtype}, for {count} images and "
            f"{len(names)} names",
            "findings are one column each, of 1, 0, and -1 or NaN for unknown",
            "give one label for each image, or one named column for each finding",
        )
    return known.astype(np.int8), names


def _splits(values: Iterable[Any] | None, count: int) -> npt.NDArray[np.int8] | None:
    if values is None:
        return None
    column = _column("split", values, count)
    unknown = [one for one in column.names if one.lower() not in SPLIT_NAMES]
    if unknown:
        raise DataError(
            f"split holds {', '.join(unknown[:5])}",
            "it must be 0 or train, 1 or test, 2 or validation",
            "give one of these for each image",
        )
    codes = np.array([SPLIT_NAMES[one.lower()] for one in column.names], dtype=np.int8)
    return codes[column.codes]


@overload
def _column(what: str, values: None, count: int) -> None: ...
@overload
def _column(what: str, values: Iterable[Any], count: int, *, filled: bool = True) -> Column: ...
def _column(what: str, values: Iterable[Any] | None, count: int, *, filled: bool = True) -> Column | None:
    """A column as texts: whole numbers without a point, however they are stored."""
    if values is None:
        return None
    column = _texts(array_of(values) if _is_tensor(values) else values)
    if len(column) != count:
        raise DataError(
            f"there are {count} images and {len(column)} {what}",
            "there must be one for each image",
            "give columns of one length",
        )
    if filled and not column.complete:
        raise DataError(
            f"{what} has no value at row {np.flatnonzero(column.codes < 0)[0]}",
            "a column that is given must be filled",
            "fill it in every row, or leave the rows out",
        )
    return column


def _texts(values: Iterable[Any]) -> Column:
    """A column of any values; arrays of numbers or texts are converted once per distinct value."""
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "biufUS":
        distinct, codes = np.unique(values, return_inverse=True)
        inner = Column.of(cell_text(value) or None for value in distinct)
        return Column(inner.codes[codes], inner.names)
    return Column.of(cell_text(value) or None for value in values)
