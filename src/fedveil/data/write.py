"""Writes a data set as one manifest or `.npz` per hospital, to try a federation on one machine."""

import csv
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.records import SPLITS
from fedveil.data.dataset import Dataset
from fedveil.data.embeddings import Embeddings
from fedveil.data.formats.image_files import FileImages
from fedveil.data.image_store import ArrayImages
from fedveil.data.partition import Scheme, hospitals
from fedveil.errors import DataError

__all__ = ["write_split"]

Codes = npt.NDArray[np.int64]


def write_split(
    dataset: Dataset,
    folder: Path,
    count: int,
    scheme: Scheme = "dirichlet",
    alpha: float = 0.5,
    seed: int = 0,
) -> list[Path]:
    """Splits the training patients as :func:`fedveil.data.hospitals` does, and writes each hospital's part.

    ``folder`` must not exist, and is created atomically. It will hold site-1.csv, site-2.csv and
    so on, and test.csv and validation.csv if there are such images. Image files stay where they are, and are named
    by relative paths; images in an array are also written, as site-1.npz and so on.
    """
    if folder.exists():
        raise DataError(
            f"{folder} exists already",
            "a split must be written to a new folder",
            "name another, or delete it",
        )
    dealt = hospitals(dataset, count, scheme, alpha, seed)
    parts = {f"site-{number}": rows for number, rows in enumerate(dealt, 1)}
    parts |= {"test": dataset.test, "validation": dataset.validation}
    suffix = ".csv" if isinstance(dataset.images, FileImages) else ".npz"
    files = {name + suffix: rows for name, rows in parts.items() if len(rows)}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        for file, rows in files.items():
            _write(dataset, rows, unfinished / file, folder)
        unfinished.rename(folder)
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return [folder / file for file in files]


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"{folder} cannot be written ({error.strerror})",
        "there must be room and permission",
        "choose another place; nothing was left behind",
    )


def _write(dataset: Dataset, rows: Codes, target: Path, folder: Path) -> None:
    if isinstance(dataset.images, FileImages):
        _write_manifest(dataset, dataset.images, rows, target, folder)
    else:
        _write_arrays(dataset, rows, target)


def _write_manifest(dataset: Dataset, images: FileImages, rows: Codes, target: Path, folder: Path) -> None:
    several = dataset.labels.ndim == 2
    attributes = list(dataset.attributes)
    header = ["path", *(dataset.classes if several else ["label"]), "split", *attributes]
    header += ["patient"] if dataset.patients_known else []
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            path = Path(os.path.relpath(images.path(row).absolute(), folder.absolute())).as_posix()
            labels = dataset.labels[row] if several else [dataset.classes[dataset.labels[row]]]
            carried = [dataset.attributes[name][row] or "" for name in attributes]
            patient = dataset.patient_names[dataset.patients[row]]
            writer.writerow([path, *labels, SPLITS[dataset.split[row]], *carried, patient][: len(header)])


def _write_arrays(dataset: Dataset, rows: Codes, target: Path) -> None:
    images = dataset.images
    if isinstance(images, Embeddings):
        held: dict[str, npt.NDArray[Any]] = {"features": images.vectors(rows)}
    elif isinstance(images, ArrayImages):
        held = {"images": images.stored(rows)}
    else:
        held = {"images": images.read(rows).transpose(0, 2, 3, 1)}
    arrays: dict[str, Any] = {
        **held,
        "labels": dataset.labels[rows],
        "split": dataset.split[rows],
        "classes": np.array(dataset.classes),
        "files": np.array([dataset.image_names[row] for row in rows]),
        **{name: column.take(rows).texts().astype(str) for name, column in dataset.attributes.items()},
    }
    if dataset.patients_known:
        present, patients = np.unique(dataset.patients[rows], return_inverse=True)
        arrays["patient"] = patients
        arrays["patient_names"] = np.array([dataset.patient_names[code] for code in present])
    np.savez_compressed(target, allow_pickle=False, **arrays)
