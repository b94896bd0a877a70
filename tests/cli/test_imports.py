"""What commands load: each is run in full, and none waits for packages that it does not use."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tests.deploy.hospital import WHO, make_offer, set_up

from fedveil.deploy.identity import Identity
from fedveil.deploy.site.approvals import Studies

SLOW = ("torch", "sklearn", "scipy", "dp_accounting", "matplotlib", "pydicom", "pooch")
PRICED = ("torch", "sklearn", "dp_accounting", "matplotlib", "pydicom", "pooch")
"""For commands that compute an epsilon, which needs scipy's special functions."""
PROGRAM = """
import sys
from fedveil.cli import main
sys.argv = ["fedveil", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    print("exit code", end.code, file=sys.stderr)
print([name for name in {names} if name in sys.modules], file=sys.stderr)
"""
PERSON = ("--by", WHO["by"], "--role", WHO["role"])


def loaded(names: tuple[str, ...], *words: str, code: int = 0) -> list[str]:
    """Which of these packages a command has loaded when it ends with this exit code."""
    program = [sys.executable, "-c", PROGRAM.format(names=repr(names)), *words]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert f"exit code {code}" in done.stderr, done.stdout + done.stderr
    return list(ast.literal_eval(done.stderr.splitlines()[-1]))


@pytest.fixture
def site(tmp_path: Path) -> tuple[str, str]:
    """A hospital's folder with a study that waits for a decision, and the study's digest."""
    coordinator = Identity.create(tmp_path / "coordinator.key")
    folder, offer = set_up(tmp_path, coordinator), make_offer(tmp_path)
    Studies(folder / "studies").add(offer)
    return str(folder), offer.agreement().digest


def test_commands_that_price_nothing_load_no_slow_package(tmp_path, site):
    folder, digest = site
    for words in (
        ("init", str(tmp_path / "study.toml")),
        ("site", "init", str(tmp_path / "new"), "--name", "north"),
        ("federation", "init", str(tmp_path / "lungs"), "--hospital", "north", "--address", "fl.example.org"),
        ("ledger", "verify", f"{folder}/ledger.jsonl"),
        ("site", "decline", digest, folder, *PERSON, "--yes", "--reason", "no legal basis"),
    ):
        assert loaded(SLOW, *words) == [], words


def test_commands_that_state_an_epsilon_load_what_computes_it_and_no_more(site):
    folder, digest = site
    approve = ("site", "approve", digest, folder, *PERSON, "--yes", "--reason", "agreed")
    assert loaded(PRICED, "site", "status", folder, code=2) == []
    assert loaded(PRICED, "site", "studies", folder) == []
    assert loaded(PRICED, *approve) == []
    assert loaded(PRICED, "site", "statement", "toy", folder, "--out", f"{folder}/signed") == []


def test_what_waits_for_hospitals_holds_neither_torch_nor_charts():
    program = (
        "import sys, fedveil.deploy.site.service, fedveil.deploy.coordinator.runner; "
        "import fedveil.deploy.flower.carrier; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert not {"torch", "matplotlib", "sklearn"} & set(done.stdout.split()), done.stderr
    assert "flwr" in done.stdout.split()
