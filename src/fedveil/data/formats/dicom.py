"""DICOM images as a radiologist sees them: modality and VOI transformations, then [0, 1].

Stored values pass through the modality LUT or rescale slope and intercept (DICOM PS3.3, C.11.1), then through
the window of the study or, if the study leaves it to the files, through a file's own VOI LUT or first window
(C.11.2). Without any they are scaled by the range of their number of bits. All of this is in a file's own header or
in the study: no image is scaled by the values of others.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedveil.data.formats.codestream import stated_size
from fedveil.data.formats.volumes.limits import LARGEST_IMAGES, check_voxels
from fedveil.data.image_header import ImageFacts, check_pixels, unusable
from fedveil.data.options import Reading
from fedveil.data.windows import FILE, FULL, apply_window, is_hounsfield, limits
from fedveil.errors import DataError
from fedveil.lazy import later

if TYPE_CHECKING:
    from pydicom import Dataset as Header
    from pydicom import FileDataset as FileHeader

__all__ = ["dicom_header", "frame_groups", "is_dicom", "probe_dicom", "read_dicom", "read_frames"]

pydicom = later("pydicom")
encaps = later("pydicom.encaps")
decoders = later("pydicom.pixels.decoders.base")
processing = later("pydicom.pixels.processing")
utils = later("pydicom.pixels.utils")

GREY = ("MONOCHROME1", "MONOCHROME2")
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
NEEDED = ("Rows", "Columns", "BitsStored", "PhotometricInterpretation", "PixelData")
BYTES_PER_PIXEL = 6
"""Largest size of an uncompressed pixel: three samples of 16 bit."""
HEADER_BYTES = 64 * 2**20
"""Largest size of a header after inflation."""
LARGEST_SCALE = 1e12
"""Of a slope or intercept; real ones are far smaller, and values stay finite in double precision."""
META = b"\x02\x00\x00\x00UL\x04\x00"
"""The element before the length of the file's meta information (PS3.10, 7.1)."""
Pixels = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]


def is_dicom(path: Path, start: bytes) -> bool:
    """Whether the file is DICOM, by the mark after its preamble or, without one, by its name."""
    return start[128:132] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom")


def dicom_header(path: Path, reading: Reading) -> "FileHeader":
    """The checked header, without decoding a pixel."""
    with _damage_named(path):
        with path.open("rb") as file:
            deflated = _is_deflated(file.read(4096))
        # A deflated file has to be inflated as a whole, so reading only a part of it saves nothing.
        header = _header(path, path.read_bytes(), reading) if deflated else _lazy_header(path)
        _check(path, header, reading)
        return header


def probe_dicom(path: Path, reading: Reading) -> ImageFacts:
    """The content of the header, without decoding a pixel."""
    header = dicom_header(path, reading)
    with _damage_named(path):
        _check_single(path, header)
        photometric = str(header.PhotometricInterpretation)
        patient = str(header.get("PatientID") or "").strip()
        return ImageFacts(
            width=int(header.Columns),
            height=int(header.Rows),
            channels=1 if photometric in GREY else 3,
            mode=f"DICOM {photometric} {int(header.BitsStored)} bit",
            patient=patient or None,
        )


def read_dicom(path: Path, content: bytes, reading: Reading) -> Pixels:
    """The image, float32 ``(1 or 3, height, width)`` in [0, 1], white bright."""
    with _damage_named(path):
        header = _header(path, content, reading)
        _check(path, header, reading)
        _check_single(path, header)
    for image in _decoded(path, header, reading):
        return image
    raise unusable(
        path, "it holds no frames", "an image must have pixels", "export it again, or leave it out"
    )


def read_frames(path: Path, content: bytes, reading: Reading) -> Iterator[Pixels]:
    """The frames in stored order, each as `read_dicom` returns an image."""
    with _damage_named(path):
        header = _header(path, content, reading)
        _check(path, header, reading)
    return _decoded(path, header, reading)


def _decoded(path: Path, header: "FileHeader", reading: Reading) -> Iterator[Pixels]:
    with _damage_named(path):
        _check_frames(path, header)
    try:
        for number, stored in enumerate(utils.iter_pixels(header)):
            _use_groups(header, number)
            yield _pixels(header, stored, reading)
    except Exception as error:  # noqa: BLE001 - a damaged file makes the decoders raise nearly anything
        raise unusable(
            path,
            f"its pixels cannot be decoded ({_short(error)})",
            "the file must be whole, and compressed in a supported format",
            "copy or export it again, uncompressed",
        ) from None


def frame_groups(header: "Header", frame: int) -> "list[Header]":
    """What an enhanced file says about one frame: what all frames share, then what is the frame's own."""
    shared = header.get("SharedFunctionalGroupsSequence") or []
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    return [*shared[:1], *own[frame : frame + 1]]


def _use_groups(header: "Header", frame: int) -> None:
    """Let the scale and the window of a frame apply, which enhanced files state in functional groups (C.7.6.16)."""
    for group in frame_groups(header, frame):
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in (group.get(name) or [])[:1]:
                for element in item:
                    header[element.tag] = element


def _pixels(header: "FileHeader", stored: npt.NDArray[Any], reading: Reading) -> Pixels:
    photometric = str(header.PhotometricInterpretation)
    if photometric in GREY:
        grey = _grey(header, stored, reading)
        return (1 - grey if photometric == "MONOCHROME1" else grey)[None].astype(np.float32)
    if photometric == "PALETTE COLOR":
        _little_endian_palettes(header)
        stored = processing.apply_color_lut(stored, header)
        bits = 8 * stored.dtype.itemsize
    else:
        bits = int(header.BitsStored)
    return (stored.astype(np.float32) / np.float32(2**bits - 1)).transpose(2, 0, 1)


def _is_deflated(start: bytes) -> bool:
    return start[128:132] == b"DICM" and pydicom.uid.DeflatedExplicitVRLittleEndian.encode() in start[132:]


def _lazy_header(path: Path) -> "FileHeader":
    header: FileHeader = pydicom.dcmread(path, defer_size="1 KB")
    return header


def _header(path: Path, content: bytes, reading: Reading) -> "FileHeader":
    if _is_deflated(content[:4096]):
        _check_inflated(path, content, reading)
    header: FileHeader = pydicom.dcmread(BytesIO(content))
    return header


def _check_inflated(path: Path, content: bytes, reading: Reading) -> None:
    """Refuse a deflated file that would become larger than the largest image allowed, without inflating it whole."""
    images = LARGEST_IMAGES if reading.slices else 1
    most = int(images * reading.max_megapixels * 1e6) * BYTES_PER_PIXEL + HEADER_BYTES
    start = 132
    if content[132:140] == META:
        start = 144 + int.from_bytes(content[140:144], "little")
    inflater, left, rest = zlib.decompressobj(-zlib.MAX_WBITS), most, content[start:]
    while rest and not inflater.eof:
        part = inflater.decompress(rest, min(left + 1, 2**20))
        left, rest = left - len(part), inflater.unconsumed_tail
        if left < 0:
            raise unusable(
                path,
                f"inflated, it is larger than {most // 2**20} MiB",
                f"an image of {reading.max_megapixels:g} megapixels needs less",
                "export it again, or increase data.max_megapixels if the image is that large",
            )
        if not part:
            break


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Errors of pydicom from a damaged header, also when its values are used, name the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - see above
        raise unusable(
            path,
            f"it cannot be read as DICOM ({_short(error)})",
            "a DICOM file must be whole, and its header must hold valid values",
            "export it again, or leave it out",
        ) from None


def _short(error: Exception) -> str:
    """The error on one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _check(path: Path, header: "FileHeader", reading: Reading) -> None:
    missing = [name for name in NEEDED if name not in header or header[name].is_empty]
    if missing:
        found = "it holds no pixels" if "PixelData" in missing else f"its header lacks {', '.join(missing)}"
        raise unusable(
            path, found, "an image must have pixels and the header values to interpret them", "leave it out"
        )
    columns, rows, frames = int(header.Columns), int(header.Rows), _frames(header)
    check_pixels(path, columns, rows, reading.max_megapixels)
    if frames > 1:
        check_voxels(path, (frames, rows, columns), reading)
    if not 1 <= int(header.BitsStored) <= 32:
        raise unusable(
            path, f"BitsStored is {header.BitsStored}", "it must lie between 1 and 32", "export it again"
        )
    for frame in range(max(len(header.get("PerFrameFunctionalGroupsSequence") or ()), 1)):
        _use_groups(header, frame)
        _check_scale(path, header, reading)
    _check_codec(path, header)


def _frames(header: "Header") -> int:
    return int(header.get("NumberOfFrames") or 1)


def _check_single(path: Path, header: "Header") -> None:
    if _frames(header) > 1:
        raise unusable(
            path,
            f"it holds {_frames(header)} frames",
            "an image must be single",
            "export the relevant frame, or set data.slices to read volumes",
        )


def _check_scale(path: Path, header: "FileHeader", reading: Reading) -> None:
    _check_rescale(path, header, reading)
    modality = str(header.get("Modality") or "CT")
    if is_hounsfield(reading.window) and modality != "CT":
        raise unusable(
            path,
            f"its modality is {modality}, and the window is {reading.window}",
            "that window is for Hounsfield units, which only CT has",
            "leave it out, or set data.window to what fits all images",
        )
    if reading.window != FILE:
        return
    window, function = _own_window(header), _function(header)
    if window is not None and not (np.isfinite(window).all() and window[1] > 0):
        raise unusable(
            path,
            f"its window is {window[1]:g} wide around {window[0]:g}",
            "a window must have a positive width",
            "correct or remove WindowCenter and WindowWidth",
        )
    if window is not None and function not in FUNCTIONS:
        raise unusable(
            path,
            f"its VOILUTFunction is {function[:40]}",
            f"it must be {', '.join(FUNCTIONS)}",
            "correct it, or set data.window",
        )


def _check_rescale(path: Path, header: "FileHeader", reading: Reading) -> None:
    """Refuse a slope, intercept or table by which stored values do not become numbers that differ."""
    for name in ("RescaleSlope", "RescaleIntercept"):
        value = float(header.get(name) or 0)
        if abs(value) > LARGEST_SCALE or not np.isfinite(value):
            raise unusable(
                path, f"{name} is {value:g}", f"it must lie within {LARGEST_SCALE:g} of 0", "correct it"
            )
    if header.get("RescaleSlope") == 0:
        raise unusable(path, "RescaleSlope is 0", "every value would become the same", "correct it")
    for name in ("ModalityLUTSequence", "VOILUTSequence")[: 1 + (reading.window == FILE)]:
        for table in (header.get(name) or [])[:1]:
            bits = int(table.LUTDescriptor[2])
            if not 1 <= bits <= 16:
                raise unusable(
                    path,
                    f"the entries of its {name} have {bits} bits",
                    "there must be 1 to 16",
                    "correct or remove it",
                )


def _check_codec(path: Path, header: "FileHeader") -> None:
    """Refuse pixels with an unsupported compression, and name the package that would support it."""
    syntax = header.file_meta.TransferSyntaxUID if hasattr(header, "file_meta") else None
    if syntax is None or not syntax.is_encapsulated:
        return
    try:
        decoder = decoders.get_decoder(syntax)
    except NotImplementedError:
        raise unusable(
            path,
            f"its pixels are compressed as {syntax.name}",
            "this compression is not supported",
            "export it uncompressed",
        ) from None
    if not decoder.is_available:
        raise unusable(
            path,
            f"its pixels are compressed as {syntax.name}",
            "this compression needs a decoder that is not installed",
            'pip install "fedveil[dicom]", or export the file uncompressed',
        )


def _check_frames(path: Path, header: "FileHeader") -> None:
    """Refuse compressed frames whose own size differs from the header's, which was checked before decoding."""
    if not (hasattr(header, "file_meta") and header.file_meta.TransferSyntaxUID.is_encapsulated):
        return
    expected = int(header.Columns), int(header.Rows)
    for frame in encaps.generate_frames(header.PixelData, number_of_frames=_frames(header)):
        stated = stated_size(frame)
        if stated is not None and stated != expected:
            raise unusable(
                path,
                f"its pixels are {stated[0]} x {stated[1]}, by its header {expected[0]} x {expected[1]}",
                "the sizes must agree",
                "export it again",
            )


def _little_endian_palettes(header: "FileHeader") -> None:
    """Swap the bytes of 16-bit palettes in big-endian files, which pydicom reads as little-endian."""
    if header.original_encoding[1] is not False:
        return
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTableData"
        data = header.get(name)
        if isinstance(data, bytes) and header[name].VR == "OW":
            setattr(header, name, np.frombuffer(data, ">u2").astype("<u2").tobytes())


def _function(header: "FileHeader") -> str:
    return str(header.get("VOILUTFunction") or "LINEAR").strip().upper()


def _own_window(header: "FileHeader") -> tuple[float, float] | None:
    """The first window's centre and width, if the file has one."""
    values = [header.get("WindowCenter"), header.get("WindowWidth")]
    first = [
        value[0] if isinstance(value, pydicom.multival.MultiValue) and value else value for value in values
    ]
    if any(value is None or str(value) == "" for value in first):
        return None
    return float(first[0]), float(first[1])


def _grey(header: "FileHeader", stored: npt.NDArray[Any], reading: Reading) -> Values:
    values: Values = processing.apply_modality_lut(stored, header).astype(np.float64)
    if reading.window == FILE:
        if header.get("VOILUTSequence"):
            table = header.VOILUTSequence[0]
            shades: Values = processing.apply_voi(np.rint(values).astype(np.int64), header)
            return shades / (2.0 ** int(table.LUTDescriptor[2]) - 1)
        own = _own_window(header)
        if own is not None:
            return _apply_own_window(values, *own, _function(header))
    public = None if reading.window in (FILE, FULL) else limits(reading.window)
    if public is not None:
        return apply_window(values, *public)
    low, high = _range(header)
    return apply_window(values, (low + high) / 2, high - low)


def _apply_own_window(values: Values, centre: float, width: float, function: str) -> Values:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, with the output range [0, 1]."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR":
        # The standard's linear window spans width whole values: width - 1 steps, half a value lower.
        centre, width = centre - 0.5, max(width - 1, 1e-6)
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _range(header: "FileHeader") -> tuple[float, float]:
    """The smallest and largest output of the modality transformation, from the header alone."""
    if header.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** int(header.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits = int(header.BitsStored)
    signed = int(header.get("PixelRepresentation") or 0)
    ends = np.array([-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1] if signed else [0.0, 2.0**bits - 1])
    if "RescaleSlope" in header and "RescaleIntercept" in header:
        ends = processing.apply_rescale(ends, header)
    return float(ends.min()), float(ends.max())
