"""Reads a folder of images: ``CLASS/image`` or ``SITE/CLASS/image``.

One more level may be named train, test or validation, anywhere above the images: ``train/CLASS/image``,
``SITE/test/CLASS/image``. Folders name no patients: each image counts as one, unless DICOM headers say more.
"""

from collections import Counter
from pathlib import Path

from fedveil.data.records import SPLIT_NAMES, Problem, Records
from fedveil.data.table import Row, file_records
from fedveil.errors import DataError

__all__ = ["read_folder"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom"}


def read_folder(root: Path, image_size: int) -> Records:
    """Everything in the folder that bears the suffix of an image; hidden files are passed over."""
    try:
        files = sorted(path for path in root.rglob("*") if path.is_file())
    except OSError as error:
        raise DataError(
            f"{error.filename}: it cannot be opened ({error.strerror})",
            "a folder of images must be readable",
            "check its permissions",
        ) from None
    visible = [
        path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    images = [path for path in visible if path.suffix.lower() in SUFFIXES]
    others = len(visible) - len(images)
    notes = [f"{others} files were passed over: they have no suffix of an image"] if others else []
    levels = [path.relative_to(root).parts[:-1] for path in images]
    split_at = _split_level(levels)
    named = [parts if split_at is None else parts[:split_at] + parts[split_at + 1 :] for parts in levels]
    depth = Counter(map(len, named)).most_common(1)[0][0] if named else 1
    rows, problems = [], []
    for path, parts, names in zip(images, levels, named, strict=True):
        if len(names) != depth or depth not in (1, 2):
            problems.append(
                Problem(
                    str(path),
                    f"it lies {len(names)} folders deep, most images {depth}",
                    "images lie in CLASS/ or in SITE/CLASS/, all alike, and in train/ and test/ if you like",
                    "move it, or write a manifest",
                )
            )
            continue
        rows.append(
            Row(
                path=path,
                name=path.relative_to(root).as_posix(),
                label=names[-1],
                place=str(path),
                site=names[0] if depth == 2 else None,
                split=None if split_at is None else SPLIT_NAMES[parts[split_at].lower()],
            )
        )
    return file_records(root.resolve().name, rows, image_size, problems, notes)


def _split_level(levels: list[tuple[str, ...]]) -> int | None:
    """The level at which every image's folder is called train, test or validation, if there is one."""
    words = {name for name in SPLIT_NAMES if name.isalpha()}
    for level in range(min(map(len, levels), default=0)):
        if all(parts[level].lower() in words for parts in levels):
            return level
    return None
