"""The short search finds every fault that earlier versions had, once it is planted again."""

import pytest
from tests.neighbours.planted import PLANTED, look_for
from tests.neighbours.test_hunt import SEED


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name):
    found = look_for(PLANTED[name], SEED, stop=True)
    assert found is not None, f"nothing shows that {PLANTED[name].words}"
    assert not found.sound
