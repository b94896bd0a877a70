"""Reads a folder of images: ``CLASS/image`` or ``SITE/CLASS/image``.

One more level may be named train, test or validation, anywhere above the images: ``train/CLASS/image``,
``SITE/test/CLASS/image``. A layout such as ``site/split/class`` sets the meaning of the levels; without one, the
majority of images decides. Folders name no patients: each image counts as one, unless DICOM headers say more.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from fedveil.data.annotations.columns import Column, Names
from fedveil.data.annotations.records import SPLIT_NAMES, Problem, Records
from fedveil.data.annotations.table import class_codes, listed_files, probed
from fedveil.data.formats.image_files import FORMATS
from fedveil.data.formats.volumes.files import volumes_in
from fedveil.data.options import Options
from fedveil.errors import DataError, InvalidValue

__all__ = ["guessed_layout", "images_in", "read_folder"]

SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes} | {".dcm", ".dicom"}
LAYOUTS = ("class", "site/class", "split/class", "split/site/class", "site/split/class", "site/class/split")
WORDS = {name for name in SPLIT_NAMES if name.isalpha()}


def read_folder(root: Path, options: Options) -> Records:
    """All files in the folder with an image suffix; hidden files are skipped."""
    images, notes = _images(root, volumes=options.reading.slices is not None)
    levels = {path: path.relative_to(root).parts[:-1] for path in images}
    if options.leave_out and not options.layout:
        raise DataError(
            f"{root} is a folder, and no layout is set",
            "where each image is judged by itself, what folders mean must not follow from how most images lie",
            "set data.layout",
        )
    layout = _layout(list(levels.values()), options.layout)
    files: list[Path] = []
    places: list[dict[str, str]] = []
    problems = []
    for path, parts in levels.items():
        fits = len(parts) == len(layout) and all(
            part.lower() in WORDS for part, means in zip(parts, layout, strict=True) if means == "split"
        )
        if not fits or "class" not in layout:
            problems.append(
                Problem(
                    str(path),
                    f"it is {len(parts)} folders deep, most images {len(layout)}"
                    if len(parts) != len(layout) or "class" not in layout
                    else f"its folders do not match the layout {'/'.join(layout)} of most images",
                    "all images must be in CLASS/ or in SITE/CLASS/, optionally with train/ and test/",
                    "move it, or write a manifest",
                    left_out=True,
                )
            )
            continue
        files.append(path)
        places.append(dict(zip(layout, parts, strict=True)))
    paths = Names([str(file) for file in files])
    labels, classes = class_codes(Column.of(place["class"] for place in places))
    splits = [SPLIT_NAMES[place["split"].lower()] for place in places if "split" in layout]
    records = Records(
        name=root.resolve().name,
        images=listed_files(paths, options),
        labels=labels,
        classes=classes,
        image_names=Names([file.relative_to(root).as_posix() for file in files]),
        place=lambda row: paths[row],
        sites=Column.of(place["site"] for place in places) if "site" in layout else None,
        splits=np.array(splits, np.int8) if "split" in layout else None,
        problems=tuple(problems),
        notes=tuple(notes),
    )
    return probed(records, options)


def _images(root: Path, *, volumes: bool = False) -> tuple[list[Path], list[str]]:
    """Every image or volume in the folder, in order, and a note on skipped files."""
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
    if volumes:
        images = volumes_in(visible)
        found = set(images)
        used = sum(path in found or path.parent in found for path in visible)
    else:
        images = [path for path in visible if path.suffix.lower() in SUFFIXES]
        used = len(images)
    others = len(visible) - used
    kind = "volume" if volumes else "image"
    return images, [f"{others} files were skipped: they have no {kind} suffix"] if others else []


def images_in(root: Path, *, volumes: bool = False) -> list[Path]:
    """Every image, or every volume, in the folder, in order."""
    return _images(root, volumes=volumes)[0]


def guessed_layout(root: Path) -> str:
    """What the levels of a folder mean, as most of its images lie; for a person who has to set it.

    >>> from tempfile import mkdtemp
    >>> guessed_layout(Path(mkdtemp()))
    'class'
    """
    images, _ = _images(root)
    return "/".join(_layout([path.relative_to(root).parts[:-1] for path in images], ""))


def _layout(levels: list[tuple[str, ...]], setting: str) -> tuple[str, ...]:
    """The meaning of each level above an image, by the setting or by the majority of images."""
    if setting:
        if setting not in LAYOUTS:
            raise InvalidValue(
                f"layout is {setting}", f"it must be one of {', '.join(LAYOUTS)}", "choose one"
            )
        return tuple(setting.split("/"))
    depth = Counter(map(len, levels)).most_common(1)[0][0] if levels else 1
    alike = [parts for parts in levels if len(parts) == depth]
    split_at = next(
        (
            level
            for level in range(depth)
            if 2 * sum(parts[level].lower() in WORDS for parts in alike) > len(alike)
        ),
        None,
    )
    rest = {1: ["class"], 2: ["site", "class"]}.get(depth - (split_at is not None), ["?"] * depth)
    return tuple(rest if split_at is None else [*rest[:split_at], "split", *rest[split_at:]])
