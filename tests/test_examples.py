"""Examples are run as people run them, each in a directory and a process of its own."""

import os
import subprocess
import sys

import pytest
from tests.conftest import PROJECT

EXAMPLES = {
    "first_study": ["epsilon 1.000 per patient", "report: first/report.html"],
    "own_data": ["on 332 images", "'opacity'", "from embeddings alone", "it holds against everyone outside"],
    "own_training_loop": ["epsilon 3.000 of 3 is spent", "accuracy on other patients: 0."],
    "three_hospitals": ["riverside: ", "epsilon 2.000", "epsilon inf, trust none: AUROC"],
}


def test_every_example_is_run():
    assert {path.stem for path in (PROJECT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_says_what_it_promises(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(PROJECT / "examples" / f"{name}.py")],
        cwd=tmp_path,
        env=os.environ | {"FEDVEIL_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    missing = [words for words in EXAMPLES[name] if words not in done.stdout]
    assert not missing, done.stdout
