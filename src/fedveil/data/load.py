"""Loads any source: selects its reader, and returns a checked data set."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np

from fedveil.data.annotations.records import Records, assemble, judged
from fedveil.data.dataset import Dataset
from fedveil.data.formats.folder import read_folder
from fedveil.data.formats.manifest import read_manifest
from fedveil.data.formats.medmnist import class_names, read_medmnist
from fedveil.data.formats.npz import read_npz
from fedveil.data.formats.tables import TABLES
from fedveil.data.image_store import ArrayImages
from fedveil.data.options import Options, Settings
from fedveil.data.phantom.findings import phantom_findings
from fedveil.data.phantom.grades import phantom_grades
from fedveil.data.phantom.patients import phantom
from fedveil.data.phantom.volumes import phantom_volumes
from fedveil.errors import DataError, InvalidValue

__all__ = ["MEMORY", "is_path", "load", "read_records"]

MEMORY = "memory"
"""The source name of data in memory."""
PHANTOMS: dict[str, Callable[[int], Records]] = {"findings": phantom_findings, "grades": phantom_grades}
"""Synthetic sets of images other than the plain one, by what follows the colon."""


def load(source: str, *, base: Path | None = None, **settings: Unpack[Settings]) -> Dataset:
    """The data set that ``source`` names, or a DataError that names the problem.

    ``source`` is ``phantom`` (or ``phantom:5`` with five named hospitals), ``medmnist:NAME``, or a manifest ``*.csv``,
    ``*.tsv``, ``*.parquet`` or ``*.xlsx``, a folder or ``*.npz`` relative to ``base``. The settings are explained in
    :class:`Options`.
    """
    options = Options.of(settings)
    return assemble(read_records(source, options, base or Path()), options, source)


def read_records(source: str, options: Options, base: Path) -> Records:
    """The content of the source: every usable image, and a problem for each other."""
    return judged(_read(source, options, base), options)


def _read(source: str, options: Options, base: Path) -> Records:
    if source.partition(":")[0] == "phantom":
        return _phantom(source, options)
    if source.startswith("medmnist:"):
        return read_medmnist(source.removeprefix("medmnist:"), options)
    if source == MEMORY:
        raise DataError(
            f'the source is "{MEMORY}"',
            "such data was only in a program's memory",
            "call fedveil.run again with the same data and resume=True",
        )
    path = base / source
    if path.is_dir():
        return read_folder(path, options)
    if path.suffix.lower() in TABLES:
        return read_manifest(path, options)
    if path.suffix.lower() == ".npz":
        return read_npz(path, options, class_names(path.stem))
    raise DataError(
        f"the source is {source}, and there is no such folder",
        "it must be phantom, phantom:HOSPITALS, medmnist:NAME, a manifest *.csv, *.tsv, *.parquet or *.xlsx, "
        "a folder, or an *.npz",
        "check the path, which is relative to the study file",
    )


def is_path(source: str) -> bool:
    """Whether the source is a file or folder, and so relative to the study that names it."""
    return source.partition(":")[0] not in ("phantom", "medmnist", "none", MEMORY)


def _phantom(source: str, options: Options) -> Records:
    kind = source.partition(":")[2]
    if kind == "volumes":
        return phantom_volumes(options.image_size, options.reading)
    if kind in PHANTOMS:
        records = PHANTOMS[kind](options.image_size)
    elif kind and not kind.isdecimal():
        raise InvalidValue(
            f"the source is {source}",
            "hospitals must be a whole number",
            "write phantom:5, phantom:findings for several findings per image, phantom:grades for ordered grades, or "
            "phantom:volumes",
        )
    else:
        records = phantom(options.image_size, int(kind) if kind else None)
    drawn = records.images
    if isinstance(drawn, ArrayImages):
        images = ArrayImages(drawn.stored(np.arange(len(drawn))), options.image_size, options.reading)
        records = replace(records, images=images)
    return records
