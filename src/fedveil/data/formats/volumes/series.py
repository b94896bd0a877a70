"""DICOM volumes: a folder that holds one series, or one file of several frames.

The slices of a series are ordered by where they lie, ImagePositionPatient along the normal of ImageOrientationPatient
(DICOM PS3.3, C.7.6.2); neither file names nor InstanceNumber count. Everything that decides how a volume is read is in
its own folder: a folder that holds a second series or a second patient is refused.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data.formats.dicom import dicom_header, frame_groups, is_dicom, read_dicom, read_frames
from fedveil.data.formats.volumes.limits import check_voxels
from fedveil.data.formats.volumes.resampling import Geometry
from fedveil.data.image_header import is_folder, unusable
from fedveil.data.image_store import brought_to
from fedveil.data.options import Reading

__all__ = ["DicomVolume", "dicom_volume", "read_dicom_volume", "series_files"]

LARGEST_GAP = 1.5
"""Distance of neighbouring slices, in units of the median distance, from which on a slice counts as missing."""
SMALLEST_GAP = 0.1
"""The same, up to which two slices count as lying in one place."""
TURNED = 1e-2
"""Largest difference of direction cosines within a series."""

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DicomVolume:
    """A volume by its headers: its files, the order of its slices, and how they lie (None if it is not said)."""

    files: tuple[Path, ...]
    order: tuple[int, ...]
    geometry: Geometry | None
    shape: tuple[int, int, int]
    mode: str
    patient: str | None


def series_files(folder: Path) -> list[Path]:
    """The files of a folder, without hidden ones, subfolders and DICOMDIR."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and not file.name.startswith(".") and file.name.upper() != "DICOMDIR"
    )


def dicom_volume(path: Path, reading: Reading) -> DicomVolume:
    """The volume that a folder or a file holds, checked, without decoding a pixel."""
    if not is_folder(path):
        return _of_frames(path, reading)
    files = series_files(path)
    for file in files:
        with file.open("rb") as opened:
            if not is_dicom(file, opened.read(132)):
                raise unusable(
                    path,
                    f"it holds {file.name}, which is not DICOM",
                    "the folder of a series must hold nothing else",
                    "move the file elsewhere",
                )
    if len(files) == 1:
        return _of_frames(files[0], reading)
    if not files:
        raise unusable(path, "it holds no files", "a volume has at least two slices", "leave it out")
    return _of_series(path, files, reading)


def read_dicom_volume(volume: DicomVolume, reading: Reading) -> npt.NDArray[np.float32]:
    """Shades (slices, rows, columns) in [0, 1], in the order in which slices lie."""
    stored = np.empty(volume.shape, np.float32)
    slices: Iterable[npt.NDArray[np.float32]]
    if len(volume.files) > 1:
        slices = (read_dicom(file, file.read_bytes(), reading) for file in volume.files)
    else:
        slices = read_frames(volume.files[0], volume.files[0].read_bytes(), reading)
    places = np.argsort(volume.order)
    for place, image in zip(places, slices, strict=True):
        stored[place] = brought_to(image, 1)[0]
    return stored


def _of_series(folder: Path, files: Sequence[Path], reading: Reading) -> DicomVolume:
    headers = [dicom_header(file, reading) for file in files]
    first = headers[0]
    for what, name in (
        ("series", "SeriesInstanceUID"),
        ("patients", "PatientID"),
        ("heights", "Rows"),
        ("widths", "Columns"),
        ("photometric interpretations", "PhotometricInterpretation"),
    ):
        found = {str(header.get(name) or "").strip() for header in headers}
        if len(found) > 1:
            raise unusable(
                folder,
                f"its files are of {len(found)} {what}: {', '.join(sorted(found)[:3])}",
                f"all slices of a volume must have the same {name}",
                "give each series a folder of its own",
            )
    for file, header in zip(files, headers, strict=True):
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise unusable(
                file, "it holds several frames", "the slices of a series are single", "give it its own folder"
            )
    shape = (len(files), int(first.Rows), int(first.Columns))
    check_voxels(folder, shape, reading)
    order, geometry = _stacked(
        folder,
        [_numbers(header, "ImagePositionPatient", 3) for header in headers],
        [_numbers(header, "ImageOrientationPatient", 6) for header in headers],
        _spacing(folder, [first], reading),
    )
    return DicomVolume(
        files=tuple(files),
        order=order,
        geometry=geometry,
        shape=shape,
        mode=f"DICOM series {first.PhotometricInterpretation} {int(first.BitsStored)} bit",
        patient=str(first.get("PatientID") or "").strip() or None,
    )


def _of_frames(path: Path, reading: Reading) -> DicomVolume:
    """One file: in the order in which its frames lie if it says so, and else as they are stored."""
    header = dicom_header(path, reading)
    count = int(header.get("NumberOfFrames") or 1)
    if count < 2:
        raise unusable(
            path,
            "it holds a single image",
            "a volume has at least two slices",
            "name the folder of its series, or remove data.slices to read images",
        )
    groups = [[header, *frame_groups(header, frame)] for frame in range(count)]
    placed = [_within(group, "PlanePositionSequence", "ImagePositionPatient", 3) for group in groups]
    turned = [_within(group, "PlaneOrientationSequence", "ImageOrientationPatient", 6) for group in groups]
    order, geometry = tuple(range(count)), None
    if all(one is not None for one in (*placed, *turned)):
        measures = [item for group in groups[0] for item in (group.get("PixelMeasuresSequence") or [])[:1]]
        order, geometry = _stacked(path, placed, turned, _spacing(path, [*measures, header], reading))
    return DicomVolume(
        files=(path,),
        order=order,
        geometry=geometry,
        shape=(count, int(header.Rows), int(header.Columns)),
        mode=f"DICOM frames {header.PhotometricInterpretation} {int(header.BitsStored)} bit",
        patient=str(header.get("PatientID") or "").strip() or None,
    )


def _stacked(
    path: Path, positions: Sequence[Matrix | None], turns: Sequence[Matrix | None], spacing: Matrix
) -> tuple[tuple[int, ...], Geometry]:
    """The order of slices along their common normal, and the geometry of the ordered stack."""
    placed, turned = [p for p in positions if p is not None], [t for t in turns if t is not None]
    if len(placed) < len(positions) or len(turned) < len(turns):
        raise unusable(
            path,
            "a slice lacks ImagePositionPatient or ImageOrientationPatient",
            "slices are ordered by where they lie",
            "export it again with its geometry, or convert it to NIfTI",
        )
    if np.ptp(np.stack(turned), axis=0).max() > TURNED:
        raise unusable(
            path,
            "its slices are turned against each other",
            "the slices of a volume must be parallel",
            "move localizers to another folder",
        )
    right, down = turned[0][:3], turned[0][3:]
    normal = np.cross(right, down)
    along = np.stack(placed) @ normal
    order = np.argsort(along, kind="stable")
    gaps = np.diff(along[order])
    usual = float(np.median(gaps))
    if not usual > 0 or gaps.min() < SMALLEST_GAP * usual or gaps.max() > LARGEST_GAP * usual:
        raise unusable(
            path,
            f"its slices are {gaps.min():.3g} to {gaps.max():.3g} mm apart",
            "they must lie at different, evenly spaced places, or some are missing or double",
            "copy the series again, whole, or leave it out",
        )
    geometry = Geometry(np.stack([normal * usual, down * spacing[0], right * spacing[1]]))
    if not geometry.is_valid:
        raise unusable(
            path,
            "its geometry is no grid",
            "its directions must be square, and voxels 0.01 to 1000 mm apart",
            "correct it",
        )
    return tuple(int(one) for one in order), geometry


def _spacing(path: Path, headers: Sequence[Any], reading: Reading) -> Matrix:
    """Distances of rows and of columns in mm; 1 where they are not said and do not matter."""
    for header in headers:
        found = _numbers(header, "PixelSpacing", 2)
        if found is not None and (found > 0).all():
            return found
    if reading.spacing is not None:
        raise unusable(
            path,
            "it states no PixelSpacing",
            "data.spacing is set, in mm",
            "remove data.spacing, or leave it out",
        )
    return np.ones(2)


def _within(groups: Sequence[Any], sequence: str, name: str, count: int) -> Matrix | None:
    for group in groups:
        for item in (group.get(sequence) or [])[:1]:
            found = _numbers(item, name, count)
            if found is not None:
                return found
    return None


def _numbers(header: Any, name: str, count: int) -> Matrix | None:
    """So many finite numbers, or None."""
    value = header.get(name)
    if value is None or isinstance(value, str | float) or len(value) != count:
        return None
    numbers = np.array([float(one) for one in value])
    return numbers if np.isfinite(numbers).all() else None
