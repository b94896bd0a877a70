import logging
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from tests.data.features import one_view

from fedveil.data import FeatureCache, cache_folder

DIGESTS = [f"{number:032x}" for number in range(6)]


class Extractor:
    """Features that say which image they are of, and a list of what was asked for."""

    def __init__(self, digests):
        self.digests, self.asked = digests, []

    def __call__(self, indices):
        self.asked.append(indices.tolist())
        return np.array([[int(self.digests[index], 16), 0.5, -1] for index in indices], np.float32)


def get(cache, digests, key="extractor 1"):
    extractor = Extractor(digests)
    features = one_view(cache, key, digests, extractor)
    assert len(features) == len(digests)
    features = np.asarray(features)
    np.testing.assert_array_equal(features[:, 0], [int(digest, 16) for digest in digests])
    assert features.dtype == np.float32
    return extractor.asked


def test_what_is_known_is_not_computed_again(tmp_path):
    assert get(FeatureCache(tmp_path), DIGESTS) == [[0, 1, 2, 3, 4, 5]]
    assert get(FeatureCache(tmp_path), DIGESTS) == []


def test_subsets_and_supersets_reuse_rows_in_any_order(tmp_path):
    cache = FeatureCache(tmp_path)
    get(cache, DIGESTS[1:4])
    assert get(cache, [DIGESTS[3], DIGESTS[1]]) == []
    assert get(cache, DIGESTS[::-1]) == [[0, 1, 5]]
    assert get(cache, DIGESTS) == []


def test_equal_images_are_computed_once(tmp_path):
    assert get(FeatureCache(tmp_path), [DIGESTS[2], DIGESTS[0], DIGESTS[2]]) == [[0, 1]]


def test_keys_are_kept_apart(tmp_path):
    cache = FeatureCache(tmp_path)
    get(cache, DIGESTS, "extractor 1")
    assert get(cache, DIGESTS, "extractor 2") == [[0, 1, 2, 3, 4, 5]]


def test_no_images_need_no_work(tmp_path):
    assert one_view(FeatureCache(tmp_path), "k", [], Extractor([])).shape[0] == 0


def test_an_interrupted_run_keeps_what_it_had(tmp_path, monkeypatch):
    monkeypatch.setattr("fedveil.data.cache.ROWS_PER_FILE", 2)
    calls = []

    def interrupted(indices):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(indices)
        return Extractor(DIGESTS)(indices)

    with pytest.raises(KeyboardInterrupt):
        one_view(FeatureCache(tmp_path), "extractor 1", DIGESTS, interrupted)
    assert get(FeatureCache(tmp_path), DIGESTS) == [[4, 5]]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
@pytest.mark.parametrize("place", [0, 5, 40, 60, -1])
def test_a_damaged_file_is_computed_again(tmp_path, caplog, damage, place):
    get(FeatureCache(tmp_path), DIGESTS)
    (file,) = tmp_path.rglob("*.npy")
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[place] ^= 1
    file.write_bytes({"flip": content, "cut": content[:place], "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert get(FeatureCache(tmp_path), DIGESTS) == [[0, 1, 2, 3, 4, 5]]
    assert "recomputing the content of" in caplog.text
    assert get(FeatureCache(tmp_path), DIGESTS) == []


def test_a_full_disk_costs_the_cache_but_not_the_run(tmp_path, caplog, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with caplog.at_level(logging.WARNING):
        assert get(FeatureCache(tmp_path), DIGESTS) == [[0, 1, 2, 3, 4, 5]]
    assert "No space left on device" in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_made_costs_the_cache_but_not_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert get(FeatureCache(tmp_path / "file" / "features"), DIGESTS) == [[0, 1, 2, 3, 4, 5]]
    assert "features are not stored" in caplog.text


def test_features_are_private_to_the_user(tmp_path):
    get(FeatureCache(tmp_path / "features"), DIGESTS)
    (file,) = tmp_path.rglob("*.npy")
    assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE(file.parent.stat().st_mode) & 0o077 == 0


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FEDVEIL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "fedveil"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "fedveil"
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fedveil"
    monkeypatch.setenv("FEDVEIL_CACHE", os.fspath(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    get(FeatureCache(), DIGESTS)
    assert list((tmp_path / "own" / "features").rglob("*.npy"))
