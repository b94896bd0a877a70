"""DICOM images as a radiologist would see them: modality and VOI transformations, then [0, 1].

Stored values pass through the modality LUT or rescale slope and intercept (DICOM PS3.3, C.11.1), then through
the VOI LUT or the first window (C.11.2). Without either of the latter they are scaled by the range that their
number of bits can express. All that stands in a file's own header: no image is scaled by what others hold.
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_rescale, apply_voi
from pydicom.pixels.utils import pixel_array

from fedveil.data.facts import ImageFacts, unusable

__all__ = ["is_dicom", "probe_dicom", "read_dicom"]

GREY = ("MONOCHROME1", "MONOCHROME2")
Pixels = npt.NDArray[np.float32]


def is_dicom(path: Path, start: bytes) -> bool:
    """Whether the file says so, by the mark after its preamble or, where that is missing, by its name."""
    return start[128:132] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom")


def probe_dicom(path: Path) -> ImageFacts:
    """What the header says, without decoding a pixel."""
    header = _open(path, lambda: pydicom.dcmread(path, defer_size="1 KB"))
    _check(path, header)
    photometric = str(header.PhotometricInterpretation)
    patient = str(header.get("PatientID") or "").strip()
    return ImageFacts(
        width=int(header.Columns),
        height=int(header.Rows),
        channels=1 if photometric in GREY else 3,
        mode=f"DICOM {photometric} {header.BitsStored} bit",
        patient=patient or None,
    )


def read_dicom(path: Path, content: bytes) -> Pixels:
    """The image, float32 ``(1 or 3, height, width)`` in [0, 1], white bright."""
    header = _open(path, lambda: pydicom.dcmread(BytesIO(content)))
    _check(path, header)
    try:
        stored = pixel_array(header)
        photometric = str(header.PhotometricInterpretation)
        if photometric in GREY:
            grey = _grey(header, stored)
            return (1 - grey if photometric == "MONOCHROME1" else grey)[None].astype(np.float32)
        if photometric == "PALETTE COLOR":
            stored = apply_color_lut(stored, header)
            bits = 8 * stored.dtype.itemsize
        else:
            bits = int(header.BitsStored)
        return (stored.astype(np.float32) / np.float32(2**bits - 1)).transpose(2, 0, 1)
    except Exception as error:  # noqa: BLE001 - a damaged file makes the decoders raise nearly anything
        raise unusable(
            path,
            f"its pixels cannot be decoded ({error})",
            "the file must be whole, and compressed only in a way that pydicom can undo here",
            "export it uncompressed, or install pylibjpeg for JPEG Lossless and JPEG-LS",
        ) from None


def _open(path: Path, read: Callable[[], pydicom.FileDataset]) -> pydicom.FileDataset:
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - a damaged file makes pydicom raise nearly anything
        raise unusable(
            path,
            f"it cannot be read as DICOM ({error})",
            "a DICOM file must be whole",
            "export it again, or leave it out",
        ) from None


def _check(path: Path, header: pydicom.FileDataset) -> None:
    needed = ("Rows", "Columns", "BitsStored", "PhotometricInterpretation", "PixelData")
    missing = [name for name in needed if name not in header or header[name].is_empty]
    if missing:
        found = "it holds no pixels" if "PixelData" in missing else f"its header lacks {', '.join(missing)}"
        raise unusable(path, found, "an image must hold pixels and say what they mean", "leave it out")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise unusable(
            path, f"it holds {frames} frames", "an image must be single", "export the frame that counts"
        )
    if not int(header.Rows) or not int(header.Columns):
        raise unusable(
            path, f"it is {header.Columns} x {header.Rows} pixels", "no side may be zero", "leave it out"
        )
    if header.get("RescaleSlope") == 0:
        raise unusable(path, "RescaleSlope is 0", "every value would become the same", "correct it")
    window = _window(header)
    if window is not None and not (np.isfinite(window).all() and window[1] > 0):
        raise unusable(
            path,
            f"its window is {window[1]:g} wide around {window[0]:g}",
            "a window must have a positive width",
            "correct or remove WindowCenter and WindowWidth",
        )


def _window(header: pydicom.FileDataset) -> tuple[float, float] | None:
    """The first window's centre and width, if the file has one."""
    values = [header.get("WindowCenter"), header.get("WindowWidth")]
    first = [
        value[0] if isinstance(value, pydicom.multival.MultiValue) and value else value for value in values
    ]
    if any(value is None or str(value) == "" for value in first):
        return None
    return float(first[0]), float(first[1])


def _grey(header: pydicom.FileDataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    values = apply_modality_lut(stored, header).astype(np.float64)
    if header.get("VOILUTSequence"):
        table = header.VOILUTSequence[0]
        return apply_voi(np.rint(values).astype(np.int64), header) / (2.0 ** int(table.LUTDescriptor[2]) - 1)
    window = _window(header)
    if window is not None:
        return _apply_window(values, *window, str(header.get("VOILUTFunction") or "LINEAR"))
    low, high = _range(header)
    return np.clip((values - low) / (high - low), 0, 1)


def _apply_window(
    values: npt.NDArray[np.float64], centre: float, width: float, function: str
) -> npt.NDArray[np.float64]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, with the output range [0, 1]."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR":
        # The standard's linear window spans width whole values: width - 1 steps, half a value lower.
        centre, width = centre - 0.5, max(width - 1, 1e-6)
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _range(header: pydicom.FileDataset) -> tuple[float, float]:
    """The least and greatest value that the modality transformation can give, by the header alone."""
    if header.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** int(header.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits = int(header.BitsStored)
    signed = int(header.get("PixelRepresentation") or 0)
    ends = np.array([-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1] if signed else [0.0, 2.0**bits - 1])
    if "RescaleSlope" in header and "RescaleIntercept" in header:
        ends = apply_rescale(ends, header)
    return float(ends.min()), float(ends.max())
