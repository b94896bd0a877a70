"""Parameters that a coordinator who knows every image could send, in pieces that a search turns and scales."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tests.neighbours.harness import Opened, Vector

from fedveil.federation import Release
from fedveil.federation.site import LARGEST
from fedveil.study.pipeline import LinearTask

__all__ = ["Candidate", "Space", "make_space"]

SMALLEST = 1e-9
"""Of numbers that have to be positive."""
NORMAL = 1
"""Place of the random direction of a network's tensor."""
HALVINGS = 24
"""Of the way from accepted numbers to those that were refused."""


@dataclass(frozen=True, eq=False)
class Gene:
    """One piece: 10^power times a direction, whose numbers reach 1."""

    direction: Vector
    power: float


Candidate = tuple[Gene, ...]


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of the parameter vector.

    Attributes:
        part: where it lies.
        directions: what it may be a multiple of, each with a name.
        positive: its numbers are positive; frequencies of classes, or their reciprocals.
        reciprocal: 1 / (K frequency).
    """

    part: slice
    directions: Sequence[Vector]
    positive: bool = False
    reciprocal: bool = False

    def public(self, values: Vector) -> Vector:
        """The nearest that follows from class frequencies: they sum to 1."""
        frequencies = 1 / values if self.reciprocal else values
        frequencies = frequencies / frequencies.sum()
        return 1 / (len(values) * frequencies) if self.reciprocal else frequencies


class Space:
    """Candidates for one release, brought to what the site accepts by asking its own check.

    Args:
        pieces: in the order in which they are brought to what is accepted.
        plain: parameters that the site accepts.
        accepts: the site's check.
        starts: where a search begins.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        plain: Vector,
        accepts: Callable[[Vector], bool],
        starts: Sequence[Candidate] = (),
    ) -> None:
        self.pieces, self._plain, self._accepts, self._starts = tuple(pieces), plain, accepts, tuple(starts)
        assert accepts(plain), "the site refuses what an honest coordinator sends"

    def start(self, number: int, generator: np.random.Generator) -> Candidate:
        """Where a search begins: what an honest coordinator sends, the worst of earlier versions, then the first with a
        few pieces changed, all pieces at random scales, or a direction and a scale for each."""
        plain = tuple(Gene(piece.directions[0], 0.0) for piece in self.pieces)
        if number == 0:
            return plain
        if number <= len(self._starts):
            return self._starts[number - 1]
        kind = generator.random()
        few = 0.3 if self._starts else 0.1  # networks turn where their layers differ most in scale
        if kind < few:
            changed = generator.random(len(plain)) < 2 / len(plain)
            return tuple(
                self._gene(piece, generator) if other else gene
                for piece, gene, other in zip(self.pieces, plain, changed, strict=True)
            )
        if kind < few + (0.45 if self._starts else 0.75):
            powers = generator.uniform(-6, 6, len(plain))
            chosen = [0 if generator.random() < 0.25 else NORMAL] * len(plain)
            return tuple(
                Gene(piece.directions[min(place, len(piece.directions) - 1)], float(power))
                for piece, place, power in zip(self.pieces, chosen, powers, strict=True)
            )
        return tuple(self._gene(piece, generator) for piece in self.pieces)

    def _gene(self, piece: Piece, generator: np.random.Generator) -> Gene:
        direction = piece.directions[int(generator.integers(len(piece.directions)))]
        if generator.random() < 0.25:
            other = piece.directions[int(generator.integers(len(piece.directions)))]
            direction = direction + 10 ** generator.uniform(-6, 0) * other
        sign = 1.0 if piece.positive or generator.random() < 0.7 else -1.0
        drawn = generator.random()
        power = 6.0 if drawn < 0.35 else 0.0 if drawn < 0.6 else float(generator.uniform(-6, 6))
        return Gene(sign * direction, power)

    def changed(self, candidate: Candidate, generator: np.random.Generator) -> Candidate:
        """One coordinate step: one piece larger, smaller, turned around or exchanged."""
        place = int(generator.integers(len(self.pieces)))
        gene, piece = candidate[place], self.pieces[place]
        kind = generator.random()
        if kind < 0.6:
            new = replace(
                gene, power=min(6.0, gene.power + float(generator.choice([-2, -1, -0.3, 0.3, 1, 2])))
            )
        elif kind < 0.7 and not piece.positive:
            new = replace(gene, direction=-gene.direction)
        elif kind < 0.85:
            new = self._gene(piece, generator)
        else:
            noise = 10 ** generator.uniform(-7, 0) * generator.normal(size=gene.direction.shape)
            new = replace(gene, direction=gene.direction + noise)
        return (*candidate[:place], new, *candidate[place + 1 :])

    def crossed(self, one: Candidate, other: Candidate, generator: np.random.Generator) -> Candidate:
        """One evolutionary step: each piece of either, all scales moved a little."""
        chosen = generator.random(len(one)) < 0.5
        powers = generator.normal(0, 0.4, len(one)) * (generator.random(len(one)) < 0.5)
        return tuple(
            replace(a if first else b, power=min(6.0, (a if first else b).power + float(step)))
            for a, b, first, step in zip(one, other, chosen, powers, strict=True)
        )

    def parameters(self, candidate: Candidate) -> Vector:
        """The vector, if the site accepts it; otherwise the nearest one, piece by piece, that it does accept."""
        wanted = self._plain.copy()
        for piece, gene in zip(self.pieces, candidate, strict=True):
            values = np.clip(10.0**gene.power * gene.direction, -LARGEST, LARGEST)
            wanted[piece.part] = np.maximum(np.abs(values), SMALLEST) if piece.positive else values
        if self._accepts(wanted):
            return wanted
        found = self._plain.copy()
        for piece in self.pieces:
            self._bring(found, piece, wanted[piece.part])
        return found

    def _bring(self, found: Vector, piece: Piece, values: Vector) -> None:
        """Set a piece as near to the values as the site accepts, beside the pieces that are set already."""
        start = found[piece.part].copy()
        tried = [values, piece.public(values)] if piece.positive else [values]
        for one in tried:
            found[piece.part] = one
            if self._accepts(found):
                return
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            found[piece.part] = self._between(piece, start, tried[-1], middle)
            low, high = (middle, high) if self._accepts(found) else (low, middle)
        found[piece.part] = self._between(piece, start, tried[-1], low)

    @staticmethod
    def _between(piece: Piece, start: Vector, end: Vector, part: float) -> Vector:
        if part == 0:
            return start
        if piece.positive:
            return piece.public(start ** (1 - part) * end**part)
        return start + part * (end - start)


def make_space(
    opened: Opened,
    release: Release,
    own: Vector,
    accepts: Callable[[Vector], bool],
    generator: np.random.Generator,
) -> Space:
    """The pieces of a model's parameters, with directions that follow from the images.

    Args:
        opened: a hospital that knows all the images.
        release: whose parameters are sought.
        own: rows of the unit that leaves.
        accepts: the site's check.
        generator: draws the random directions.
    """
    model = opened.task.model
    linear = isinstance(opened.task, LinearTask)
    pieces = _linear(opened.task, own, generator) if linear else _network(model, generator)
    plain, before = model.join(None, model.initial()), release.parameters - model.parameters
    if before:
        pieces = [replace(one, part=slice(one.part.start + before, one.part.stop + before)) for one in pieces]
        pieces.append(Piece(slice(0, before), _of_classes(before), positive=True))
        plain = np.concatenate([np.full(before, 1 / before), plain])
    return Space(pieces, plain, accepts, _starts(pieces) if linear else ())


def _starts(pieces: Sequence[Piece]) -> list[Candidate]:
    """Weights that cancel every feature; a far centre with large, even weights of the classes and a head of 0, so that
    gradients of a patient's images nearly cancel; the same near the middle; a head along one patient."""
    nothing, flat, middle, own, between, noise, _, _, _, *flats = pieces[0].directions
    origin, _, at_middle, at_own, _, at_noise, _, at_pair, *_ = pieces[1].directions
    rest = tuple(Gene(piece.directions[0], 0.0) for piece in pieces[3:])
    even, steps = pieces[2].directions[0], pieces[2].directions[2]
    found = [(one, power, origin, 0, even, 0) for one in (flat, *flats[1:4]) for power in (6, 0)]
    found += [(flats[0], 6, at_middle, 0, even, 0)]
    found += [(nothing, 0, centre, far, even, 6) for centre in (at_noise, at_pair) for far in (6, 4)]
    found += [
        (nothing, 0, at_own, 0, steps, 6),
        (own, 6, at_middle, 0, even, 0),
        (between, 3, at_noise, 0, even, 6),
    ]
    found += [(noise, 0, at_middle, 0, steps, 3), (middle, 6, at_own, 6, even, 6)]
    return [(Gene(a, p), Gene(b, q), Gene(c, r), *rest) for a, p, b, q, c, r in found]


def _of_classes(classes: int) -> list[Vector]:
    """Even, with one class rare, in steps."""
    rare = [np.where(np.arange(classes) == code, SMALLEST, 1.0) for code in range(classes)]
    return [np.ones(classes), np.ones(classes), np.geomspace(SMALLEST, 1, classes), *rare]


def _linear(task: LinearTask, own: Vector, generator: np.random.Generator) -> list[Piece]:
    """Head, centre, weights of the classes, shift. Heads are scaled to reach 1; centres are points among the images."""
    head = task.head
    seen = head.view(task.features, np.zeros(head.features)).astype(np.float64)
    mine = seen[own] if len(own) else seen[:1]
    middle, pair = seen.mean(axis=0), mine[: 2 if len(mine) > 1 else 1].mean(axis=0)
    labels = task.dataset.labels if task.dataset.labels.ndim == 1 else task.dataset.labels[:, 0]
    classes = [seen[labels == code].mean(axis=0) for code in np.unique(labels)]
    noise, far = generator.normal(size=head.features), generator.choice([-1.0, 1.0], head.features)
    points = [_flat(seen, generator), middle, mine[0], classes[0] - classes[-1], noise, far]
    centred = head.view(task.features, middle).astype(np.float64)
    points += [
        pair,
        mine[0] - mine[-1],
        _flat(centred, generator),
        *(_flat(seen, generator) for _ in range(3)),
    ]
    logits, one = head.head.logits, np.zeros(head.features)
    rows = [_reaching_1(point) for point in points]
    trained = [np.zeros(head.trained), *(np.tile(row, logits) for row in rows), np.zeros(head.trained)]
    if logits > 1:
        trained += [np.concatenate([row, *[one] * (logits - 1)]) for row in rows[:4]]
        trained += [np.concatenate([row, -row, *[one] * (logits - 2)]) for row in rows[:4]]
    moved = head.shifts
    shifts = [np.zeros(moved), np.zeros(moved), np.ones(moved), np.eye(moved)[0]]
    ends = np.cumsum([head.features, head.classes, moved, head.trained])
    return [
        Piece(slice(int(ends[2]), int(ends[3])), trained),
        Piece(slice(0, int(ends[0])), [one, *points]),
        Piece(slice(int(ends[0]), int(ends[1])), _of_classes(head.classes), positive=True, reciprocal=True),
        Piece(slice(int(ends[1]), int(ends[2])), shifts),
    ]


def _reaching_1(vector: Vector) -> Vector:
    return vector / np.abs(vector).max(initial=1e-300)


def _flat(view: Vector, generator: np.random.Generator) -> Vector:
    """Weights that are orthogonal to all features but for rounding, if there are any; else to the first ones."""
    most = max(1, view.shape[1] // 2)
    for rows in (view, view[:most]):
        weights = generator.normal(size=view.shape[1])
        axes, sizes, _ = np.linalg.svd(rows.T, full_matrices=False)
        axes = axes[:, sizes > 1e-12 * sizes[0]]
        if axes.shape[1] < view.shape[1]:
            break
    for _ in range(3):
        weights -= axes @ (axes.T @ weights)
    return weights


def _network(model: Any, generator: np.random.Generator) -> list[Piece]:
    """Each trained tensor, the offset of the logits, and the centre of the features where there is one."""
    pieces, start = [], model.classes + (model.parameters - model.classes - model.trained)
    initial, place = model.initial(), 0
    sizes = [one.numel() for one in model.body.parameters() if one.requires_grad]
    for size in sizes:
        own = initial[place : place + size]
        noise, far = generator.normal(size=size), generator.choice([-1.0, 1.0], size)
        part = slice(start + place, start + place + size)
        pieces.append(Piece(part, [own, noise, own, own, far, np.ones(size), np.zeros(size)]))
        place += size
    if start > model.classes:
        width = start - model.classes
        centre = [np.zeros(width), generator.normal(size=width), np.ones(width)]
        pieces.append(Piece(slice(model.classes, start), centre))
    offsets = [
        np.zeros(model.classes),
        np.zeros(model.classes),
        np.ones(model.classes),
        np.eye(model.classes)[0],
    ]
    pieces.append(Piece(slice(0, model.classes), offsets))
    return pieces
