"""A short search finds no cohort and no parameters under which one unit moves a sum further than noise allows."""

import pytest
from tests.neighbours.hunt import collect
from tests.neighbours.kinds import KINDS
from tests.neighbours.search import search

SEED = 1
SHORT = [name for name, kind in KINDS.items() if not kind.slow]


@pytest.mark.parametrize("name", SHORT)
def test_no_move_beyond_the_bound_is_found(name):
    for trial in range(KINDS[name].cohorts):
        for found in search(KINDS[name], SEED, trial):
            assert found.sound, found


def test_the_search_comes_near_the_bound():
    """A search that moved nothing would find nothing."""
    found = [one for trial in range(3) for one in search(KINDS["pixels"], SEED, trial)]
    moved = {release: one.moved.moved for (_, release), one in collect(found).items()}
    assert moved["training"] > 0.999
    assert min(moved["statistics"], moved["calibration"]) > 0.7


@pytest.mark.parametrize("name", ["pixels, files", "averaging, sampled", "answers"])
def test_a_search_is_repeated_by_its_seed(name):
    first, second = (list(search(KINDS[name], SEED, 2)) for _ in range(2))
    assert first == second
