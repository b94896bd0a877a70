"""NIfTI volumes (https://nifti.nimh.nih.gov), versions 1 and 2, plain or compressed by gzip.

Stored values are multiplied by the header's slope and the intercept is added. They are then scaled by the window of
the study; or, if the study leaves it to the files, by a file's own ``cal_min`` and ``cal_max``; or else by the type, as
pixels of arrays are. No more is read than the header says, and the header is checked before.
"""

import gzip
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data.formats.volumes.limits import check_voxels
from fedveil.data.formats.volumes.resampling import Geometry
from fedveil.data.image_header import unusable
from fedveil.data.image_store import full_scale, type_scale
from fedveil.data.options import Reading
from fedveil.data.windows import FILE, FULL, apply_window, is_hounsfield, limits
from fedveil.errors import DataError

__all__ = ["NiftiVolume", "is_nifti", "nifti_header", "read_nifti"]

LENGTHS = {348: 1, 540: 2}
"""Length of a header, its first number, and the version of the format."""
FURTHEST = 16 * 2**20
"""Largest offset of the values: what may lie between them and the header is not read."""
RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class NiftiVolume:
    """What a header says about the values that follow it at ``offset``."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    geometry: Geometry
    own_window: tuple[float, float] | None

    def shades(self, values: npt.NDArray[Any], reading: Reading) -> npt.NDArray[np.float32]:
        """Values of one slice in [0, 1]."""
        window = self.window(reading)
        if window is None and self.is_plain:
            return values.astype(np.float32) / np.float32(full_scale(values))
        scaled = values.astype(np.float64) * self.slope + self.intercept
        if not np.isfinite(scaled).all() or window is None:
            full_scale(scaled)
        return (scaled if window is None else apply_window(scaled, *window)).astype(np.float32)

    def window(self, reading: Reading) -> tuple[float, float] | None:
        """The window that applies, if any."""
        if reading.window == FILE:
            return self.own_window
        return None if reading.window == FULL else limits(reading.window)

    @property
    def is_plain(self) -> bool:
        """Whether values are meant as they are stored."""
        return self.slope == 1 and self.intercept == 0


def is_nifti(path: Path) -> bool:
    """Whether the file is NIfTI, by its name."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def nifti_header(path: Path, reading: Reading) -> NiftiVolume:
    """The checked header, without reading a value."""
    with _opened(path) as file:
        start: bytes = file.read(540)
    length = next((n for n in LENGTHS if start[:4] in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), None)
    if length is None or len(start) < length:
        raise unusable(
            path, "it has no NIfTI header", "a .nii file starts with one", "convert it again, or leave it out"
        )
    try:
        import nibabel
    except ModuleNotFoundError:
        raise unusable(
            path,
            "it is a NIfTI file",
            "reading it needs the package nibabel",
            'pip install "fedveil[volumes]"',
        ) from None
    kind: Any = nibabel.Nifti1Header if LENGTHS[length] == 1 else nibabel.Nifti2Header
    header = kind.from_fileobj(BytesIO(start[:length] + bytes(4)), check=False)  # no extensions follow
    return _checked(path, header, reading)


def read_nifti(path: Path, reading: Reading) -> tuple[NiftiVolume, npt.NDArray[Any]]:
    """The header, and the stored values (x, y, z)."""
    volume = nifti_header(path, reading)
    expected = int(np.prod(volume.shape, dtype=np.int64)) * volume.dtype.itemsize
    with _opened(path) as file:
        file.seek(volume.offset)
        content = file.read(expected)
    if len(content) != expected:
        raise unusable(
            path,
            f"it holds {len(content)} bytes of values, by its header {expected}",
            "a file must be whole",
            "copy it again, or leave it out",
        )
    return volume, np.frombuffer(content, volume.dtype).reshape(volume.shape, order="F")


def _checked(path: Path, header: Any, reading: Reading) -> NiftiVolume:
    shape = tuple(int(side) for side in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise unusable(
            path, f"its shape is {shape}", "a volume has three dimensions", "save one volume per file"
        )
    check_voxels(path, shape, reading)
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise unusable(path, f"its values are {dtype}", "they must be real numbers", "save them as int16")
    slope, intercept = header.get_slope_inter()
    offset = int(header["vox_offset"])
    if not 0 <= offset <= FURTHEST:
        raise unusable(
            path, f"its values start at byte {offset}", f"at most {FURTHEST} may precede", "save it again"
        )
    low, high = float(header["cal_min"]), float(header["cal_max"])
    volume = NiftiVolume(
        shape=(shape[0], shape[1], shape[2]),
        dtype=dtype,
        offset=offset or int(header["sizeof_hdr"]) + 4,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        geometry=Geometry((header.get_best_affine()[:3, :3] * RAS_TO_LPS[:, None]).T),
        own_window=((low + high) / 2, high - low) if np.isfinite([low, high]).all() and high > low else None,
    )
    if not volume.geometry.is_valid:
        raise unusable(
            path,
            "its affine does not say where each axis points",
            "its axes must not lie in one plane, and voxels must be 0.01 to 1000 mm apart",
            "correct the header",
        )
    _check_scale(path, volume, reading)
    return volume


def _check_scale(path: Path, volume: NiftiVolume, reading: Reading) -> None:
    if is_hounsfield(reading.window) and volume.dtype.kind == "u" and volume.is_plain:
        raise unusable(
            path,
            f"its values are {volume.dtype}, and the window is {reading.window}",
            "that window is for Hounsfield units, which are negative too",
            "store int16, or give window = [centre, width] in stored values",
        )
    if volume.window(reading) is None and volume.dtype.kind != "f":
        try:
            type_scale(volume.dtype.newbyteorder("=") if volume.is_plain else np.dtype(np.int64))
        except DataError as error:
            raise unusable(path, error.found, error.rule, error.remedy) from None


def _opened(path: Path) -> Any:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")
