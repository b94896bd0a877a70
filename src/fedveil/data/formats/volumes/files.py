"""One volume in a file or folder, of any format: what its header says, its pixels, and its bytes."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedveil.data.formats.dicom import is_dicom
from fedveil.data.formats.volumes.nifti import is_nifti, nifti_header, read_nifti
from fedveil.data.formats.volumes.resampling import oriented, resampled
from fedveil.data.formats.volumes.series import dicom_volume, read_dicom_volume, series_files
from fedveil.data.image_header import ImageFacts, is_folder, unusable
from fedveil.data.options import Reading
from fedveil.errors import DataError

__all__ = ["probe_volume", "read_volume", "volume_files", "volumes_in"]

DICOM_SUFFIXES = (".dcm", ".dicom")


def probe_volume(path: Path, reading: Reading) -> ImageFacts:
    """The content of the header, without decoding the pixels; refuses what is not one volume."""
    with _damage_named(path):
        if is_nifti(path):
            nifti = nifti_header(path, reading)
            width, height, depth = nifti.shape
            mode = f"NIfTI {nifti.dtype.newbyteorder('=')}, {depth} slices"
            return ImageFacts(width=width, height=height, channels=1, mode=mode)
        _check_dicom(path)
        volume = dicom_volume(path, reading)
        if volume.geometry is None:
            _check_unplaced(path, reading)
        depth, height, width = volume.shape
        mode = f"{volume.mode}, {depth} slices"
        return ImageFacts(width=width, height=height, channels=1, mode=mode, patient=volume.patient)


def read_volume(path: Path, reading: Reading, size: int) -> npt.NDArray[np.float32]:
    """Slices (reading.slices, size, size) in [0, 1]; they depend on this volume and on public settings alone."""
    with _damage_named(path):
        if is_nifti(path):
            nifti, values = read_nifti(path, reading)
            view, spacing = oriented(values, nifti.geometry, reading.axis)
            return resampled(view, spacing, size, reading, lambda stored: nifti.shades(stored, reading))
        _check_dicom(path)
        volume = dicom_volume(path, reading)
        if volume.geometry is None:
            _check_unplaced(path, reading)
        view, spacing = oriented(read_dicom_volume(volume, reading), volume.geometry, reading.axis)
        return resampled(view, spacing, size, reading, lambda shades: shades)


def volume_files(path: Path) -> list[Path]:
    """The files that a volume consists of, in an order that is always the same."""
    with _damage_named(path):
        return series_files(path) if is_folder(path) else [path]


def volumes_in(files: list[Path]) -> list[Path]:
    """The volumes among the files of a folder: each NIfTI file, and each folder that directly holds DICOM files."""
    series = {file.parent for file in files if file.suffix.lower() in DICOM_SUFFIXES}
    return sorted([*(file for file in files if is_nifti(file)), *series])


def _check_dicom(path: Path) -> None:
    if is_folder(path):
        return
    with path.open("rb") as file:
        if not is_dicom(path, file.read(132)):
            raise unusable(
                path,
                "it is no volume",
                "with data.slices a file must be NIfTI (.nii, .nii.gz) or DICOM, a folder one DICOM series",
                "convert it, or remove data.slices to read images",
            )


def _check_unplaced(path: Path, reading: Reading) -> None:
    if reading.spacing is not None:
        raise unusable(
            path,
            "it does not say how its frames lie",
            "data.spacing is set, in mm",
            "remove data.spacing, or leave it out",
        )


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Errors of a damaged or missing volume name it."""
    try:
        yield
    except DataError as error:
        if error.found.startswith(str(path)):
            raise
        raise unusable(path, error.found, error.rule, error.remedy) from None
    except FileNotFoundError:
        raise unusable(path, "there is no such file", "every volume must exist", "correct the path") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise unusable(
            path, f"it is damaged ({error})", "a volume must be whole", "copy it again, or leave it out"
        ) from None
    except OSError as error:
        raise unusable(
            path, f"it cannot be opened ({error.strerror})", "every volume must be readable", "correct it"
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged header makes libraries raise nearly anything
        raise unusable(
            path,
            f"it cannot be read ({' '.join(str(error).split())[:200] or type(error).__name__})",
            "a volume must be whole, and its header must hold valid values",
            "export it again, or leave it out",
        ) from None
