"""A small cohort with every kind of patient that has ever moved others, and ways to write it to disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image as Pillow
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

SIZE = 16
HERE, ELSEWHERE = "north", "south"


@dataclass(frozen=True, eq=False)
class Image:
    """One image, and what a table says of it."""

    name: str
    patient: str
    label: str
    pixels: np.ndarray
    split: str = "train"
    site: str = HERE


Cohort = list[Image]
SPECIAL = ("first", "many", "mixed", "twin-1", "rare", "black", "white", "checks", "tested", "last")
"""Patients whose absence is tried; in the order of the files."""


def cohort(classes: Sequence[str], plain: int = 14) -> Cohort:
    """About 30 patients and 50 images; ``rare`` is the only one of the last of more than two classes."""
    generator = np.random.default_rng(7)
    common = classes if len(classes) == 2 else classes[:-1]
    found: Cohort = []

    def add(
        patient: str, pictures: Sequence[np.ndarray], labels: Sequence[str], split: str = "train"
    ) -> None:
        for pixels, label in zip(pictures, labels, strict=True):
            found.append(Image(f"i{len(found):03}", patient, label, pixels, split))

    def draw(count: int) -> np.ndarray:
        smooth = generator.normal(128, 40, (count, 4, 4)).repeat(4, axis=1).repeat(4, axis=2)
        return np.clip(smooth + generator.normal(0, 25, (count, SIZE, SIZE)), 1, 240).astype(np.uint8)

    def same(value: int) -> np.ndarray:
        return np.full((SIZE, SIZE), value, np.uint8)

    add("first", draw(1), common[:1])
    add("many", draw(9), [common[i % len(common)] for i in range(9)])
    add("mixed", draw(2), [common[0], common[1]])
    twins = draw(2)
    add("twin-1", twins, [common[0]] * 2)
    add("twin-2", twins, [common[0]] * 2)
    add("rare", draw(2), [classes[-1]] * 2)
    add("black", [same(0)] * 2, [common[0]] * 2)
    add("white", [same(240)], [common[1]])
    add("checks", [255 * (np.indices((SIZE, SIZE)).sum(0) % 2).astype(np.uint8)], [common[1]])
    add("tested", draw(2), [common[1]] * 2, "test")
    for number in range(plain):
        count = 1 + number % 2
        split = "test" if number % 4 == 3 else "train"
        label = common[number % len(common)]
        add(f"p{number}", draw(count), [label] * count, split)
    add("last", draw(1), common[1:2])
    return found


def without(images: Cohort, unit: str, which: str) -> Cohort:
    """The neighbour: one patient less, or one image less."""
    gone = next(i for i in images if i.patient == which)
    return [i for i in images if (i.patient != which if unit == "patient" else i is not gone)]


def with_other_hospital(images: Cohort) -> Cohort:
    """The same, and a few patients of another hospital in the same table."""
    others = [i for i in images if i.patient.startswith("p")][:6]
    return [
        *images,
        *(replace(i, name=f"o{i.name}", patient=f"o{i.patient}", site=ELSEWHERE) for i in others),
    ]


def _png(folder: Path, image: Image) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(image.pixels).save(folder / f"{image.name}.png")


def _manifest(folder: Path, images: Cohort, *columns: str, suffix: str = "png") -> str:
    lines = [",".join(("path", "label", *columns))]
    lines += [
        ",".join((f"{i.name}.{suffix}", i.label, *(str(getattr(i, column)) for column in columns)))
        for i in images
    ]
    (folder / "images.csv").write_text("\n".join(lines))
    return "images.csv"


def manifest(*columns: str) -> Callable[[Path, Cohort], str]:
    """A manifest of PNG files with these columns beside path and label."""

    def write(folder: Path, images: Cohort) -> str:
        for image in images:
            _png(folder, image)
        return _manifest(folder, images, *columns)

    return write


def folders(folder: Path, images: Cohort) -> str:
    """CLASS/image."""
    for image in images:
        _png(folder / image.label, image)
    return "."


def folders_of_sites(folder: Path, images: Cohort) -> str:
    """SITE/SPLIT/CLASS/image."""
    for image in images:
        _png(folder / image.site / image.split / image.label, image)
    return "."


def npz(folder: Path, images: Cohort) -> str:
    """One file as of the chest X-rays: whole numbers for patients, and the names that they stand for."""
    names, patient = np.unique([i.patient for i in images], return_inverse=True)
    classes = sorted({i.label for i in cohort_classes(images)})
    np.savez(
        folder / "images.npz",
        images=np.stack([i.pixels for i in images]),
        labels=np.array([classes.index(i.label) for i in images]),
        patient=patient,
        patient_names=names,
        files=np.array([i.name for i in images]),
        classes=np.array(classes),
    )
    return "images.npz"


def cohort_classes(images: Cohort) -> Cohort:
    """What a file's own list of classes is made from: everything there, be it one image less."""
    return images


def medmnist(folder: Path, images: Cohort) -> str:
    """train_images, train_labels, test_images, test_labels; class names as labels."""
    arrays = {}
    for split in ("train", "test"):
        own = [i for i in images if i.split == split]
        arrays[f"{split}_images"] = np.stack([i.pixels for i in own])
        arrays[f"{split}_labels"] = np.array([i.label for i in own])
    np.savez(folder / "images.npz", **arrays)
    return "images.npz"


def _dicom(path: Path, image: Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{int(image.name.strip('io')) + 1}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.PatientID, file.Rows, file.Columns, file.SamplesPerPixel = image.patient, SIZE, SIZE, 1
    file.PhotometricInterpretation, file.PixelRepresentation = "MONOCHROME2", 0
    file.BitsAllocated = file.BitsStored = 8
    file.HighBit, file.PixelData = 7, image.pixels.tobytes()
    if image.patient == "many":  # a window of its own scales an image by what stands in its own header
        file.WindowCenter, file.WindowWidth = 100, 50
    pydicom.dcmwrite(path, file, enforce_file_format=True)


def dicom_folders(folder: Path, images: Cohort) -> str:
    """CLASS/image.dcm, whose headers name the patients."""
    for image in images:
        _dicom(folder / image.label / f"{image.name}.dcm", image)
    return "."


def dicom_manifest(folder: Path, images: Cohort) -> str:
    """A manifest without patients, whose files name them."""
    for image in images:
        _dicom(folder / f"{image.name}.dcm", image)
    return _manifest(folder, images, suffix="dcm")
