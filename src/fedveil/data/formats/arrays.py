"""Data sets from data in memory: arrays of images, embeddings, a table of files."""

import csv
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.records import SPLIT_NAMES, Records, assemble, judged
from fedveil.data.annotations.table import class_order
from fedveil.data.dataset import Dataset
from fedveil.data.embeddings import Embeddings
from fedveil.data.formats.image_files import FileImages
from fedveil.data.image_store import OUTSIDE, ArrayImages, ImageStack
from fedveil.data.load import load
from fedveil.data.options import Options, Reading
from fedveil.data.windows import FILE, Window, check_window
from fedveil.errors import DataError, FedveilError

__all__ = ["Columns", "array_of", "as_pixels", "from_arrays", "from_features", "from_frame", "sized"]

Array = npt.NDArray[Any]
SIZE = 64
"""Pixels along each side unless a study sets another size, see `sized`."""
TABLE = "frame.csv"


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
    unknown_labels: str = "refuse"
    window: Window = FILE
    name: str = "arrays"


def from_arrays(images: Any, labels: Any, columns: Columns) -> Dataset:
    """See `Dataset.from_arrays`."""
    reading = Reading(window=check_window(columns.window))
    return _dataset(_stack(images, SIZE, reading), labels, columns)


def from_features(features: Any, labels: Any, columns: Columns) -> Dataset:
    """See `Dataset.from_features`."""
    return _dataset(Embeddings(array_of(features)), labels, columns)


def _stack(images: Any, size: int, reading: Reading) -> ArrayImages:
    """Images in memory, all of which are readable; otherwise the error names the first that is not."""
    stack = ArrayImages(_channels_last(images), size, reading)
    outside = stack.outside()
    if len(outside):
        found, rule, remedy = OUTSIDE
        raise DataError(f"image {outside[0]}: {found}", rule, remedy)
    return stack


def from_frame(frame: Any, base: Path, settings: dict[str, Any]) -> Dataset:
    """See `Dataset.from_frame`: the table is read like a manifest, with all of its checks."""
    header = [str(name) for name in getattr(frame, "columns", frame)]
    columns = [[_cell(value) for value in frame[name]] for name in getattr(frame, "columns", frame)]
    called = str(settings.get("columns", {}).get("path") or "path").strip().lower()
    paths = [number for number, name in enumerate(header) if name.strip().lower() == called]
    for number in paths:
        columns[number] = [str((base / path).absolute()) if path else "" for path in columns[number]]
    with tempfile.TemporaryDirectory(prefix="fedveil-") as folder:
        with (Path(folder) / TABLE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(zip(*columns, strict=True))
        try:
            dataset = load(TABLE, base=Path(folder), **settings)
        except FedveilError as error:
            found, rule, remedy = (
                text.replace(f"{Path(folder) / TABLE}", "the table")
                for text in (error.found, error.rule, error.remedy)
            )
            raise type(error)(found, rule, remedy) from None
    return dataset


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
    """Images as model input: float32 (k, channels, size, size) in [0, 1], by channels and window."""
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
    codes, classes = _labels(labels, columns.classes, count)
    splits = _names("split", columns.split, count)
    unknown = sorted({one for one in splits or () if one.lower() not in SPLIT_NAMES})
    if unknown:
        raise DataError(
            f"split holds {', '.join(unknown[:5])}",
            "it must be 0 or train, 1 or test, 2 or validation",
            "give one of these for each image",
        )
    records = Records(
        name=columns.name,
        images=images,
        labels=codes,
        classes=classes,
        image_names=tuple(str(row) for row in range(count)),
        place=lambda row: f"{columns.name}, row {row}",
        patients=_names("patients", columns.patients, count),
        sites=_names("sites", columns.sites, count),
        splits=None if splits is None else np.array([SPLIT_NAMES[one.lower()] for one in splits], np.int8),
    )
    options = Options(
        positive=None if columns.positive is None else tuple(columns.positive),
        seed=columns.seed,
        test_fraction=columns.test_fraction,
        allow_patient_overlap=columns.allow_patient_overlap,
        accept=tuple(columns.accept),
        unknown_labels=columns.unknown_labels,
    )
    named = None if columns.classes is None else classes
    return assemble(judged(records, replace(options, classes=named)), options, columns.name)


def _labels(
    labels: Any, classes: Sequence[str] | None, count: int
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Codes and class names; whole numbers index the classes where these are given, and are names otherwise."""
    values = array_of(labels)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(
            f"labels have the shape {values.shape}",
            "there must be one label for each image",
            "give one column of numbers or names",
        )
    names = _names("labels", values, count) or ()
    known = class_order(names) if classes is None else tuple(str(one) for one in classes)
    if classes is not None and all(name.isdecimal() for name in names) and not set(names) <= set(known):
        inside = all(int(name) < len(known) for name in names)
        names = tuple(known[int(name)] for name in names) if inside else names
    strange = sorted(set(names) - set(known))
    if strange:
        raise DataError(
            f"labels hold {', '.join(strange[:5])}",
            f"the classes are {', '.join(known)}",
            "correct the labels, or name every class",
        )
    codes = {name: code for code, name in enumerate(known)}
    return np.array([codes[name] for name in names], np.int64), known


def _names(what: str, values: Iterable[Any] | None, count: int) -> tuple[str, ...] | None:
    """A column as texts: whole numbers without a point, however they are stored."""
    if values is None:
        return None
    cells = tuple(_cell(value) for value in (array_of(values) if _is_tensor(values) else values))
    if len(cells) != count:
        raise DataError(
            f"there are {count} images and {len(cells)} {what}",
            "there must be one for each image",
            "give columns of one length",
        )
    if not all(cells):
        raise DataError(
            f"{what} has no value at row {next(row for row, cell in enumerate(cells) if not cell)}",
            "a column that is given must be filled",
            "fill it in every row, or leave the rows out",
        )
    return cells


def _missing(value: Any) -> bool:
    """None, NaN, or a table library's missing value, which equals nothing and is neither true nor false."""
    try:
        return value is None or bool(value != value)
    except TypeError:
        return True


def _cell(value: Any) -> str:
    """One entry as text; empty if missing.

    >>> [_cell(value) for value in (3, 3.0, np.int64(3), "a", None, float("nan"), True)]
    ['3', '3', '3', 'a', '', '', '1']
    """
    if _missing(value):
        return ""
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)
