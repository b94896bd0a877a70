"""Images to classify: a folder, one file, or a table of which only the paths are needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.columns import Names
from fedveil.data.annotations.records import Problem
from fedveil.data.annotations.table import file_problem, try_probe
from fedveil.data.formats.folder import images_in
from fedveil.data.formats.image_files import FileImages
from fedveil.data.formats.manifest import listed
from fedveil.data.formats.tables import TABLES
from fedveil.data.image_header import ImageFacts
from fedveil.data.options import Options, Reading
from fedveil.errors import DataError

__all__ = ["Unlabelled", "read_unlabelled"]


@dataclass(frozen=True, slots=True, eq=False)
class Unlabelled:
    """Images by name, converted to the model's channels and window.

    ``problems`` are images that are unusable by their header; reading may find more.
    """

    names: Names
    images: FileImages
    problems: tuple[Problem, ...] = field(default=())

    def read(
        self, indices: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], list[Problem]]:
        """The images that can be decoded, their indices and float32 (k, planes, size, size), and the others."""
        try:
            return indices, self.images.read(indices), []
        except DataError:
            kept, problems = [], []
            for index in indices:
                path = self.images.path(int(index))
                try:
                    self.images.read([int(index)])
                    kept.append(index)
                except DataError as error:
                    problems.append(file_problem(str(path), path, error))
            rows = np.array(kept, np.int64)
            return rows, self.images.read(rows), problems


def read_unlabelled(
    source: str,
    image_size: int,
    reading: Reading,
    *,
    base: Path = Path(),
    columns: Mapping[str, str | Sequence[str]] | None = None,
    preset: str = "",
) -> Unlabelled:
    """The images that ``source`` names, relative to ``base``.

    Raises:
        DataError: there are none, or the table cannot be read.
    """
    path = base / source
    problems: list[Problem] = []
    if path.is_dir():
        files = images_in(path, volumes=reading.slices is not None)
        named = [(file.relative_to(path).as_posix(), file, str(file)) for file in files]
    elif path.suffix.lower() in TABLES:
        named = []
        for row in listed(path, Options(columns=columns or {}, preset=preset)):
            if isinstance(row, Problem):
                problems.append(row)
            else:
                named.append(row)
    else:
        named = [(path.name, path, str(path))]
    kept: list[tuple[str, Path, ImageFacts]] = []
    for name, file, place in named:
        facts = try_probe(file, reading)
        if isinstance(facts, DataError):
            problems.append(file_problem(place, file, facts))
        else:
            kept.append((name, file, facts))
    if not named and not problems:
        raise DataError(
            f"{source} holds no images", "there must be at least one to classify", "check the path"
        )
    images = FileImages([file for _, file, _ in kept], [facts for _, _, facts in kept], image_size, reading)
    return Unlabelled(Names([name for name, _, _ in kept]), images, tuple(problems))
