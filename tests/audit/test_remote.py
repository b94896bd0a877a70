"""Mechanisms in a process of their own, as `fedveil audit --mechanism` runs them."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedveil.audit.claims import EpsilonClaim
from fedveil.audit.mechanisms.remote import audit_place
from fedveil.cli.main import app
from fedveil.errors import InvalidValue

CODE = """
import os
import random

fresh = random.SystemRandom()
fixed = random.Random(7)

def sound(vectors):
    print("nothing that is printed is an answer")
    return sum(max(-1.0, min(1.0, v[0])) for v in vectors) + fresh.gauss(0, 4)

def seeded(vectors):
    return sum(max(-1.0, min(1.0, v[0])) for v in vectors) + fixed.gauss(0, 4)

def unclipped(vectors):
    return [sum(v[0] for v in vectors) + fresh.gauss(0, 4)]

def failing(vectors):
    raise RuntimeError("a broken image")

def ending(vectors):
    os._exit(5)

def rows():
    return [("one row more", [1.0], [1.0, 50.0])]

def of_rows(rows):
    return sum(rows) + fresh.gauss(0, 1)

number = 5
"""
ONE = EpsilonClaim(1.0, 1e-5)
NEVER = 1 - 1e-6


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "audited_code.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)


def test_noise_that_is_the_same_after_each_start_is_found() -> None:
    found = audit_place("audited_code:seeded", EpsilonClaim(8.0, 1e-5), runs=200, dimension=1)
    assert found.replayed
    assert found.violated
    assert "subtract" in str(found)


def test_a_sound_mechanism_is_not_refuted_whatever_it_prints() -> None:
    found = audit_place("audited_code:sound", ONE, runs=200, confidence=NEVER)
    assert not found.violated
    assert not found.replayed


def test_inputs_may_come_from_the_same_module() -> None:
    found = audit_place("audited_code:of_rows", ONE, neighbours="audited_code:rows", runs=200)
    assert found.violated
    assert found.neighbours == "one row more"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("audited_code:failing", "a broken image"),
        ("audited_code:ending", "exit code 5"),
        ("audited_code:number", "not callable"),
        ("audited_code:absent", "absent"),
        ("no_such_module:f", "no_such_module"),
        ("audited_code", "package.module:function"),
    ],
)
def test_what_cannot_be_run_is_one_clear_error(place: str, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        audit_place(place, ONE, runs=200)


def test_an_interpreter_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidValue, match="nowhere/python"):
        audit_place("audited_code:sound", ONE, python="/nowhere/python")


def run(*arguments: str):
    return CliRunner().invoke(app, ["audit", "--mechanism", *arguments, "--runs", "200"])


def test_the_command_prints_a_verdict_and_exits_with_1_where_a_claim_is_refuted() -> None:
    found = run("audited_code:unclipped", "--epsilon", "1", "--json", "--python", sys.executable)
    assert found.exit_code == 1
    assert json.loads(found.stdout)["violated"]
    found = run("audited_code:sound", "--mu", "0.5", "--confidence", str(NEVER))
    assert found.exit_code == 0
    assert "No violation" in found.output


@pytest.mark.parametrize("claim", [(), ("--epsilon", "1", "--mu", "1"), ("--mu", "-1"), ("--epsilon", "inf")])
def test_a_command_without_one_clear_claim_is_refused(claim: tuple[str, ...]) -> None:
    found = run("audited_code:sound", *claim)
    assert found.exit_code == 2
    assert "Traceback" not in found.output
