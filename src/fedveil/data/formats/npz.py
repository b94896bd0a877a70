"""Reads `.npz` files in two layouts, never through pickle.

MedMNIST's: ``train_images``, ``train_labels`` and the same for ``val`` and ``test``. Flat: ``images`` and
``labels``, and optionally ``patient``, ``site``, ``split`` (0 train, 1 test, 2 validation), the names that
integers stand for (``classes``, ``patient_names``, ``site_names``), and ``files``. There ``features`` (n, d) may
replace ``images``: embeddings, for studies with ``model.features = "precomputed"``.

Type and shape of the arrays are those of the whole set, chosen by its author, and public. The content of one entry
only concerns that image: an unusable entry is left out, with its problem.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.columns import Column, Names
from fedveil.data.annotations.labels import UNSURE, Fault
from fedveil.data.annotations.records import SPLIT_NAMES, Problem, Records
from fedveil.data.dataset import TEST, TRAIN, VALIDATION
from fedveil.data.embeddings import ODD, Embeddings, odd_vectors
from fedveil.data.formats.tables import cell_text
from fedveil.data.image_store import OUTSIDE, ArrayImages, ImageStack
from fedveil.data.options import Options
from fedveil.errors import DataError

__all__ = ["read_npz"]

Array = npt.NDArray[Any]
Faults = dict[int, Fault]
"""Problems of single images, by row."""


def read_npz(path: Path, options: Options, class_names: Sequence[str] | None = None) -> Records:
    """The content of the file; ``class_names`` names integer labels if the file does not."""
    arrays = _open(path)
    embedded = "features" in arrays and "images" not in arrays
    if embedded:
        arrays["images"] = arrays.pop("features")
    faults: Faults = {}
    if "train_images" in arrays:
        columns, splits = _medmnist(path, arrays)
    elif "images" in arrays and "labels" in arrays:
        columns, splits = arrays, None
        if "split" in arrays:
            splits = _splits(arrays["split"], faults)
    else:
        raise _error(
            path,
            f"it holds the arrays {', '.join(arrays) or 'none'}",
            "there must be images and labels, or features and labels, or train_images and train_labels",
            "store them by those names",
        )
    count = len(columns["images"])
    for key in ("labels", "patient", "site", "split", "files"):
        if key in columns and len(columns[key]) != count:
            raise _error(
                path,
                f"there are {count} images but {len(columns[key])} entries in {key}",
                "there must be one per image",
                "store arrays of one length",
            )
    named = [str(name) for name in columns["classes"]] if "classes" in columns else class_names
    if named is not None and len(set(named)) != len(named):
        raise _error(path, "classes names one class twice", "class names must differ", "rename one")
    labels, classes = _labels(columns["labels"], named, faults)
    files = columns.get("files", np.arange(count).astype(str))
    read = _embeddings if embedded else _images
    images = read(path, columns["images"], options, faults)
    records = Records(
        name=path.stem,
        images=images,
        labels=labels,
        classes=classes,
        image_names=Names(files.astype(str)),
        place=lambda row: f"{path}, row {row}",
        patients=_names(path, columns, "patient", "patient_names", faults),
        sites=_names(path, columns, "site", "site_names", faults),
        splits=splits,
        attributes={name: _attribute(path, columns, called) for name, called in options.attributes.items()},
    )
    if not faults:
        return records
    problems = tuple(Problem(records.place(row), *faults[row], left_out=True) for row in sorted(faults))
    kept = np.setdiff1d(np.arange(count), np.fromiter(faults, np.int64))
    return replace(records.subset(kept), problems=problems)


def _error(path: Path, found: str, rule: str, remedy: str) -> DataError:
    return DataError(f"{path}: {found}", rule, remedy)


def _open(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise _error(
                    path,
                    "it is not a complete .npz file",
                    "an .npz must be a zip file of arrays",
                    "use numpy.savez",
                )
            file.seek(0)
            with np.load(file, allow_pickle=False) as stored:
                members = {key: stored[key] for key in stored.files}
    except DataError:
        raise
    except FileNotFoundError:
        raise _error(path, "there is no such file", "a source must exist", "check the path") from None
    except MemoryError:
        raise _error(
            path,
            "it does not fit in memory",
            "an .npz is read into memory completely",
            "use a manifest instead",
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged file makes zipfile and numpy raise nearly anything
        reason = "it holds Python objects" if "allow_pickle" in str(error) else f"it cannot be read ({error})"
        raise _error(
            path, reason, "an .npz must hold plain arrays, undamaged", "write it again with numpy.savez"
        ) from None
    return {key: np.atleast_1d(array) for key, array in members.items() if isinstance(array, np.ndarray)}


def _medmnist(path: Path, arrays: dict[str, Array]) -> tuple[dict[str, Array], npt.NDArray[np.int8]]:
    parts = [
        (key, code)
        for key, code in (("train", TRAIN), ("val", VALIDATION), ("test", TEST))
        if f"{key}_images" in arrays
    ]
    for key, _ in parts:
        images, labels = arrays[f"{key}_images"], arrays.get(f"{key}_labels")
        labelled = 0 if labels is None else len(labels)
        if labelled != len(images):
            raise _error(
                path,
                f"{key}_images holds {len(images)} images, {key}_labels {labelled}",
                "there must be one label per image",
                "store arrays of one length",
            )
    try:
        columns = {
            "images": np.concatenate([arrays[f"{key}_images"] for key, _ in parts]),
            "labels": np.concatenate([arrays[f"{key}_labels"] for key, _ in parts]),
        }
    except ValueError:
        shapes = [arrays[f"{key}_images"].shape for key, _ in parts]
        raise _error(
            path,
            f"the splits have the shapes {shapes}",
            "they must agree except for the first number",
            "store one size",
        ) from None
    names = [f"{key}/{row}" for key, _ in parts for row in range(len(arrays[f"{key}_images"]))]
    columns["files"] = np.array(names)
    return columns, np.repeat(
        [code for _, code in parts], [len(arrays[f"{key}_images"]) for key, _ in parts]
    ).astype(np.int8)


def _images(path: Path, images: Array, options: Options, faults: Faults) -> ImageStack:
    try:
        stack = ArrayImages(images, options.image_size, options.reading)
    except DataError as error:
        raise _error(path, error.found, error.rule, error.remedy) from None
    faults.update(dict.fromkeys((int(row) for row in stack.outside()), OUTSIDE))
    return stack


def _embeddings(path: Path, vectors: Array, options: Options, faults: Faults) -> ImageStack:
    """Vectors instead of images; an unusable one is zero until its row is left out."""
    del options
    try:
        odd = odd_vectors(vectors)
        sound = vectors.copy()
        sound[odd] = 0
        stack = Embeddings(sound)
    except DataError as error:
        raise _error(path, error.found, error.rule, error.remedy) from None
    faults.update(dict.fromkeys((int(row) for row in odd), ODD))
    return stack


def _splits(split: Array, faults: Faults) -> npt.NDArray[np.int8]:
    names = [str(value).strip().lower() for value in split.ravel()]
    for row, name in enumerate(names):
        if name not in SPLIT_NAMES:
            rule = "it must be 0 or train, 1 or test, 2 or validation"
            faults[row] = (f"split holds {name}", rule, "store one of these per image")
    return np.array([SPLIT_NAMES.get(name, TRAIN) for name in names], np.int8)


def _integers(key: str, values: Array, faults: Faults) -> npt.NDArray[np.int64]:
    """Whole numbers, also if stored as floats; other values are problems, and become 0."""
    numbers = np.issubdtype(values.dtype, np.number)
    given = values.astype(np.float64) if numbers else np.full(values.shape, np.nan)
    whole = np.isfinite(given) & (np.rint(given) == given) & (np.abs(given) < 2**53)
    for row in np.flatnonzero(~_every(whole)):
        found = f"{key} holds {values[row]}" if numbers else f"{key} holds {values.dtype}"
        faults[int(row)] = (found, "it must be a whole number", "correct it, or leave the image out")
    return np.where(whole, given, 0).astype(np.int64)


def _every(fits: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Whether all entries of a row fit."""
    return np.asarray(fits.all(axis=tuple(range(1, fits.ndim))), dtype=np.bool_)


def _labels(
    labels: Array, class_names: Sequence[str] | None, faults: Faults
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Codes and classes; -1 temporarily counts as a separate class for unknown labels."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind in "US":
        names, codes = np.unique(labels.astype(str), return_inverse=True)
        return codes.astype(np.int64), tuple(str(name) for name in names)
    if np.issubdtype(labels.dtype, np.floating):
        labels = np.where(np.isnan(labels), UNSURE, labels)
    codes = _integers("labels", labels, faults)
    several = codes.ndim == 2
    if class_names is None and not several:  # those that occur, however large one of them is
        for row in np.flatnonzero(codes < UNSURE):
            faults[int(row)] = (f"its label is {codes[row]}", "labels are 0 or more, or -1", "correct it")
        found, places = np.unique(codes, return_inverse=True)
        return places.reshape(codes.shape).astype(np.int64), tuple(str(code) for code in found)
    classes = tuple(class_names if class_names is not None else map(str, range(codes.shape[1])))
    most = 1 if several else len(classes) - 1
    for row in np.flatnonzero(~_every((codes >= UNSURE) & (codes <= most))):
        faults[int(row)] = (
            f"its label is {codes[row]}",
            f"with the classes {', '.join(classes)} it must be in 0 .. {most}",
            "name every class, and number them from 0",
        )
    codes = np.clip(codes, UNSURE, most)
    if not several and (codes == UNSURE).any():
        return np.where(codes == UNSURE, len(classes), codes), (*classes, str(UNSURE))
    return codes, classes


def _names(path: Path, columns: dict[str, Array], key: str, names_key: str, faults: Faults) -> Column | None:
    if key not in columns:
        return None
    if columns[key].ndim != 1:
        raise _error(
            path, f"{key} has {columns[key].ndim} dimensions", "it must have one", "store one entry per image"
        )
    if columns[key].dtype.kind in "US":
        return Column.of_array(columns[key].astype(str)).renamed(str.strip)
    codes = _integers(key, columns[key], faults)
    if names_key not in columns:
        found, places = np.unique(codes, return_inverse=True)
        return Column(places.astype(np.int64), Names([str(code) for code in found])).renamed(str)
    names = Names([str(name).strip() for name in columns[names_key]])
    outside = (codes < 0) | (codes >= len(names))
    for row in np.flatnonzero(outside):
        faults[int(row)] = (
            f"its {key} is {codes[row]}",
            f"{names_key} names {len(names)}, from 0 on",
            "name every one",
        )
    return Column(np.where(outside, -1, codes), names).renamed(str)


def _attribute(path: Path, columns: dict[str, Array], called: str) -> Column:
    """One more column (n,), of numbers or texts."""
    values = columns.get(called)
    if values is None or values.ndim != 1 or len(values) != len(columns["images"]):
        raise _error(
            path,
            f"it has no array {called} of one entry per image",
            "every attribute that the study names must be there",
            "store it, or remove it from data.columns.attributes",
        )
    return Column.of(cell_text(value) or None for value in values)
