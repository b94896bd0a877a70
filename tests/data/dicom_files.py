"""DICOM files whose header leads anywhere but to numbers in [0, 1]."""

import base64
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

HTJ2K = base64.b64decode(
    b"/0//UQApQAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAIEBEAB/1wACiCI"
    b"kJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAE0AAf+TwAArAP9/Wdyt/gfbAoG0AMAAE0AAFQAk0gECdACS"
    b"UTL+AONUAMAAKiAAFWAIgiCqcIJ1AM533nnnwFKB7LYA/9k="
)
"""A High-Throughput JPEG 2000 codestream of 8 x 8 pixels of 16 bits, lossless: ``1000 row + 37 column``, as OpenJPH
encodes it (imagecodecs' ``htj2k_encode``). No package that fedveil installs encodes HTJ2K."""
HOLDERS = ("7654321", "1234567")


def odd_dicom(path: Path, slope: str, intercept: str = "0", side: int = 20) -> None:
    """A grey image with any text as its rescale slope and intercept, which pydicom would not write."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Rows = file.Columns = side
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PixelData = np.arange(side * side, dtype=np.uint16).tobytes()
    file.RescaleSlope, file.RescaleIntercept = HOLDERS
    file.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    for holder, value in zip(HOLDERS, (slope, intercept), strict=True):
        content = content.replace(f"{holder} ".encode(), value.ljust(8).encode())
    path.write_bytes(content)
