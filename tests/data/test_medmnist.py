import shutil
from hashlib import md5

import pooch
import pytest
import requests

from fedveil.data import MEDMNIST, fetch, load
from fedveil.errors import DataError, InvalidValue


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and a cache in the folder of the test."""

    def unreachable(url, **kwargs):
        raise requests.exceptions.ConnectionError(f"no route to {url}")

    monkeypatch.setattr(requests, "get", unreachable)
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path))
    pooch.get_logger().setLevel("ERROR")
    return tmp_path / "medmnist"


def test_every_two_dimensional_set_is_known():
    assert len(MEDMNIST) == 12
    sums = [total for known in MEDMNIST.values() for total in known.md5]
    assert len(set(sums)) == 48
    assert all(len(total) == 32 and int(total, 16) for total in sums)
    assert all(len(set(known.classes)) == len(known.classes) >= 2 for known in MEDMNIST.values())


def test_the_official_file_is_taken_from_the_cache_bit_for_bit(offline, shared_data):
    source = shared_data / "breastmnist" / "breastmnist.npz"
    assert md5(source.read_bytes()).hexdigest() == MEDMNIST["breastmnist"].md5[0]
    offline.mkdir()
    shutil.copy(source, offline)
    assert fetch("breastmnist") == offline / "breastmnist.npz"
    for name in ("breastmnist_28", "BreastMNIST"):
        data = load(f"medmnist:{name}", image_size=28, positive=["malignant"])
        assert data.classes == ("normal, benign", "positive")
        assert [len(part) for part in (data.train, data.validation, data.test)] == [546, 78, 156]
        assert data.labels[data.train].sum() == 147
        assert not data.patients_known


@pytest.mark.parametrize(
    ("name", "size", "file"),
    [
        ("pathmnist", 20, "pathmnist.npz"),
        ("pathmnist", 28, "pathmnist.npz"),
        ("octmnist", 64, "octmnist_64.npz"),
        ("octmnist", 100, "octmnist_128.npz"),
        ("chestmnist", 500, "chestmnist_224.npz"),
        ("dermamnist_64", 224, "dermamnist_64.npz"),
    ],
)
def test_offline_it_says_what_to_place_where(offline, name, size, file):
    with pytest.raises(DataError) as caught:
        load(f"medmnist:{name}", image_size=size)
    message = str(caught.value)
    assert str(offline / file) in message
    assert f"download https://zenodo.org/records/10519652/files/{file}?download=1" in message
    known = MEDMNIST[name.partition("_")[0]]
    assert (
        known.md5[
            (".npz", "_64.npz", "_128.npz", "_224.npz").index(file.removeprefix(name.partition("_")[0]))
        ]
        in message
    )


def test_a_file_with_another_sum_is_not_used(offline):
    offline.mkdir()
    (offline / "breastmnist.npz").write_bytes(b"something else")
    with pytest.raises(DataError, match="is missing or incomplete at"):
        load("medmnist:breastmnist", image_size=28)


@pytest.mark.parametrize("name", ["brestmnist", "organmnist3d", "breastmnist_32", ""])
def test_unknown_sets_are_refused(offline, name):
    with pytest.raises(InvalidValue, match=r"the MedMNIST set .* is unknown; the sets are pathmnist"):
        load(f"medmnist:{name}")
