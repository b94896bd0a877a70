"""What the machine does to an encoder's processes decides nothing about an image, and their answers are not trusted."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.learning.encoders import hostile
from tests.learning.encoders.graphs import exported_file, images
from tests.learning.encoders.test_confined import Endless, unexamined

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.external import External, Store, processes

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("FEDVEIL_ENCODERS", str(tmp_path / "encoders"))
    return Store()


def with_ended_processes(encoder: External) -> processes.Processes:
    """Its processes, of which one has seen no image and has ended, as it does when idle."""
    found = encoder._processes()
    found.check()
    for process in found._free:
        process._process.kill()
        process._line.poll(None)
    return found


def test_a_process_that_ended_before_its_first_image_is_no_failure_of_the_image(store: Store) -> None:
    encoder, stack = unexamined(exported_file(), store), images(1)
    found = with_ended_processes(encoder)
    features = found(torch.from_numpy(stack)).numpy()
    np.testing.assert_array_equal(features, encoder(stack))


def test_a_process_that_cannot_be_started_is_an_error_not_zeros(store: Store) -> None:
    encoder = unexamined(exported_file(), store)
    found = with_ended_processes(encoder)
    (store.folder / encoder.spec.sha256).unlink()
    with pytest.raises(InvalidValue, match="is not registered here"):
        found(torch.from_numpy(images(1)))


def test_a_process_that_the_machine_ends_is_an_error_not_zeros(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does when all processes together need more memory than there is."""
    real = processes._Process.features

    def killed(process: processes._Process, image: np.ndarray) -> np.ndarray:
        process._process.kill()
        return real(process, image)

    monkeypatch.setattr(processes._Process, "features", killed)
    with pytest.raises(InvalidValue, match=r"did not finish on this machine.*SIGKILL"):
        unexamined(exported_file(), store)(images(1))


def test_a_machine_that_is_too_slow_is_an_error_not_zeros(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "WALL_SECONDS", 0.2)
    with pytest.raises(InvalidValue, match="did not finish on this machine"):
        unexamined(exported_file(Endless().eval()), store, 6)(images(1))


def test_there_are_no_more_processes_than_processors(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    encoder, threads = unexamined(exported_file(), store), torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        encoder(images(12))
    finally:
        torch.set_num_threads(threads)
    assert len(encoder._processes()._free) == 1


def test_processes_end_with_the_one_that_forked_them(store: Store) -> None:
    encoder = unexamined(exported_file(), store)
    encoder.check()
    (process,) = encoder._processes()._free
    nursery = processes._nursery()._process
    nursery.kill()
    nursery.wait()
    assert process._line.poll(30)  # an idle one ends after 60 s, a hostile one never


@pytest.fixture
def hostile_processes(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Of `hostile`, which answers as the variable HOSTILE says."""
    root = str(Path(__file__).parents[3])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(processes, "_started", [])
    monkeypatch.setattr(processes.confined, "__name__", hostile.__name__)
    return monkeypatch


def test_an_answer_that_was_not_asked_for_is_not_the_next_images(
    store: Store, hostile_processes: pytest.MonkeyPatch
) -> None:
    content, stack = exported_file(), images(3)
    hostile_processes.setenv("HOSTILE", "twice")
    found = unexamined(content, store)._processes()
    one_by_one = [found(torch.from_numpy(image[None])).numpy()[0] for image in stack]
    hostile_processes.undo()
    hostile_processes.setenv("FEDVEIL_ENCODERS", str(store.folder))
    honest = unexamined(content, store, name="honest")(stack)
    np.testing.assert_array_equal(one_by_one, honest)


@pytest.mark.parametrize(
    "said", [json.dumps(["one", "two"]), json.dumps(5), json.dumps([1, 2, 3]), "[" * 9000]
)
def test_whatever_a_process_says_at_its_start_is_a_clear_error(
    said: str, store: Store, hostile_processes: pytest.MonkeyPatch
) -> None:
    hostile_processes.setenv("HOSTILE", said)
    with pytest.raises(InvalidValue, match="cannot be loaded"):
        unexamined(exported_file(), store, name=said[:20]).check()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no signal 40")
def test_a_process_that_ends_by_a_signal_without_a_name_has_failed(
    store: Store, hostile_processes: pytest.MonkeyPatch
) -> None:
    hostile_processes.setenv("HOSTILE", "signal")
    with pytest.raises(processes.Failed, match="the code -40"):
        unexamined(exported_file(), store, name="signal")._processes()(torch.from_numpy(images(1)))
