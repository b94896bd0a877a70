import numpy as np
import pytest

from fedveil.data import load, named_hospitals
from fedveil.data.phantom.patients import phantom
from fedveil.errors import InvalidValue


@pytest.fixture(scope="module")
def data():
    return load("phantom", image_size=32)


def test_it_is_called_synthetic(data):
    assert data.synthetic
    assert "ynthetic" in data.description
    assert all(name.startswith("synthetic-") for name in (*data.image_names, *data.patient_names))
    assert load("phantom:2", image_size=8).subset([0]).synthetic


def test_it_is_the_same_for_everybody(data):
    assert data.digest() == load("phantom", image_size=32, seed=99, test_fraction=0.5).digest()
    one, other = phantom(16, patients=50, seed=1), phantom(16, patients=50, seed=2)
    assert one.images.digest([0]) != other.images.digest([0])


def test_its_patients_have_several_images_and_keep_to_one_split(data):
    counts = np.bincount(data.patients)
    assert len(counts) == 1000
    assert (counts.min(), counts.max()) == (1, 4)
    assert not set(data.patients[data.train]) & set(data.patients[data.test])
    assert abs(len(set(data.patients[data.test].tolist())) - 200) <= 2
    assert 0.3 < data.labels.mean() < 0.6
    assert len(data.validation) == 0
    mixed = [patient for patient in range(1000) if len(set(data.labels[data.patients == patient])) == 2]
    assert mixed, "some patients recover"


def test_images_of_one_patient_resemble_each_other(data):
    """What images share beyond their average: more within a patient than between patients."""
    pixels = data.images.read(range(len(data))).reshape(len(data), -1)
    pixels -= pixels.mean(axis=0)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    same = np.flatnonzero(np.diff(data.patients) == 0)
    within = (pixels[same] * pixels[same + 1]).sum(axis=1).mean()
    between = (pixels[same] * pixels[(same + len(pixels) // 2) % len(pixels)]).sum(axis=1).mean()
    assert within > between + 0.3


def test_hospitals_differ_in_scanner_size_and_prevalence():
    data = load("phantom:5", image_size=32)
    parts = named_hospitals(data)
    assert sorted(parts) == ["eastfield", "northgate", "old-mill", "riverside", "st-brigid"]
    sizes = [len(rows) for rows in parts.values()]
    assert max(sizes) > 2 * min(sizes)
    prevalence = [data.labels[rows].mean() for rows in parts.values()]
    assert max(prevalence) > min(prevalence) + 0.15
    border = {name: data.images.read(rows)[:, 0, 12:20, 0].mean() for name, rows in parts.items()}
    assert border["eastfield"] < 0.05
    assert set(np.unique(data.sites[data.test])) == set(range(5))


def test_many_hospitals_have_different_names():
    data = load("phantom:20", image_size=8)
    assert len(set(data.site_names)) == len(named_hospitals(data)) == 20
    assert all(len(rows) for rows in named_hospitals(data).values())


@pytest.mark.parametrize("source", ["phantom:0", "phantom:101", "phantom:five", "phantom:-1"])
def test_impossible_numbers_of_hospitals_are_refused(source):
    with pytest.raises(InvalidValue, match="write phantom:5"):
        load(source, image_size=8)


def test_opacities_can_be_learned_but_not_perfectly(data):
    """Bright lungs alone tell something, and far from everything."""
    lungs = data.images.read(range(len(data)))[:, 0, 10:22, 6:26].mean(axis=(1, 2))
    order = np.argsort(np.argsort(lungs)) + 1
    ill = data.labels == 1
    auroc = (order[ill].sum() - ill.sum() * (ill.sum() + 1) / 2) / (ill.sum() * (~ill).sum())
    assert 0.6 < auroc < 0.97
