"""Features by a process of their own: the same numbers, no torch in the caller, and no other end where it fails."""

import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.deploy.hospital import study_text, write_images

from fedveil.data import load
from fedveil.study import Study
from fedveil.study.features import apart
from fedveil.study.features.apart import stored_apart
from fedveil.study.pipeline import make_task
from fedveil.study.progress import Silent

CALLER = """
import sys
from functools import partial
import numpy as np
from fedveil.data import load
from fedveil.study import Study
from fedveil.study.pipeline import make_task
from fedveil.study.progress import Silent
source, marker, out, text = sys.argv[1:]
task = make_task(Study.parse(text), load(source, image_size=8, test_fraction=0.0), Silent(), partial(open, marker, "w"))
everything = np.arange(len(task.dataset))
task.learner(everything)
task.probabilities(np.zeros(task.model.parameters), everything)
np.savez(out, features=task.features[everything], degraded=task.degraded[everything])
print("torch" in sys.modules)
"""


class Steps(Silent):
    def __init__(self) -> None:
        self.count = 0

    def advance(self, count: int = 1, note: str = "") -> None:
        self.count += count


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 images, and an empty cache."""
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / "cache"))
    return write_images(tmp_path / "images.npz", 40, seed=1)


def test_the_caller_gets_the_same_features_and_never_loads_torch(images, tmp_path, monkeypatch):
    text, marker, out = study_text(source=str(images)), tmp_path / "inside", tmp_path / "out.npz"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CALLER, str(images), str(marker), str(out), text],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "False\n", done.stdout + done.stderr
    assert marker.exists(), "it was computed inside the context"
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / "other"))
    here = make_task(Study.parse(text), load(str(images), image_size=8, test_fraction=0.0), Silent())
    everything = np.arange(40)
    with np.load(out) as found:
        np.testing.assert_array_equal(found["features"], here.features[everything])
        np.testing.assert_array_equal(found["degraded"], here.degraded[everything])


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process looks as if it had not loaded torch."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def parts(images: Path) -> tuple[Study, object]:
    return Study.parse(study_text(source=str(images))), load(str(images), image_size=8, test_fraction=0.0)


def test_progress_is_told_and_only_lengths_come_back(images, without_torch):
    steps = Steps()
    lengths = stored_apart(*parts(images), steps, nullcontext)
    assert len(lengths) == 2
    assert len(set(lengths)) == 1
    assert steps.count == 40


@pytest.mark.parametrize(
    "program",
    ["exit({} - {})", "import os; os._exit(0 * {} * {})", "import os; os.write({}, b'nonsense' + b'' * {})"],
)
def test_a_process_that_fails_leaves_the_work_to_the_caller(images, without_torch, monkeypatch, program):
    monkeypatch.setattr(apart, "_PROGRAM", program)
    assert stored_apart(*parts(images), Silent(), nullcontext) is None


@pytest.mark.parametrize("said", ["null", "{{}}", "[null]", "[[1]]", "[]", "1e999"])
def test_whatever_the_process_says_the_work_is_done(images, without_torch, monkeypatch, said):
    say = f"from multiprocessing.connection import Connection as C; C({{}}).send_bytes(b'{said}'); 0 * {{}}"
    monkeypatch.setattr(apart, "_PROGRAM", say)
    assert stored_apart(*parts(images), Silent(), nullcontext) is None


def test_data_that_cannot_be_sent_is_computed_by_the_caller(images, without_torch):
    study, dataset = parts(images)
    assert stored_apart(study, dataset, Silent(), lambda: nullcontext()) is None  # a context without a name


def test_progress_that_stops_the_work_is_heard(images, without_torch):
    class Stopped(Exception):
        pass

    class Stops(Silent):
        def advance(self, count: int = 1, note: str = "") -> None:
            raise Stopped

    with pytest.raises(Stopped):
        stored_apart(*parts(images), Stops(), nullcontext)


def test_a_context_that_cannot_be_entered_leaves_the_work_to_the_caller(images, tmp_path, without_torch):
    inside = partial(open, tmp_path / "missing" / "file", "w")
    assert stored_apart(*parts(images), Silent(), inside) is None


def test_what_the_process_could_not_store_is_computed_by_the_caller(
    images, without_torch, monkeypatch, tmp_path
):
    """As on a full disk, or for an image that a view fails on: its row is the caller's, and in no cache."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / "file" / "cache"))
    study, dataset = parts(images)
    task = make_task(study, dataset, Silent(), nullcontext)
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / "other"))
    here = make_task(study, dataset, Silent())
    everything = np.arange(40)
    np.testing.assert_array_equal(task.features[everything], here.features[everything])
