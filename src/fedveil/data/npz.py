"""Reads `.npz` files in two layouts, never through pickle.

MedMNIST's: ``train_images``, ``train_labels`` and the same for ``val`` and ``test``. Flat: ``images`` and
``labels``, and optionally ``patient``, ``site``, ``split`` (0 train, 1 test, 2 validation), the names that
integers stand for (``classes``, ``patient_names``, ``site_names``), and ``files``. There ``features`` (n, d) may stand
for ``images``: embeddings, for studies with ``model.features = "precomputed"``.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data.cohort import TEST, TRAIN, VALIDATION
from fedveil.data.embeddings import Embeddings
from fedveil.data.records import SPLIT_NAMES, Records
from fedveil.data.stack import ArrayImages, ImageStack
from fedveil.errors import DataError

__all__ = ["read_npz"]

Array = npt.NDArray[Any]


def read_npz(path: Path, image_size: int, class_names: Sequence[str] | None = None) -> Records:
    """Everything the file holds; ``class_names`` names integer labels where the file itself does not."""
    arrays = _open(path)
    embedded = "features" in arrays and "images" not in arrays
    if embedded:
        arrays["images"] = arrays.pop("features")
    if "train_images" in arrays:
        columns, splits = _medmnist(path, arrays)
    elif "images" in arrays and "labels" in arrays:
        columns, splits = arrays, None
        if "split" in arrays:
            splits = _splits(path, arrays["split"])
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
                "there must be one an image",
                "store arrays of one length",
            )
    named = [str(name) for name in columns["classes"]] if "classes" in columns else class_names
    labels, classes = _labels(path, columns["labels"], named)
    files = columns.get("files", np.arange(count).astype(str))
    return Records(
        name=path.stem,
        images=_images(path, columns["images"], None if embedded else image_size),
        labels=labels,
        classes=classes,
        image_names=tuple(str(file) for file in files),
        place=lambda row: f"{path}, row {row}",
        patients=_names(path, columns, "patient", "patient_names"),
        sites=_names(path, columns, "site", "site_names"),
        splits=splits,
    )


def _error(path: Path, found: str, rule: str, remedy: str) -> DataError:
    return DataError(f"{path}: {found}", rule, remedy)


def _open(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise _error(
                    path, "it is no whole .npz file", "an .npz holds arrays, zipped", "use numpy.savez"
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
            path, "it does not fit in memory", "an .npz is read whole", "use a manifest instead"
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
                "there must be one label an image",
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
            "they must agree but for the first number",
            "store one size",
        ) from None
    names = [f"{key}/{row}" for key, _ in parts for row in range(len(arrays[f"{key}_images"]))]
    columns["files"] = np.array(names)
    return columns, np.repeat(
        [code for _, code in parts], [len(arrays[f"{key}_images"]) for key, _ in parts]
    ).astype(np.int8)


def _images(path: Path, images: Array, size: int | None) -> ImageStack:
    """Images, or embeddings where no size is given."""
    try:
        return Embeddings(images) if size is None else ArrayImages(images, size)
    except DataError as error:
        raise _error(path, error.found, error.rule, error.remedy) from None


def _splits(path: Path, split: Array) -> npt.NDArray[np.int8]:
    names = [str(value).strip().lower() for value in split.ravel()]
    unknown = sorted(set(names) - set(SPLIT_NAMES))
    if unknown:
        raise _error(
            path,
            f"split holds {', '.join(unknown[:5])}",
            "it must be 0 or train, 1 or test, 2 or validation",
            "store one of these an image",
        )
    return np.array([SPLIT_NAMES[name] for name in names], np.int8)


def _integers(path: Path, key: str, values: Array) -> npt.NDArray[np.int64]:
    """Whole numbers, also where they were stored as floats."""
    whole = (
        values.astype(np.int64)
        if np.issubdtype(values.dtype, np.number) and np.isfinite(values).all()
        else None
    )
    if whole is None or np.any(whole != values):
        raise _error(
            path, f"{key} holds NaN, fractions or {values.dtype}", "it must hold whole numbers", "repair it"
        )
    return whole


def _labels(
    path: Path, labels: Array, class_names: Sequence[str] | None
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind in "US":
        names, codes = np.unique(labels.astype(str), return_inverse=True)
        return codes.astype(np.int64), tuple(str(name) for name in names)
    codes = _integers(path, "labels", labels)
    count = codes.shape[1] if codes.ndim == 2 else int(codes.max(initial=0)) + 1
    classes = tuple(class_names) if class_names is not None else tuple(str(code) for code in range(count))
    if codes.min(initial=0) < 0 or count > len(classes) or (codes.ndim == 2 and codes.max(initial=0) > 1):
        raise _error(
            path,
            f"labels reach from {codes.min()} to {codes.max()}",
            f"with the classes {', '.join(classes)} they must lie in 0 .. {len(classes) - 1}",
            "name every class, and number them from 0",
        )
    return codes, classes


def _names(path: Path, columns: dict[str, Array], key: str, names_key: str) -> tuple[str, ...] | None:
    if key not in columns:
        return None
    if columns[key].ndim != 1:
        raise _error(
            path, f"{key} has {columns[key].ndim} dimensions", "it must have one", "store one entry an image"
        )
    if columns[key].dtype.kind in "US":
        return tuple(str(value) for value in columns[key])
    codes = _integers(path, key, columns[key])
    if names_key not in columns:
        return tuple(str(code) for code in codes)
    names = [str(name) for name in columns[names_key]]
    if codes.min(initial=0) < 0 or codes.max(initial=0) >= len(names):
        raise _error(
            path,
            f"{key} reaches from {codes.min()} to {codes.max()}",
            f"{names_key} names {len(names)}",
            "name every one",
        )
    return tuple(names[code] for code in codes)
