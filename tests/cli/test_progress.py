"""Progress where there is no terminal: lines with the time left, and none for what is soon done."""

import pytest

from fedveil.cli.output import progress as progress_module
from fedveil.cli.output.console import errors
from fedveil.cli.output.progress import Bars


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_a_long_stage_says_how_far_it_is_and_how_long_it_will_take(clock, capfd):
    assert not errors.is_terminal
    with Bars() as bars:
        bars.stage("features", 100_000, done=20_000)
        for _ in range(8):
            clock[0] += 30
            bars.advance(10_000)
        bars.stage("training", 60)
        for number in range(3):
            clock[0] += 10
            bars.advance(note=f"epsilon {number}")
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "features: 30,000 of 100,000, 4 min left"  # 210 s
    assert lines[7] == "features: 100,000 of 100,000, 0 s left"
    assert lines[8] == "training: 2 of 60, 10 min left, epsilon 1"  # 580 s
    assert len(lines) == 9


def test_a_short_stage_and_a_quiet_run_print_nothing(clock, capfd):
    for quiet in (False, True):
        with Bars(quiet=quiet) as bars:
            bars.stage("features", 10)
            for _ in range(10):
                clock[0] += 100 if quiet else 1
                bars.advance()
    assert capfd.readouterr().err == ""
