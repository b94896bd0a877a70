"""The search: one kind of model, one cohort, every release, and the worst parameters that are found for each."""

import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tests.data.dicom_files import odd_dicom
from tests.neighbours.answers import ODD, differences, odd_one
from tests.neighbours.cohorts import Cohort, Image, manifest, without
from tests.neighbours.crowds import Crowd, draw_crowd
from tests.neighbours.harness import Vector, make_offer
from tests.neighbours.kinds import Kind
from tests.neighbours.pairs import Figures, Pair, open_pair
from tests.neighbours.spaces import Candidate, Space, make_space
from tests.neighbours.whole_numbers import moved_on_the_grid

from fedveil.federation import Release
from fedveil.federation.noise import Noise
from fedveil.learning.models.network import ROUNDING

__all__ = ["Found", "search"]

LARGEST_MOVE = 1.0001
EXACT = 0.0
"""Of the others' part not the last bit may move, where sums are in double precision."""
ELITE = 4
DEEP = 5
"""Every fifth cohort is searched five times as long."""
NOTHING = np.empty(0)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The worst of one release in one cohort.

    Attributes:
        kind: name of the kind of model.
        release: name of the release.
        moved: what one unit's removal did to the sum, in bounds.
        others: what it did to the others' part of it, in bounds.
        masked: the same as ``moved`` in whole numbers, less what rounding to the grid may add.
        cohort: in words.
        seed: of the search.
        trial: which of its cohorts.
        tries: how many parameters were tried.
    """

    kind: str
    release: str
    moved: float
    others: float
    masked: float
    cohort: str
    seed: int
    trial: int
    tries: int
    rounding: float

    @property
    def most(self) -> float:
        """The larger move, of the sum or of what is masked."""
        return max(self.moved, self.masked)

    @property
    def sound(self) -> bool:
        """Whether all of it is within the bound."""
        bound = 1.0 if self.rounding == ROUNDING else LARGEST_MOVE
        return self.most <= bound and self.others <= self.rounding


def search(
    kind: Kind, seed: int, trial: int, *, stop: bool = False, only: tuple[str, ...] = ()
) -> Iterator[Found]:
    """Search one cohort. The same numbers give the same result.

    Args:
        kind: of model.
        seed: of the whole search.
        trial: number of the cohort.
        stop: leave a release as soon as something unsound was found in it.
        only: these releases, where any are named.
    """
    generator = np.random.default_rng([seed, trial, zlib.crc32(kind.name.encode())])
    if kind.answers:
        yield _answers(kind, seed, trial, generator)
        return
    study = kind.study()
    classes, unit = study.data.classes, study.privacy.unit
    crowd = draw_crowd(
        classes, generator, most=kind.most, odd=kind.files, exactly=kind.trained, alike=kind.room > 0
    )
    neighbour = crowd.images if unit == "site" else without(crowd.images, unit, crowd.gone)
    both, write = (crowd.images, neighbour), _files(crowd, kind) if kind.files else _array(classes)
    tries = kind.tries * (DEEP if trial % DEEP == DEEP - 1 else 1)
    with (
        kind.within(),
        tempfile.TemporaryDirectory() as folder,
        open_pair(Path(folder) / "pair", study, write, both, **crowd.settings, **kind.bounds) as pair,
    ):
        if pair.whole is None and pair.less is None:
            return
        pair.gone = _gone(pair, unit, crowd.gone)
        masked = {} if unit == "site" else _masked(kind)
        wanted = only or kind.releases
        for release in (one for one in pair.agreement.releases if not wanted or one.name in wanted):
            run = _Run(
                _share(kind, release, tries),
                pair,
                release,
                generator,
                stop=stop,
                rounding=_rounding(kind, release),
            )
            figures, worst = run.go()
            sums = pair.totals(release, worst) if release.name in masked else None
            yield Found(
                kind=kind.name,
                release=release.name,
                moved=figures.moved,
                others=figures.others,
                masked=moved_on_the_grid(*masked[release.name], *sums) if sums else 0.0,
                cohort=crowd.words,
                seed=seed,
                trial=trial,
                tries=run.tried,
                rounding=run.rounding,
            )


def _rounding(kind: Kind, release: Release) -> float:
    """What of the others' part rounding may move: gradients of networks are summed in single precision."""
    return ROUNDING if kind.network and _gradients(release) else EXACT


def _share(kind: Kind, release: Release, tries: int) -> int:
    """Fewer tries where each takes many steps, or where a network's gradients are not asked for."""
    if kind.network and not _gradients(release):
        tries = max(1, tries // 3)
    return max(1, tries // release.steps_per_round, min(tries, 3 if kind.network else 8))


def _gradients(release: Release) -> bool:
    return release.name in ("training", "local-steps", "personal")


def _answers(kind: Kind, seed: int, trial: int, generator: np.random.Generator) -> Found:
    """How many answers of a hospital differ: none may, so each counts as one bound that the others moved by."""
    study = kind.study()
    crowd = draw_crowd(study.data.classes, generator, most=kind.most, odd=True)
    what = str(generator.choice(ODD))
    both = odd_one(crowd.images, crowd.gone, what), without(crowd.images, "patient", crowd.gone)
    with tempfile.TemporaryDirectory() as folder:
        count = differences(Path(folder), study, _files(crowd, kind), both, crowd.settings)
    return Found(
        kind=kind.name,
        release="statuses and answers",
        moved=float(count),
        others=float(count),
        masked=0.0,
        cohort=f"{crowd.words}, odd {what}",
        seed=seed,
        trial=trial,
        tries=1,
        rounding=EXACT,
    )


class _Run:
    """The search for one release's parameters."""

    def __init__(
        self,
        tries: int,
        pair: Pair,
        release: Release,
        generator: np.random.Generator,
        *,
        stop: bool,
        rounding: float,
    ) -> None:
        self._tries, self._pair, self._release, self._generator = tries, pair, release, generator
        self._stop, self.rounding = stop, rounding
        self._pool: list[tuple[Figures, Candidate | None]] = []
        self.tried = 0
        others = pair.others(release)
        self._samples = [None, frozenset(one for one in others if generator.random() < 0.5)]

    def go(self) -> tuple[Figures, Vector]:
        """The largest of both figures, and the parameters of the largest move."""
        if self._release.parameters == 0:
            return self._measured(NOTHING), NOTHING
        space = self._space()
        moved, others, worst = 0.0, 0.0, NOTHING
        for number in range(self._tries):
            candidate = self._next(space, number)
            parameters = space.parameters(candidate)
            figures = self._measured(parameters)
            self._pool.append((figures, candidate))
            if figures.moved >= moved:
                moved, worst = figures.moved, parameters
            others = max(others, figures.others)
            if self._stop and (moved > LARGEST_MOVE or others > self.rounding):
                break
        return Figures(moved, others), worst

    def _measured(self, parameters: Vector) -> Figures:
        self.tried += 1
        if self._pair.gone == "site":
            return self._pair.alone(self._release, parameters)
        sample = self._samples[int(self._generator.random() < 0.25)]
        return self._pair.measure(self._release, parameters, sample)

    def _space(self) -> Space:
        pair, release = self._pair, self._release
        opened, owners = pair.open, pair.open.owners()
        rows = opened.test if release.query.part == "held-out" else opened.train
        own = np.array([row for row in rows if owners[row] in (pair.gone, "site")], dtype=np.int64)
        return make_space(opened, release, own, lambda one: pair.accepts(release, one), self._generator)

    def _next(self, space: Space, number: int) -> Candidate:
        """Restarts first, then steps from the best of either figure."""
        generator = self._generator
        if number < max(2, 0.4 * self._tries) or generator.random() < 0.1:
            return space.start(number, generator)
        figure = "moved" if generator.random() < 0.4 else "others"
        best = sorted(self._pool, key=lambda one: -getattr(one[0], figure))[:ELITE]
        first, second = (best[int(generator.integers(len(best)))][1] for _ in range(2))
        assert first is not None
        assert second is not None
        if generator.random() < 0.6:
            return space.changed(first, generator)
        return space.crossed(first, second, generator)


def _gone(pair: Pair, unit: str, patient: str) -> str:
    """The name of the unit that is missing from the smaller data set, be it that its file counted as nothing."""
    if unit == "site":
        return "site"
    if pair.whole is None or pair.less is None:
        return patient
    return next(iter(set(pair.whole.owners()) - set(pair.less.owners())), patient)


def _masked(kind: Kind) -> dict[str, tuple[Noise, Release]]:
    """The releases whose sums are masked, by name, and who adds their noise."""
    agreement = make_offer(kind.study("secure-aggregation")).agreement()
    whole = [one for one in agreement.releases if one.integer is not None and not one.noise_inside]
    return {one.name: (agreement.noise, one) for one in whole}


LISTS = ("{0}", "{0}|{1}", "", "{0}|uncertain")
"""What a label becomes where labels are lists of findings: one, two, all unknown, all others unknown."""


def _files(crowd: Crowd, kind: Kind):
    """PNG files beside a table; the one who leaves may have a damaged one."""
    plain, classes = manifest("patient", "split"), kind.study().data.classes

    def listed(image: Image) -> Image:
        code = classes.index(image.label)
        found = LISTS[code % len(LISTS)].format(image.label, classes[code - 1])
        return replace(image, label=found)

    def write(folder: Path, images: Cohort) -> str:
        source = plain(folder, [listed(one) for one in images] if kind.listed else images)
        mine = [image for image in images if image.patient == crowd.gone]
        if mine and crowd.odd in ("damaged", "empty"):
            path = folder / f"{mine[0].name}.png"
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2 if crowd.odd == "damaged" else 0])
        if mine and crowd.odd == "endless":  # a DICOM file goes by its content
            odd_dicom(folder / f"{mine[0].name}.png", "inf")
        return source

    return write


def _array(classes: tuple[str, ...]):
    """One file of arrays, which names all classes whoever is there."""

    def write(folder: Path, images: Cohort) -> str:
        names, patient = np.unique([one.patient for one in images], return_inverse=True)
        np.savez(
            folder / "images.npz",
            images=np.stack([one.pixels for one in images]),
            labels=np.array([classes.index(one.label) for one in images]),
            patient=patient,
            patient_names=names,
            split=np.array([one.split for one in images]),
            files=np.array([one.name for one in images]),
            classes=np.array(classes),
        )
        return "images.npz"

    return write
