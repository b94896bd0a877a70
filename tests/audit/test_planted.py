"""An audit finds planted faults: here the fast ones; all twenty, with controls, in benchmarks/planted_faults.py."""

import contextlib
import logging

import numpy as np
import pytest
from tests.audit.planted import FAULTS

QUICK = [name for name, fault in FAULTS.items() if fault.quick]
CONTROLS = ("half_the_noise", "kept_seed")
NEVER = 1 - 1e-6
"""Confidence at which a sound hospital is suspected once in a million runs of this test."""


@pytest.fixture(autouse=True)
def _real_images(shared_data, monkeypatch):
    monkeypatch.setenv("FEDVEIL_DATA", str(shared_data))


def test_there_are_twenty_faults() -> None:
    assert len(FAULTS) == 20
    assert len({fault.words for fault in FAULTS.values()}) == 20


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_can_be_planted_in_the_product_as_it_is(name: str, monkeypatch) -> None:
    """A patch of what was renamed since would audit a product that answers nothing, or nothing but noise."""

    def failed(said: str, *words: object, **_: object) -> None:
        raise AssertionError(said % words)

    monkeypatch.setattr(logging.getLogger("fedveil.site"), "error", failed)
    with contextlib.ExitStack() as stack:
        FAULTS[name].plant(stack)
        look = FAULTS[name].look(stack)
        for one in (look.neighbours.first, look.neighbours.second):
            # Noise on a coarse grid is often 0; an answer that was declined always is.
            assert any(np.any(look.mechanism(one)) for _ in range(50))


@pytest.mark.parametrize("name", QUICK)
def test_an_audit_finds_the_fault(name: str) -> None:
    found = FAULTS[name].audit()
    assert found.violated, str(found)


@pytest.mark.parametrize("name", CONTROLS)
def test_the_same_audit_finds_nothing_without_the_fault(name: str) -> None:
    found = FAULTS[name].audit(planted=False, confidence=NEVER)
    assert not found.violated, str(found)
