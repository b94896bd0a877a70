"""What a person does: runs the program, in process or as a program of its own, in a folder with a small study."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tests.study.conftest import write_images
from typer.testing import CliRunner

from fedveil.cli import app
from fedveil.cli.output.console import console

SMALL = """
[study]
name = "small"
[data]
source = "images.npz"
image_size = 16
[model]
features = "pixels"
[training]
rounds = 4
[privacy]
epsilon = 20.0
delta = 1e-3
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(console, "_width", 200)  # otherwise as it was when the console was made
    write_images(tmp_path / "images.npz")
    (tmp_path / "study.toml").write_text(SMALL)


def fedveil(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result, *words):
    """A user's mistake: exit code 2, one line, no traceback."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    line = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert all(word in line for word in words), line
    return line


def program(*arguments, limit: int | None = None):
    """The installed program in a process of its own, whose files cannot grow beyond ``limit`` bytes."""

    def constrain() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [Path(sys.executable).parent / "fedveil", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONWARNINGS": "default", "OMP_NUM_THREADS": "1"},
        preexec_fn=constrain,
    )
