"""One name for every source: looks at it, hands it to its reader, and returns a checked data set."""

from collections.abc import Sequence
from pathlib import Path

from fedveil.data.cohort import Dataset
from fedveil.data.folders import read_folder
from fedveil.data.manifest import read_manifest
from fedveil.data.medmnist import class_names, read_medmnist
from fedveil.data.npz import read_npz
from fedveil.data.phantom import phantom
from fedveil.data.records import Options, Records, assemble
from fedveil.errors import DataError, InvalidValue

__all__ = ["MEMORY", "is_path", "load", "read_records"]

MEMORY = "memory"
"""The source of data that a program holds, and gave to the library by itself."""


def load(
    source: str,
    *,
    image_size: int = 64,
    positive: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    base: Path | None = None,
    seed: int = 0,
    secret: bytes = b"",
    test_fraction: float = 0.2,
    allow_patient_overlap: bool = False,
) -> Dataset:
    """The data set that ``source`` names, or a DataError that says what is wrong with it.

    ``source`` is ``phantom`` (or ``phantom:5`` with five named hospitals), ``medmnist:NAME``, or a manifest
    ``*.csv``, a folder or ``*.npz`` relative to ``base``. The rest is explained in :class:`Options`.
    """
    options = Options(
        image_size=image_size,
        positive=None if positive is None else tuple(positive),
        classes=None if classes is None else tuple(classes),
        seed=seed,
        secret=secret,
        test_fraction=test_fraction,
        allow_patient_overlap=allow_patient_overlap,
    )
    return assemble(read_records(source, options, base or Path()), options, source)


def read_records(source: str, options: Options, base: Path) -> Records:
    """What the source holds, unjudged."""
    if source.partition(":")[0] == "phantom":
        return _phantom(source, options)
    if source.startswith("medmnist:"):
        return read_medmnist(source.removeprefix("medmnist:"), options.image_size)
    if source == MEMORY:
        raise DataError(
            f'the source is "{MEMORY}"',
            "such data was in a program's memory, and is nowhere else",
            "call fedveil.run again with the same data and resume=True",
        )
    path = base / source
    if path.is_dir():
        return read_folder(path, options.image_size)
    if path.suffix.lower() == ".csv":
        return read_manifest(path, options.image_size)
    if path.suffix.lower() == ".npz":
        return read_npz(path, options.image_size, class_names(path.stem))
    raise DataError(
        f"the source is {source}, and there is no such folder",
        "it must be phantom, phantom:HOSPITALS, medmnist:NAME, a manifest *.csv, a folder, or an *.npz",
        "check the path, which is relative to the study file",
    )


def is_path(source: str) -> bool:
    """Whether the source is a file or folder, and so relative to the study that names it."""
    return source.partition(":")[0] not in ("phantom", "medmnist", "none", MEMORY)


def _phantom(source: str, options: Options) -> Records:
    hospitals = source.partition(":")[2]
    if hospitals and not hospitals.isdecimal():
        raise InvalidValue(f"the source is {source}", "hospitals must be a whole number", "write phantom:5")
    return phantom(options.image_size, int(hospitals) if hospitals else None)
