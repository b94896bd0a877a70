"""How often a study reads its files: once on its first run, whatever number of views, and not at all on the next."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fedveil.data.formats import image_files, stamps
from fedveil.parallel import ahead
from fedveil.study import Silent, Study
from fedveil.study import pipeline as task_module
from fedveil.study.features import isolation as pipeline_module
from fedveil.study.pipeline import make_task
from fedveil.study.prepare import prepare


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stamps, "SETTLED", -1.0)


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    rows = []
    for number in range(24):
        pixels = generator.integers(0, 255, (20, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'ab'[number % 2]},p{number}")
    (tmp_path / "index.csv").write_text("path,label,patient\n" + "\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def reads(monkeypatch):
    """By file name how often its bytes were read, and how often it was decoded."""
    read, decoded = Counter(), Counter()
    content, decode = image_files._content, image_files.read_image
    monkeypatch.setattr(image_files, "_content", lambda path: (read.update([path.name]), content(path))[1])
    monkeypatch.setattr(
        image_files,
        "read_image",
        lambda path, reading: (decoded.update([path.name]), decode(path, reading))[1],
    )
    return read, decoded


def task_of(folder, **model):
    study = Study(
        data={"source": str(folder / "index.csv"), "image_size": 16, "sites": {"count": 2}},
        model=model or {"features": "pixels"},
        privacy={"delta": 1e-3},
    )
    prepared = prepare(study)
    return make_task(prepared.study, prepared.dataset, Silent())


def test_a_file_is_decoded_once_for_all_views_and_not_at_all_on_the_next_run(folder, reads):
    read, decoded = reads
    first = task_of(folder)
    assert first.degraded is not None
    assert set(decoded.values()) == {1}
    assert len(decoded) == 24
    assert set(read.values()) == {2}, "once for its hash, once for its pixels"
    read.clear()
    decoded.clear()
    again = task_of(folder)
    assert not decoded
    assert not read
    np.testing.assert_array_equal(np.asarray(again.features), np.asarray(first.features))
    np.testing.assert_array_equal(np.asarray(again.degraded), np.asarray(first.degraded))


def test_batches_do_not_change_features(folder, monkeypatch, tmp_path):
    first = np.asarray(task_of(folder).features)
    monkeypatch.setattr(pipeline_module, "BATCH", 5)
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / "another"))
    np.testing.assert_array_equal(np.asarray(task_of(folder).features), first)


def test_a_network_without_a_frozen_part_decodes_its_images_once(folder, reads):
    _, decoded = reads
    task = task_of(folder, network="cnn")
    rows = np.arange(len(task.dataset))
    expected = task.dataset.images.read(rows)
    decoded.clear()
    for _ in range(2):
        np.testing.assert_array_equal(task.images.read(rows[::-1]), expected[::-1])
    assert not decoded


def test_images_that_would_fill_the_disk_are_read_when_needed(folder, reads, monkeypatch):
    monkeypatch.setattr(task_module, "PIXELS_STORED", 1000)
    task = task_of(folder, network="cnn")
    assert task.images is task.dataset.images


def test_a_damaged_image_leaves_the_others_to_be_read_when_needed(folder, reads, caplog):
    content = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(content[: len(content) // 2])
    task = task_of(folder, network="cnn")
    assert task.images is task.dataset.images
    assert "decoded whenever they are read" in caplog.text


def test_an_error_while_reading_ahead_is_raised(folder):
    task_of(folder)
    images = prepare(
        Study(
            data={"source": str(folder / "index.csv"), "image_size": 16, "sites": {"count": 2}},
            privacy={"delta": 1e-3},
        )
    ).dataset.images
    (folder / "5.png").unlink()
    batches = [np.arange(3), np.arange(3, 9), np.arange(9, 12)]
    with pytest.raises(Exception, match="no such file"):
        list(ahead(images.read, batches))
