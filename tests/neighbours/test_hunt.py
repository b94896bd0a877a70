"""A short search finds no cohort and no parameters under which one unit moves a sum further than noise allows."""

import functools

import pytest
from tests.neighbours.hunt import collect
from tests.neighbours.kinds import KINDS
from tests.neighbours.search import Found, search

SEED = 1
SHORT = [name for name, kind in KINDS.items() if not kind.slow]


@functools.cache
def searched(name: str, trial: int) -> tuple[Found, ...]:
    """One cohort of the short search."""
    return tuple(search(KINDS[name], SEED, trial))


@pytest.mark.parametrize("name", SHORT)
def test_no_move_beyond_the_bound_is_found(name):
    for trial in range(KINDS[name].cohorts):
        for found in searched(name, trial):
            assert found.sound, found


def test_the_search_comes_near_the_bound():
    """A search that moved nothing would find nothing."""
    found = [one for trial in range(KINDS["pixels"].cohorts) for one in searched("pixels", trial)]
    moved = {release: one.moved.moved for (_, release), one in collect(found).items()}
    assert moved["training"] > 0.999
    assert min(moved["statistics"], moved["calibration"]) > 0.7


@pytest.mark.parametrize("name", ["pixels, files", "averaging, sampled", "answers"])
def test_a_search_is_repeated_by_its_seed(name):
    assert tuple(search(KINDS[name], SEED, 0)) == searched(name, 0)
