"""The built-in phantom: synthetic chest radiographs drawn by formulas, so that nothing has to be downloaded.

They show no real person. Some chests have opacities; others have structures that are easily mistaken for one (breast
shadows, large hila, small scars), so that no classifier is perfect. A patient has one to four images, which share the
anatomy and differ in posture and in changes over time. Images come from scanners that differ in exposure,
contrast, blur, noise, collimation and burnt-in marker.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.columns import Column, Names
from fedveil.data.annotations.records import Records
from fedveil.data.dataset import TEST, TRAIN
from fedveil.data.image_store import ArrayImages, check_size
from fedveil.data.phantom.anatomy import OPACITIES, Anatomy, Lesions, attenuation
from fedveil.data.split import HOLDOUT_STREAM, PHANTOM_STREAM, patient_labels
from fedveil.errors import InvalidValue

__all__ = ["PHANTOM_PATIENTS", "phantom"]

PHANTOM_PATIENTS = 1000
IMAGES_OF_PATIENT = (0.60, 0.27, 0.09, 0.04)
BATCH = 128
MARKER = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]], np.float32)
"""The letter L, which radiographers put beside the patient's left side."""

Field = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scanner:
    """How one hospital's device turns attenuation into grey; lengths in units of the image's width."""

    name: str
    gain: float
    gamma: float
    blur: float
    noise: float
    border: float
    marker: float
    heel: float


SCANNERS = (
    Scanner("northgate", 1.00, 1.00, 0.006, 0.012, 0.00, 0.90, 0.00),
    Scanner("riverside", 0.93, 0.90, 0.011, 0.022, 0.05, 0.00, 0.06),
    Scanner("st-brigid", 1.08, 1.12, 0.004, 0.016, 0.02, 1.00, -0.08),
    Scanner("eastfield", 0.97, 0.95, 0.015, 0.028, 0.08, 0.75, 0.10),
    Scanner("old-mill", 1.05, 1.10, 0.008, 0.034, 0.00, 0.00, -0.04),
)
PREVALENCE = (0.45, 0.30, 0.60, 0.40, 0.55)
SHARE = (0.32, 0.24, 0.18, 0.15, 0.11)


def phantom(
    image_size: int = 64, hospitals: int | None = None, patients: int = PHANTOM_PATIENTS, seed: int = 0
) -> Records:
    """The synthetic set: the classes clear and opacity, a fifth of the patients held out for testing.

    It is the same, except for rounding on another processor, for the same size and seed; it does not depend on a
    study's seed. With ``hospitals`` given, that many are named, each with its scanner, size and share of opacities;
    otherwise the scanner of an image is not stated, and a study may split the patients.
    """
    _check(hospitals, patients)
    check_size(image_size)
    generator = np.random.default_rng([seed, PHANTOM_STREAM])
    count = hospitals or len(SCANNERS)
    number = np.arange(count) % len(SCANNERS)
    names = [SCANNERS[scanner].name for scanner in number]
    if count > len(SCANNERS):
        names = [f"{name}-{code + 1}" for code, name in enumerate(names)]
    share = np.array(SHARE)[number]
    site = generator.choice(count, patients, p=share / share.sum())
    # The first patients are assigned to one hospital each, so that none is empty.
    site[: min(count, patients)] = np.arange(min(count, patients))
    images_of = 1 + generator.choice(len(IMAGES_OF_PATIENT), patients, p=IMAGES_OF_PATIENT)
    owner = np.repeat(np.arange(patients), images_of)
    sick = generator.random(patients) < np.array(PREVALENCE)[number][site]
    last = np.diff(owner, append=patients) > 0
    recovered = last & (images_of[owner] > 1) & (generator.random(len(owner)) < 0.25)
    labels = (sick[owner] & ~recovered).astype(np.int64)
    anatomy = Anatomy.draw(generator, patients)
    lesions = draw_lesions(generator, owner, labels)
    scanner = [SCANNERS[code] for code in number[site[owner]]]
    pixels = radiographs(generator, image_size, owner, anatomy, lesions, scanner)
    held_out = _hold_out(patient_labels(owner, labels), site, seed)[owner]
    return Records(
        name="phantom",
        images=ArrayImages(pixels, image_size),
        labels=labels,
        classes=("clear", "opacity"),
        image_names=Names([f"synthetic-{row + 1:04d}" for row in range(len(owner))]),
        place=lambda row: f"phantom, image {row + 1}",
        patients=Column.of(f"synthetic-patient-{code + 1:04d}" for code in owner),
        sites=None if hospitals is None else Column.of(names[code] for code in site[owner]),
        splits=np.where(held_out, TEST, TRAIN).astype(np.int8),
        synthetic=True,
        description="Synthetic chest radiographs drawn by formulas; they show nobody.",
    )


def synthetic_records(
    kind: str,
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer[Any]],
    classes: Sequence[str],
    owner: Codes,
    *,
    seed: int,
    what: str,
) -> Records:
    """Radiographs of patients as a data set, a fifth of the patients held out for testing.

    Args:
        kind: as in "phantom:KIND".
        pixels: (n, size, size).
        labels: of the images, (n,) or (n, K).
        classes: their names.
        owner: (n,) patient codes, non-decreasing.
        seed: of the set.
        what: what is drawn, for the description.
    """
    held_out = np.random.default_rng([seed, HOLDOUT_STREAM]).random(int(owner[-1]) + 1) < 0.2
    return Records(
        name=f"phantom:{kind}",
        images=ArrayImages(pixels, pixels.shape[-1]),
        labels=labels,
        classes=tuple(classes),
        image_names=Names([f"synthetic-{row + 1:05d}" for row in range(len(owner))]),
        place=lambda row: f"phantom:{kind}, image {row + 1}",
        patients=Column.of(f"synthetic-patient-{code + 1:05d}" for code in owner),
        splits=np.where(held_out[owner], TEST, TRAIN).astype(np.int8),
        synthetic=True,
        description=f"Synthetic chest radiographs with {what}, drawn by formulas; they show nobody.",
    )


def _check(hospitals: int | None, patients: int) -> None:
    if hospitals is not None and not 1 <= hospitals <= patients // 10:
        raise InvalidValue(
            f"the phantom is asked for {hospitals} hospitals",
            f"it can name between 1 and {patients // 10}, to have some ten patients each",
            "write phantom:5",
        )


def _hold_out(label: Codes, site: Codes, seed: int) -> npt.NDArray[np.bool_]:
    """A fifth of the patients, alike from every hospital and label: a part of the set, like its images."""
    strata = np.unique(np.stack([site, label]), axis=1, return_inverse=True)[1].ravel()
    order = np.random.default_rng([seed, HOLDOUT_STREAM]).permutation(len(label))
    chosen = np.zeros(len(label), bool)
    wanted, seen = 0, 0
    for stratum in range(int(strata.max()) + 1):
        members = order[strata[order] == stratum]
        seen += len(members)
        # Rounding is carried from stratum to stratum, so that many small ones still give the fraction.
        take = min(max(round(0.2 * seen) - wanted, 0), len(members) - 1)
        chosen[members[:take]] = True
        wanted += take
    return chosen


def draw_lesions(generator: np.random.Generator, owner: Codes, labels: Codes) -> Lesions:
    """Opacities where the label says so, alike in all images of a patient but for strength; else scars."""
    patients, images = int(owner.max()) + 1, len(owner)
    shape = (patients, OPACITIES)
    side = np.where(generator.random(shape) < 0.5, -1, 1)
    lobar = generator.random(shape) < 0.7
    size = np.where(lobar, generator.uniform(0.20, 0.38, shape), generator.uniform(0.08, 0.15, shape))
    strength = np.where(lobar, generator.uniform(0.30, 0.75, shape), generator.uniform(0.30, 0.75, shape))
    number = np.arange(OPACITIES)
    there = number < 1 + generator.choice(OPACITIES, (patients, 1), p=(0.18, 0.40, 0.42))
    scars = (generator.random(shape) < 0.25) * generator.uniform(0.05, 0.20, shape)
    ill = labels[:, None] == 1
    change = generator.uniform(0.75, 1.25, (images, 1))
    drawn = np.where(ill, (strength * there)[owner] * change, scars[owner])
    small = np.where(ill, size[owner], 0.5 * size[owner] * np.where(lobar, 0.4, 1)[owner])
    x = side * generator.uniform(0.24, 0.56, shape)
    y = np.where(lobar, generator.uniform(0.02, 0.32, shape), generator.uniform(-0.42, 0.34, shape))
    stretch = generator.uniform(0.75, 1.35, shape)
    return Lesions(
        x=x[owner].astype(np.float32),
        y=y[owner].astype(np.float32),
        width=(small * stretch[owner]).astype(np.float32),
        height=(small / stretch[owner]).astype(np.float32),
        strength=drawn.astype(np.float32),
        ragged=generator.uniform(0.2, 0.9, shape)[owner].astype(np.float32),
    )


def radiographs(
    generator: np.random.Generator,
    size: int,
    owner: Codes,
    anatomy: Anatomy,
    lesions: Lesions,
    scanners: list[Scanner],
) -> npt.NDArray[np.uint8]:
    """Grey images (n, size, size).

    Args:
        generator: of postures and exposures.
        size: pixels along each side.
        owner: (n,) the patient of each image.
        anatomy: of the patients.
        lesions: of the images.
        scanners: (n,) of the images.
    """
    pixels = np.empty((len(owner), size, size), np.uint8)
    for start in range(0, len(owner), BATCH):
        rows = np.arange(start, min(start + BATCH, len(owner)))
        here = Lesions(**{name: getattr(lesions, name)[rows] for name in Lesions.__slots__})
        drawn = draw_images(generator, size, anatomy.of(owner[rows]), here)
        pixels[rows] = expose(generator, drawn, [scanners[row] for row in rows])
    return pixels


def draw_images(generator: np.random.Generator, size: int, anatomy: Anatomy, lesions: Lesions) -> Field:
    """Attenuation ``(n, size, size)`` of each patient as they stood for this image."""
    count = len(lesions.x)

    def jitter(deviation: float) -> Field:
        return (deviation * generator.standard_normal((count, 1, 1))).astype(np.float32)

    turn, zoom, breath = jitter(0.035), 1 + jitter(0.035), jitter(0.04)
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - 1
    across, down = axis[None, None, :] - jitter(0.03), axis[None, :, None] - jitter(0.03)
    x = (across * np.cos(turn) + down * np.sin(turn)) * zoom
    y = (down * np.cos(turn) - across * np.sin(turn)) * zoom
    # A deep breath lowers the diaphragm: the chest is stretched below the hila.
    return attenuation(x, np.where(y > 0, y * (1 - breath), y), anatomy, lesions)


def expose(generator: np.random.Generator, drawn: Field, scanners: list[Scanner]) -> npt.NDArray[np.uint8]:
    """The grey image ``(n, size, size)`` that each scanner makes of it."""

    def each(name: str, jitter: float = 0.0) -> Field:
        values = np.array([getattr(scanner, name) for scanner in scanners], np.float32)
        values += jitter * generator.standard_normal(len(scanners), dtype=np.float32)
        return values[:, None, None]

    size = drawn.shape[-1]
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size
    exposed = drawn * each("gain", 0.03) * (1 + each("heel", 0.02) * (axis - np.float32(0.5)))
    grey = (1 - np.exp(-1.55 * exposed)) ** np.maximum(each("gamma", 0.05), 0.5)
    _mark(grey, [scanner.marker for scanner in scanners])
    frequency = np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size) ** 2
    blur = np.exp(-2 * (np.pi * size * each("blur")) ** 2 * frequency.astype(np.float32))
    grey = np.fft.irfft2(np.fft.rfft2(grey) * blur, s=(size, size))
    # Fewer quanta arrive where more are absorbed, so that the dense parts are noisier.
    grain = generator.standard_normal(grey.shape, dtype=np.float32) * each("noise")
    grey = grey + grain * np.sqrt(0.25 + np.clip(grey, 0, 1))
    inside = np.minimum(axis, 1 - axis) > each("border", 0.012)
    framed = np.where(inside & inside.transpose(0, 2, 1), np.clip(grey, 0, 1), 0.01)
    grey_levels: npt.NDArray[np.uint8] = np.rint(255 * framed).astype(np.uint8)
    return grey_levels


def _mark(grey: Field, brightness: list[float]) -> None:
    """Burns the side marker into the upper right corner, in place, where there is room for one."""
    size = grey.shape[-1]
    scale = max(1, round(size / 64))
    letter = np.kron(MARKER, np.ones((scale, scale), np.float32))
    height, width = letter.shape
    top, left = round(0.11 * size), round(0.87 * size)
    corner = (slice(top, top + height), slice(left, left + width))
    for image, bright in zip(grey, brightness, strict=True):
        if bright and left + width <= size:
            image[corner] = np.maximum(image[corner], bright * letter)
