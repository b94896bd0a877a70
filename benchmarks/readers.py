"""Damaged files of every kind: each must be read or refused by name, within ten seconds and a gigabyte.

Every kind starts from a few intact files made here. A mutant has bytes flipped, a part cut out, repeated or zeroed, or
an end cut off. A kind runs in a process of its own, which reads its mutants one after the other; an exception other
than `fedveil.errors.DataError`, or a warning, counts as a failure. Prints one JSON line per kind:

    {"kind": "png", "files": 200, "read": 61, "refused": 139, "failures": [], "slowest_seconds": 0.04, "peak_mib": 180}

``peak_mib`` is the largest memory of that process, the libraries included. Run as

    python benchmarks/readers.py [--files 200] [--seed 0] [KIND ...]
"""

import argparse
import base64
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from fedveil.data import check
from fedveil.data.formats.image_files import probe, read_image
from fedveil.errors import DataError

LIMIT_SECONDS, LIMIT_MIB = 10.0, 1024
IMAGES = 40
"""Those that the tables name."""


def pixels(seed, shape=(48, 40), high=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def picture(kind, array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def pictures(kind, deep=False, **options):
    made = [picture(kind, pixels(0), **options), picture(kind, pixels(1, (48, 40, 3)), **options)]
    return [*made, picture(kind, pixels(2, high=65536, dtype=np.uint16))] if deep else made


HT = base64.b64decode(
    b"/0//UQApQAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAIEBEAB/1wACiCI"
    b"kJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAE0AAf+TwAArAP9/Wdyt/gfbAoG0AMAAE0AAFQAk0gECdACS"
    b"UTL+AONUAMAAKiAAFWAIgiCqcIJ1AM533nnnwFKB7LYA/9k="
)
"""HTJ2K, 8 x 8 pixels of 16 bits, as OpenJPH encodes it: nothing that fedveil installs does."""


def dicom(syntax=ExplicitVRLittleEndian, frame=None, colour=False, bits=None, shape=(48, 40)):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID, file.PatientID = SecondaryCaptureImageStorage, "1.2.3.4", "P1"
    bits = bits or (8 if colour or frame is not None else 12)
    stored = pixels(3, (*shape, 3) if colour else shape, 2**bits, np.uint8 if bits == 8 else np.uint16)
    file.Rows, file.Columns, file.SamplesPerPixel = *shape, 3 if colour else 1
    file.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit = 8 * stored.dtype.itemsize, bits, bits - 1
    file.PixelRepresentation, file.WindowCenter, file.WindowWidth = 0, 2**bits // 2, 2**bits
    if colour:
        file.PlanarConfiguration = 0
    file.PixelData = stored.tobytes() if frame is None else pydicom.encaps.encapsulate([frame])
    if frame is not None:
        file["PixelData"].VR = "OB"
        file["PixelData"].is_undefined_length = True
    if syntax == RLELossless:
        file.compress(RLELossless)
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def compressed():
    """JPEG and JPEG 2000 as Pillow writes them, RLE as pydicom does, HTJ2K, and JPEG-LS if its encoder is installed."""
    grey = pixels(4)
    found = [
        dicom(JPEGBaseline8Bit, picture("JPEG", grey)),
        dicom(JPEG2000Lossless, picture("JPEG2000", grey)),
        dicom(RLELossless),
        dicom(HTJ2KLossless, HT, bits=16, shape=(8, 8)),
    ]
    return [*found, *gdcm_lossless()]


def gdcm_lossless():
    try:
        import gdcm
    except ImportError:
        return []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "a.dcm", Path(folder) / "b.dcm"
        source.write_bytes(dicom())
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(source))
        reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(JPEGLSLossless)))
        change.SetInput(reader.GetImage())
        change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(target))
        writer.Write()
        return [target.read_bytes()]


def table(kind):
    from pyarrow import parquet
    from pyarrow import table as columns

    rows = {
        "path": [f"{number}.png" for number in range(IMAGES)],
        "label": ["clear", "ill"] * (IMAGES // 2),
        "patient": [number // 2 for number in range(IMAGES)],
        "age": [None, *range(IMAGES - 1)],
    }
    if kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        cells = zip(*(map(str, column) for column in rows.values()), strict=True)
        return "\n".join([mark.join(rows), *(mark.join(row) for row in cells)]).encode()
    buffer = io.BytesIO()
    if kind == "parquet":
        parquet.write_table(columns(rows), buffer)
    else:
        import openpyxl

        book = openpyxl.Workbook()
        for row in (list(rows), *zip(*rows.values(), strict=True)):
            book.active.append(row)
        book.save(buffer)
    return buffer.getvalue()


def arrays():
    buffer = io.BytesIO()
    columns = {"images": pixels(5, (20, 8, 8)), "labels": np.arange(20) % 2, "patient": np.arange(20) // 2}
    np.savez_compressed(buffer, **columns)
    plain = io.BytesIO()
    np.savez(plain, **columns)
    return [buffer.getvalue(), plain.getvalue()]


KINDS = {
    "png": (".png", lambda: pictures("PNG", deep=True)),
    "jpeg": (".jpg", lambda: pictures("JPEG")),
    "tiff": (".tif", lambda: [*pictures("TIFF", deep=True), *pictures("TIFF", compression="tiff_lzw")]),
    "bmp": (".bmp", lambda: pictures("BMP")),
    "webp": (".webp", lambda: pictures("WEBP", lossless=True)),
    "dicom": (".dcm", lambda: [dicom(), dicom(colour=True), dicom(DeflatedExplicitVRLittleEndian)]),
    "dicom-compressed": (".dcm", compressed),
    "npz": (".npz", arrays),
    **{kind: (f".{kind}", lambda kind=kind: [table(kind)]) for kind in ("csv", "tsv", "parquet", "xlsx")},
}
SOURCES = (".npz", ".csv", ".tsv", ".parquet", ".xlsx")
"""Whole data sets; every other file is one image."""


def mutant(content, generator):
    """The file with one to four faults; the first bytes, where the header is, are as likely as all the rest."""
    found = bytearray(content)
    for _ in range(generator.integers(1, 5)):
        size = len(found)
        if not size:
            break
        start = int(generator.integers(0, min(size, 256) if generator.random() < 0.5 else size))
        length = int(generator.integers(1, 1 + max(size // 8, 1)))
        match generator.integers(0, 6):
            case 0:
                found[start] ^= 1 << int(generator.integers(0, 8))
            case 1:
                found[start : start + 4] = generator.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
            case 2:
                del found[start : start + length]
            case 3:
                found[start:start] = found[start : start + length]
            case 4:
                found[start : start + length] = b"\0" * len(found[start : start + length])
            case _:
                del found[start:]
    return bytes(found)


def look(path):
    """Read one file; whether it could be."""
    if path.suffix in SOURCES:
        report = check(path.name, base=path.parent, image_size=8)
        str(report)
        return report.ok
    try:
        probe(path)
        read_image(path)
    except DataError:
        return False
    return True


def run(kind, files, seed):
    """Every mutant of one kind, in this process."""
    suffix, make = KINDS[kind]
    intact, generator = make(), np.random.default_rng(seed)
    result = {"kind": kind, "files": files, "read": 0, "refused": 0, "failures": []}
    slowest = 0.0
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = Path(name)
        for number in range(IMAGES):
            (folder / f"{number}.png").write_bytes(picture("PNG", pixels(number)))
        for number, content in enumerate(intact):
            path = folder / f"intact-{number}{suffix}"
            path.write_bytes(content)
            if not look(path):
                result["failures"].append(f"intact {number} was refused")
        for number in range(files):
            path = folder / f"mutant-{number}{suffix}"
            path.write_bytes(mutant(intact[number % len(intact)], generator))
            started = time.perf_counter()
            try:
                result["read" if look(path) else "refused"] += 1
            except BaseException as error:  # noqa: BLE001 - whatever a reader lets through is what is counted
                result["failures"].append(f"{number}: {type(error).__name__}: {error}"[:200])
            slowest = max(slowest, time.perf_counter() - started)
            path.unlink()
    result["slowest_seconds"] = round(slowest, 3)
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return result


def apart(kind, files, seed):
    """The same in a process of its own; one that crashes or hangs is a failure."""
    command = [sys.executable, __file__, "--here", "--files", str(files), "--seed", str(seed), kind]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_SECONDS * files, check=False
        )
    except subprocess.TimeoutExpired:
        return {"kind": kind, "files": files, "failures": ["it hangs"]}
    if done.returncode:
        return {"kind": kind, "files": files, "failures": [f"exit {done.returncode}: {done.stderr[-300:]}"]}
    found = json.loads(done.stdout.splitlines()[-1])
    said = [line for line in done.stderr.splitlines() if line.strip()]
    if said:
        found["stderr"] = said[:3]
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []])
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--here", action="store_true", help="in this process, for one kind")
    asked = parser.parse_args()
    good = True
    for kind in asked.kinds or KINDS:
        found = (run if asked.here else apart)(kind, asked.files, asked.seed)
        print(json.dumps(found), flush=True)
        slow = found.get("slowest_seconds", 0) > LIMIT_SECONDS or found.get("peak_mib", 0) > LIMIT_MIB
        good &= not found["failures"] and not slow
    if not asked.here:
        raise SystemExit(not good)


if __name__ == "__main__":
    main()
