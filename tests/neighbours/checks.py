"""Do two data sets that differ in one unit differ in their exact sums by more than the noise is for?

The parameters are fixed lists, those of a coordinator who knows every image; `hunt` searches for worse ones.
"""

from collections.abc import Iterator

import numpy as np
from tests.neighbours.harness import Opened, Vector, without_noise

from fedveil.federation import Release
from fedveil.learning import NetworkLearner
from fedveil.learning.models.network import ROUNDING
from fedveil.study.pipeline import LinearTask

EXACT = 1e-9
"""What rounding may move, as a part of the bound, where everything is summed in double precision."""
SINGLE = 1e-5
"""The same for a network, which sums some fifty images in single precision: far less than the 2e-3 that are kept."""
ORDERLY = 5
"""So many of a network's parameters are of one scale."""
LOCAL = 1e-7
"""The same where it is the difference of two parameter vectors, of numbers up to a million."""


def adversaries(
    release: Release, opened: Opened, gone: Vector, generator: np.random.Generator
) -> list[Vector]:
    """Parameters that a site accepts: finite, none beyond a million; ``gone`` are rows of the unit that leaves."""
    if release.parameters == 0:
        return [np.empty(0)]
    model = opened.task.model
    if isinstance(opened.task, LinearTask):
        found = list(_linear(opened.task, gone, generator))
    else:
        found = list(_network(model, generator))
    if release.query.part == "held-out":
        classes = model.classes
        priors = [np.ones(classes), generator.uniform(1e-6, 1e6, classes), np.geomspace(1e-6, 1, classes)]
        found = [np.concatenate([priors[i % 3], one]) for i, one in enumerate(found)]
    assert all(one.shape == (release.parameters,) and (np.abs(one) <= 1e6).all() for one in found)
    return found


def _linear(task: LinearTask, gone: Vector, generator: np.random.Generator) -> Iterator[Vector]:
    head = task.head
    seen = head.view(task.features, np.zeros(head.features)).astype(np.float64)
    some = gone if len(gone) else np.arange(1)
    point, middle, outside = seen[some[0]], seen.mean(axis=0), generator.uniform(-1e6, 1e6, head.features)
    size, logits, shifts = head.trained, head.head.logits, head.shifts
    aligned = np.resize(9e5 * point / np.abs(point).max(initial=1e-12), size)
    far = generator.choice([-1e6, 1e6], size)
    noise = generator.normal(size=size)

    def join(centre: Vector, weights: Vector, shift: Vector, trained: Vector) -> Vector:
        return np.concatenate([centre, weights, shift, trained])

    plain, even, still = np.zeros(head.features), np.ones(head.classes), np.zeros(shifts)
    skewed, lengths = np.geomspace(1e-6, 1e6, head.classes), (head.features, shifts, size)
    yield join(plain, even, still, np.zeros(size))
    yield join(middle, even, still, noise)
    yield join(point, skewed, still, aligned)
    yield join(plain, skewed[::-1], still, -aligned)
    yield join(outside, even, np.full(shifts, 1e6), far)
    yield join(middle, np.eye(head.classes)[0], np.full(shifts, -1e6), noise * 1e-300)
    for _ in range(4):
        parts = [
            size * generator.normal(size=n) for n, size in zip(lengths, _scales(generator, 3), strict=True)
        ]
        yield np.clip(
            join(parts[0], np.exp(generator.normal(0, 5, head.classes)), parts[1], parts[2]), -1e6, 1e6
        )
    # Weights under which every image's logit is nothing but rounding, and every decision its sign.
    for centre in (plain, middle):
        view = head.view(task.features, centre).astype(np.float64)
        yield join(centre, even, still, np.tile(_flat(view, generator), logits))


def _flat(view: Vector, generator: np.random.Generator) -> Vector:
    """Large weights that are orthogonal to all features, but for rounding."""
    weights = generator.normal(size=view.shape[1])
    left, sizes, _ = np.linalg.svd(view.T, full_matrices=False)
    left = left[:, sizes > 1e-12 * sizes[0]]
    for _ in range(3):
        weights -= left @ (left.T @ weights)
    return weights * (9e5 / np.abs(weights).max())


def _network(model, generator: np.random.Generator) -> Iterator[Vector]:
    start = model.join(None, model.initial())
    before = len(start) - model.trained

    def join(offset: float, trained: Vector) -> Vector:
        return np.concatenate([np.full(before, offset), trained])

    yield start
    yield np.zeros_like(start)
    yield join(0.0, generator.normal(size=model.trained))
    yield join(1e6, 1e3 * generator.normal(size=model.trained))
    yield join(-1e6, generator.uniform(-1e6, 1e6, model.trained))
    sizes = [one.numel() for one in model.body.parameters() if one.requires_grad]
    for _ in range(3):
        parts = [
            size * generator.normal(size=n)
            for n, size in zip(sizes, _scales(generator, len(sizes)), strict=True)
        ]
        yield np.clip(join(0.0, np.concatenate(parts)), -1e6, 1e6)


def _scales(generator: np.random.Generator, count: int) -> Vector:
    return 10 ** generator.uniform(-6, 6, count)


def check_neighbours(
    whole: Opened,
    less: Opened,
    releases: tuple[Release, ...],
    masked: tuple[Release, ...] = (),
    most: int | None = None,
) -> str:
    """No release moves by more than its bound, and nobody else's part of it moves at all; return who is gone.

    Args:
        whole, less: with and without one unit.
        releases: as admitted.
        masked: the same under secure aggregation, whose whole numbers have a sensitivity of their own.
        most: how many parameters are tried; all where None.
    """
    generator = np.random.default_rng(3)
    whole_numbers = {one.name: one.integer for one in masked if one.integer and not one.noise_inside}
    (gone,) = set(whole.owners()) - set(less.owners())
    counted = 0
    for release in map(without_noise, releases):
        tested = release.query.part == "held-out"
        rows = whole.test if tested else whole.train
        names, others = whole.names(rows), less.names(less.test if tested else less.train)
        assert sorted(others) == sorted({*names} - {gone}), "others changed sides"
        place = np.array([number for number, name in enumerate(names) if name == gone], dtype=np.int64)
        owners = whole.owners()
        own = np.array([row for row in rows if owners[row] == gone], dtype=np.int64)
        rounding = SINGLE if isinstance(whole.learner, NetworkLearner) else EXACT
        rounding = max(rounding, LOCAL) if release.noise_inside else rounding
        bound, moved_at_all, told = release.query.bound(release.mechanism.clip_norm), False, 0
        for number, parameters in enumerate(adversaries(release, whole, own, generator)[:most]):
            where = f"{release.name}, parameters {number}, without {gone}"
            (total, lost), (rest, lost_too) = whole.ask(release, parameters), less.ask(release, parameters)
            assert lost == lost_too, f"{where}: whether a sum is given up tells who is there"
            moved = total - rest
            assert np.linalg.norm(moved) <= bound * (1 + 1e-6), where
            if release.name in whole_numbers:
                _check_whole_numbers(moved, whole_numbers[release.name], where)
            if lost or not len(rows) or not len(others):
                continue
            told, moved_at_all = told + 1, moved_at_all or bool(moved.any())
            alone = whole.of_units(release, parameters, place)
            assert np.linalg.norm(alone) <= bound * (1 + 1e-6), where
            moved = -moved if release.noise_inside else moved
            # Layers of wildly different scales leave a network few digits: there, what is kept for rounding has to do.
            most_moved = ROUNDING if rounding == SINGLE and number >= ORDERLY else rounding
            assert np.linalg.norm(moved - alone) <= most_moved * bound, f"{where}: others moved"
            if most is None and number in (1, 2):
                _check_others(whole, less, release, parameters, (names, others), rounding * bound)
        assert len(place) or not moved_at_all, f"{release.name}: {gone} is in it"
        assert moved_at_all == (told > 0 and len(place) > 0), f"{release.name}: {gone} is not in it"
        counted += moved_at_all
    assert counted, f"{gone} is in no release at all"
    return gone


def check_alone(whole: Opened, releases: tuple[Release, ...], masked: tuple[Release, ...]) -> None:
    """All that a hospital sends stays within the bound of one unit, and is nothing where it is not drawn."""
    generator = np.random.default_rng(3)
    whole_numbers = {one.name: one.integer for one in masked if one.integer}
    for release in map(without_noise, releases):
        sums = []
        for number, parameters in enumerate(adversaries(release, whole, whole.train, generator)):
            where = f"{release.name}, parameters {number}"
            total, lost = whole.ask(release, parameters)
            assert np.linalg.norm(total) <= release.mechanism.clip_norm * (1 + 1e-6), where
            _check_whole_numbers(total, whole_numbers[release.name], where)
            sums.append(0.0 if lost else float(np.linalg.norm(total)))
            if not lost:
                assert not whole.of_units(release, parameters, np.array([], dtype=np.int64)).any()
        assert max(sums) > release.mechanism.clip_norm / 2, (
            f"{release.name}: no parameters came near the bound"
        )


def _check_others(
    whole: Opened,
    less: Opened,
    release: Release,
    parameters: Vector,
    names: tuple[list[str], list[str]],
    most: float,
) -> None:
    """Each of the others contributes what it did before, and samples of units hold those that were drawn."""
    before, after = names
    for name in after[:: max(1, len(after) // 4)]:
        one = whole.of_units(release, parameters, np.array([before.index(name)]))
        same = less.of_units(release, parameters, np.array([after.index(name)]))
        assert np.linalg.norm(one - same) <= most, f"{release.name}: {name} moved"
    half = after[::2]
    sample = less.of_units(release, parameters, np.array([after.index(name) for name in half]))
    again = whole.of_units(release, parameters, np.array([before.index(name) for name in half]))
    assert np.linalg.norm(sample - again) <= most, f"{release.name}: a sample of the others moved"
    nobody = whole.of_units(release, parameters, np.array([], dtype=np.int64))
    assert not nobody.any()


def _check_whole_numbers(moved: Vector, integer, where: str) -> None:
    """On the grid: what the noise of the honest shares is a multiple of, less what rounding to the grid needs."""
    sensitivity = np.sqrt(integer.shares) * integer.noise.std / integer.mechanism.noise_multiplier
    assert np.linalg.norm(moved) / integer.step <= sensitivity, f"{where}: on the grid"
