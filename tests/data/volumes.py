"""Writes one body as NIfTI files, DICOM series and multi-frame files."""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SHAPE = (6, 8, 10)
SPACING = (3.0, 1.5, 1.0)
"""Of slices from the feet to the head, rows to the back, columns to the left, in mm."""


def body(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Hounsfield units (z, y, x), no two voxels alike."""
    return np.random.default_rng(seed).permutation(int(np.prod(shape))).reshape(shape).astype(np.int16) - 200


def write_nifti(path: Path, values: np.ndarray, codes: str = "RAS", **fields: float) -> Path:
    """The body (z, y, x) with its array's axes along the patient's as ``codes`` says."""
    ras = values.transpose(2, 1, 0)[::-1, ::-1]
    affine = np.diag([*SPACING[::-1], 1.0])
    image = nibabel.Nifti1Image(ras, affine)
    wanted = nibabel.orientations.axcodes2ornt(codes)
    turn = nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(affine), wanted)
    image = image.as_reoriented(turn)
    for name, value in fields.items():
        image.header[name] = value
    image.to_filename(path)
    return path


def dataset(values: np.ndarray, path: Path, **elements: object) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Modality, file.PatientID = "CT", "P1"
    file.Rows, file.Columns = values.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation = 15, 1
    file.PixelData = np.ascontiguousarray(values).tobytes()
    for name, value in elements.items():
        setattr(file, name, value)
    return file


def write_series(folder: Path, values: np.ndarray, axis: int = 0, **elements: object) -> Path:
    """Slices (z, y, x) across an axis; file names and instance numbers are shuffled."""
    folder.mkdir(parents=True)
    uid, shuffled = generate_uid(), np.random.default_rng(4).permutation(values.shape[axis])
    rest = [one for one in range(3) if one != axis]
    directions = np.eye(3)[::-1]  # of z, y and x in (x, y, z)
    for number in range(values.shape[axis]):
        plane = values.take(number, axis)
        file = folder / f"{shuffled[number]:03d}.dcm"
        made = dataset(plane, file, SeriesInstanceUID=uid, InstanceNumber=int(shuffled[number]), **elements)
        made.ImageOrientationPatient = [*directions[rest[1]], *directions[rest[0]]]
        made.ImagePositionPatient = list(directions[axis] * SPACING[axis] * number)
        made.PixelSpacing = [SPACING[rest[0]], SPACING[rest[1]]]
        made.save_as(file, enforce_file_format=True)
    return folder


def change(file: Path, **elements: object) -> None:
    found = pydicom.dcmread(file)
    for name, value in elements.items():
        setattr(found, name, value)
    found.save_as(file)


def write_frames(path: Path, values: np.ndarray, order: list[int] | None = None, slope: float = 1.0) -> Path:
    """One file of several frames; with an order it is an enhanced one that says where each lies.

    The slope of the slice i is then ``slope`` times i + 1.
    """
    stored = values if order is None else values[order]
    made = dataset(stored, path, NumberOfFrames=len(values), PatientID="P3")
    if order is not None:
        shared, turn = Dataset(), Dataset()
        turn.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        measures = Dataset()
        measures.PixelSpacing = list(SPACING[1:])
        shared.PlaneOrientationSequence = Sequence([turn])
        shared.PixelMeasuresSequence = Sequence([measures])
        frames = []
        for number in order:
            place, scale, own = Dataset(), Dataset(), Dataset()
            scale.RescaleSlope, scale.RescaleIntercept = slope * (1 + number), 0
            own.PixelValueTransformationSequence = Sequence([scale])
            place.ImagePositionPatient = [0, 0, SPACING[0] * number]
            own.PlanePositionSequence = Sequence([place])
            frames.append(own)
        made.SharedFunctionalGroupsSequence = Sequence([shared])
        made.PerFrameFunctionalGroupsSequence = Sequence(frames)
    made.save_as(path, enforce_file_format=True)
    return path
