"""Cohorts that the search draws: sizes around every batch boundary, and patients of one to a thousand images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tests.neighbours.cohorts import SIZE, Cohort, Image

BOUNDARIES = (16, 32, 49, 64, 128, 256, 512)
"""Rows that some loop takes at once: extractors 16, padded batches 32, whitening 64, gradients 256, heads 512. A grid
has 49."""
LARGEST = (1, 9, 33, 65, 129, 257, 300, 1000)
"""Images of the patient who has most; gradients of a unit beyond 256 are taken in pieces."""
STYLES = ("smooth", "alike", "pairs", "twins", "same")
FILES = ("whole", "colour", "transparent", "damaged", "empty", "endless", "deep", "number")
"""What is odd about one file of one patient; or that they are one patient more than the budget is kept for."""


@dataclass(frozen=True, eq=False)
class Crowd:
    """A cohort, and who is going to leave it.

    Attributes:
        images: of all, the one who leaves included.
        gone: name of that patient.
        odd: what is odd about one of their files.
        words: how it was made, to be read.
    """

    images: Cohort
    gone: str
    odd: str
    words: str

    @property
    def settings(self) -> dict[str, int]:
        """What the hospital's settings say of this cohort."""
        others = {one.patient for one in self.images} - {self.gone}
        return {"max_units": len(others)} if self.odd == "number" else {}


def draw_crowd(
    classes: Sequence[str],
    generator: np.random.Generator,
    *,
    most: int,
    odd: bool,
    exactly: int = 0,
    alike: bool = False,
) -> Crowd:
    """Draw a cohort.

    Args:
        classes: names of the labels.
        generator: everything follows from it.
        most: images in all, about.
        odd: whether a file may be odd; the cohort then has to be written as files.
        exactly: so many images are trained on, one a patient; 0 for any number.
        alike: those are one image, and have one label.
    """
    plan = _one_each(exactly, alike=alike) if exactly else _plan(generator, most, len(classes))
    maker = _Maker(classes, plan.style, generator, mixed=plan.mixed)
    maker.add("large", plan.large, "test" if plan.tested else "train")
    maker.add("tested-0", 2, "test")
    left, share = plan.count, 0.0 if exactly else 0.5 if plan.tested else 0.15
    while left > 0:
        size = min(left, plan.each)
        maker.add(f"p{len(maker.found):05}", size, "test" if generator.random() < share else "train")
        left -= size
    maker.add("tested-1", 1, "test")
    maker.add("trained", 1)
    found = list(generator.permutation(np.array(maker.found, dtype=object)))
    special = str(generator.choice(FILES)) if odd else "whole"
    everyone = sorted({one.patient for one in found})
    gone = "large" if plan.hard or generator.random() < 0.5 else str(generator.choice(everyone))
    if special != "whole":
        found = [_spoilt(one, special, generator) if one is _first(found, gone) else one for one in found]
    words = f"{plan.words}, {len(found)} images, without {gone}" + (f" ({special})" if odd else "")
    return Crowd(found, gone, special, words)


@dataclass(frozen=True)
class _Plan:
    """The images of the largest patient, of all others, and of each other; and what they show."""

    style: str
    large: int
    count: int
    each: int
    mixed: bool
    tested: bool
    hard: bool = False

    @property
    def words(self) -> str:
        labels = ", mixed labels" if self.mixed else ""
        return f"{self.style}, largest {self.large}{' tested' if self.tested else ''}, others {self.each} each{labels}"


def _one_each(count: int, *, alike: bool) -> _Plan:
    return _Plan("copies" if alike else "smooth", 1, count - 2, 1, mixed=not alike, tested=False)


def _plan(generator: np.random.Generator, most: int, classes: int) -> _Plan:
    """Now and then what moved others most in earlier versions: one with many images among many who are alike, or a few
    with one image each, who fill a small batch or leave one over."""
    kind = generator.random()
    if kind < 0.15:
        return _Plan("smooth", 1, int(generator.integers(3, 40)), 1, mixed=True, tested=False)
    if kind < 0.5:
        large = int(generator.choice([one for one in LARGEST if 9 <= one <= most * 3 / 4] or [most // 2]))
        each = (
            classes if generator.random() < 0.7 else 1
        )  # one image of every class, so that gradients cancel
        style = str(generator.choice(["alike", "pairs", "same"]))
        return _Plan(style, large, min(most - large, 300), each, mixed=each > 1, tested=False, hard=True)
    style, large = (
        str(generator.choice(STYLES)),
        int(generator.choice([one for one in LARGEST if one <= most])),
    )
    room = max(4, most - large)
    edge = int(generator.choice([one for one in BOUNDARIES if one <= room] or [room]))
    return _Plan(
        style,
        large,
        max(4, min(room, edge + int(generator.integers(-1, 2)))),
        int(generator.choice([1, 2, 2, 3, 4])),
        mixed=generator.random() < 0.7,
        tested=generator.random() < 0.2,
    )


def _first(images: Cohort, patient: str) -> Image:
    return next(one for one in images if one.patient == patient)


def _spoilt(image: Image, special: str, generator: np.random.Generator) -> Image:
    """In colour, transparent or of 16 bit; damage is done when the file is written."""
    pixels = image.pixels
    if special in ("colour", "transparent"):
        depth = 3 if special == "colour" else 4
        pixels = generator.integers(0, 256, (SIZE, SIZE, depth)).astype(np.uint8)
    elif special == "deep":
        pixels = pixels.astype(np.uint16) * 257
    return Image(image.name, image.patient, image.label, pixels, image.split, image.site)


class _Maker:
    def __init__(
        self, classes: Sequence[str], style: str, generator: np.random.Generator, *, mixed: bool
    ) -> None:
        self.found: Cohort = []
        self._classes, self._style, self._generator, self._mixed = classes, style, generator, mixed
        self._base = self._smooth(1)[0].astype(np.int64)
        self._step = generator.integers(-9, 10, (SIZE, SIZE))

    def add(self, patient: str, count: int, split: str = "train") -> None:
        first = 0 if self._style == "copies" else int(self._generator.integers(len(self._classes)))
        for number, pixels in enumerate(self._pictures(count)):
            code = first + number if self._mixed else first
            name = f"i{len(self.found):05}"
            self.found.append(Image(name, patient, self._classes[code % len(self._classes)], pixels, split))

    def _pictures(self, count: int) -> np.ndarray:
        """`alike`: all nearly one image; `pairs`: every patient has the same two; `twins`: one image each, repeated;
        `same`: one image of everybody; `copies`: and one label."""
        if self._style in ("same", "copies"):
            changed = np.repeat(self._base[None], count, axis=0)
        elif self._style == "alike":
            changed = self._base + (self._generator.random((count, SIZE, SIZE)) < 0.02)
        elif self._style == "pairs":
            changed = np.stack([self._base + (1 if i % 2 else -1) * self._step for i in range(count)])
        elif self._style == "twins":
            return np.repeat(self._smooth(1), count, axis=0)
        else:
            return self._smooth(count)
        return np.clip(changed, 1, 250).astype(np.uint8)

    def _smooth(self, count: int) -> np.ndarray:
        coarse = self._generator.normal(128, 40, (count, 4, 4)).repeat(4, axis=1).repeat(4, axis=2)
        noise = self._generator.normal(0, 25, (count, SIZE, SIZE))
        return np.clip(coarse + noise, 1, 240).astype(np.uint8)
