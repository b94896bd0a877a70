"""Whatever one image does to a reader, a network or the cache, the features of all others stay bit for bit."""

import errno
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.dicom_files import odd_dicom

import fedveil.data.formats.image_files as files
from fedveil.data import FeatureCache, Options, load_usable
from fedveil.data.image_store import OddImages, _Around
from fedveil.study import Study
from fedveil.study.features.isolation import computed
from fedveil.study.pipeline import make_task
from fedveil.study.progress import Silent

COUNT, ODD = 20, 7
STUDY = Study.parse(
    """
[data]
source = "none"
classes = ["ill", "normal"]
channels = 1
image_size = 8
[model]
features = "pixels"
whitened = false
"""
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEDVEIL_FULL_HASHES", "1")
    return tmp_path / "cache"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Twenty images of as many patients; the one of patient 8 is that of patient 7 again."""
    rows = ["path,label,patient"]
    for number in range(COUNT):
        seed = ODD if number == ODD + 1 else number
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
        rows.append(f"{number:02}.png,{('ill', 'normal')[number % 2]},p{number}")
    (tmp_path / "set.csv").write_text("\n".join(rows))
    return tmp_path / "set.csv"


def usable(table: Path, study: Study = STUDY):
    options = Options.of({**study.data.public, "classes": ("ill", "normal"), "channels": 1})
    return load_usable(str(table), options, base=table.parent, need_patients=True)


def features(table: Path, study: Study = STUDY) -> np.ndarray:
    return np.asarray(make_task(study, usable(table, study), Silent()).features)


def others(rows: np.ndarray) -> np.ndarray:
    return np.delete(rows, ODD, axis=0)


def test_a_file_that_is_not_finite_leaves_the_features_of_others(table: Path) -> None:
    study = STUDY.with_changes({"model": {"features": "scattering"}, "data": {"image_size": 16}})
    before = features(table, study)
    odd_dicom(table.parent / f"{ODD:02}.png", "nan")
    after = features(table, study)
    np.testing.assert_array_equal(after, others(before))


class Broken(_Around):
    """A reader that makes NaN of one image, of whatever format that may be."""

    def digest(self, indices: Sequence[int]) -> list[str]:
        return self._base.digest(indices)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        pixels = self._base.read(indices)
        pixels[np.asarray(indices) == ODD] = np.nan
        return pixels


@pytest.mark.parametrize("features", ["pixels", "scattering"])
@pytest.mark.parametrize("guarded", [True, False])
def test_no_reader_can_affect_others_by_what_is_not_a_number(
    table: Path, features: str, guarded: bool
) -> None:
    study = STUDY.with_changes({"model": {"features": features}, "data": {"image_size": 16}})
    data = usable(table, study)
    broken = Broken(data.images)
    whole = np.asarray(make_task(study, data, Silent()).features)
    FeatureCache()._folder.rename(table.parent / "elsewhere")
    data = replace(data, images=OddImages(broken) if guarded else broken)
    found = np.asarray(make_task(study, data, Silent()).features)
    np.testing.assert_array_equal(others(found), others(whole))
    assert np.isfinite(found).all()


def failing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Reading the file fails, as on a share that is gone for a moment."""
    real = files.read_image

    def flaky(path: Path, reading: object = None) -> object:
        if Path(path).name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, reading)

    monkeypatch.setattr(files, "read_image", flaky)


def test_a_read_error_that_passes_leaves_no_features(
    table: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Patient 8 has the same image: neither may become black with the other, nor be repaired by it."""
    with monkeypatch.context() as broken, caplog.at_level(logging.ERROR, "fedveil.site"):
        failing(broken, f"{ODD:02}.png")
        during = features(table)
    assert "counts as black" in caplog.text
    after = features(table)
    assert (during[ODD] == -0.5).all()
    np.testing.assert_array_equal(others(during), others(after))
    assert (during[ODD + 1] != -0.5).any()
    np.testing.assert_array_equal(after[ODD], after[ODD + 1])


def test_an_image_that_could_not_be_hashed_is_black_for_its_features_too(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pixels, read a moment later, were stored as those of every image that cannot be hashed."""
    real = files._content
    hashing = files.file_digests
    active: list[bool] = []

    def hashed(*arguments: object) -> list[str]:
        active.append(True)
        try:
            return hashing(*arguments)
        finally:
            active.pop()

    def flaky(path: Path) -> bytes:
        if path.name == f"{ODD:02}.png" and active:
            raise files.unusable(path, "it cannot be opened", "it must be readable", "correct it")
        return real(path)

    data = usable(table)
    monkeypatch.setattr(files, "_content", flaky)
    monkeypatch.setattr(files, "file_digests", hashed)
    found = np.asarray(make_task(STUDY, data, Silent()).features)
    assert (found[ODD] == -0.5).all()
    assert (others(found) != -0.5).any(1).all()


@pytest.mark.parametrize("fault", ["raises", "another length", "another number of rows"])
def test_a_computation_that_fails_on_one_image_leaves_the_others(table: Path, fault: str) -> None:
    data = usable(table)
    odd = data.images.read([ODD])

    def change(images: np.ndarray) -> np.ndarray:
        rows = images.reshape(len(images), -1)
        if not (images == odd).all((1, 2, 3)).any():
            return rows
        if fault == "raises":
            raise RuntimeError("index out of range")
        return rows[:, :-1] if fault == "another length" else rows[:-1]

    (found,) = computed({"view": change}, data, Silent())
    (again,) = computed({"view": lambda images: images.reshape(len(images), -1)}, data, Silent())
    twins = [ODD, ODD + 1]
    assert not np.asarray(found)[twins].any()
    assert np.asarray(again)[twins].any()
    np.testing.assert_array_equal(np.delete(found, twins, 0), np.delete(again, twins, 0))


def test_what_concerns_no_image_is_an_error_however_much_is_stored(table: Path) -> None:
    data = usable(table)
    computed({"view": lambda images: images.reshape(len(images), -1)}, data, Silent())

    def missing(images: np.ndarray) -> np.ndarray:
        raise FileNotFoundError("the weights are missing")

    with pytest.raises(FileNotFoundError, match="weights are missing"):
        computed({"view": missing}, data, Silent())
