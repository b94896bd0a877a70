import numpy as np
import pytest

from fedveil.data import ArrayImages, Cohort, Dataset
from fedveil.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)


def dataset(**changes) -> Dataset:
    given = {
        "name": "six",
        "images": ArrayImages(PIXELS, 8),
        "labels": np.array([0, 1, 0, 1, 1, 0]),
        "patients": np.array([2, 2, 0, 1, 0, 2]),
        "patient_names": ("x", "y", "z"),
        "image_names": tuple("abcdef"),
        "classes": ("clear", "ill"),
        "sites": np.array([1, 1, 0, 0, 0, 1]),
        "site_names": ("east", "west"),
        "split": np.array([0, 0, 0, 1, 0, 2], np.int8),
    }
    return Dataset(**(given | changes))


def test_parts_of_a_data_set():
    data = dataset()
    assert data.train.tolist() == [0, 1, 2, 4]
    assert data.test.tolist() == [3]
    assert data.validation.tolist() == [5]


def test_a_subset_keeps_who_is_who():
    part = dataset().subset([5, 0, 4])
    assert len(part) == 3
    assert [part.patient_names[code] for code in part.patients] == ["z", "z", "x"]
    assert part.patient_names == ("x", "z")
    assert part.image_names == ("f", "a", "e")
    assert part.labels.tolist() == [0, 0, 1]
    assert part.sites.tolist() == [1, 1, 0]
    assert part.split.tolist() == [2, 0, 0]
    np.testing.assert_array_equal(part.images.read([1]), dataset().images.read([0]))
    assert len(dataset().subset([])) == 0


def test_a_cohort_groups_images_by_patient():
    data = dataset()
    cohort = data.cohort("west", data.train)
    assert len(cohort) == 2
    assert cohort.name == "west"
    assert cohort.patients.tolist() == [1, 1, 0, 0]
    assert cohort.rows(0).tolist() == [2, 3]
    np.testing.assert_array_equal(cohort[1].images, data.images.read([0, 1]))
    assert cohort[1].labels.tolist() == [0, 1]
    assert [len(patient.labels) for patient in cohort] == [2, 2]
    for absent in (2, -1):
        with pytest.raises(IndexError, match="there is no patient"):
            cohort[absent]


def test_a_cohort_of_nobody_is_refused():
    with pytest.raises(DataError, match="nowhere has no patients"):
        dataset().cohort("nowhere", [])


@pytest.mark.parametrize(
    "patients", [np.array([0, 2, 2, 0, 0, 0]), np.array([1, 2, 1, 1, 1, 1]), np.array([0, 1])]
)
def test_a_cohort_with_gaps_is_refused(patients):
    with pytest.raises(DataError, match=r"without gaps|one label and patient code each"):
        Cohort(
            name="c",
            images=ArrayImages(PIXELS, 8),
            labels=np.zeros(6, np.int64),
            patients=patients,
            classes=("a",),
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": np.array([0, 1])}, "six has 6 images but columns of the lengths"),
        ({"labels": np.array([0, 1, 2, 0, 0, 0])}, "six holds label codes from 0 to 2"),
        ({"patients": np.array([0, 1, 3, 0, 0, 0])}, "six holds patient codes from 0 to 3"),
        ({"split": np.array([0, 0, 3, 0, 0, 0], np.int8)}, "six holds split codes"),
        ({"sites": np.array([0, 0, -1, 0, 0, 0])}, "six holds site codes from -1"),
        ({"image_names": ("a",)}, "columns of the lengths"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(DataError, match=said):
        dataset(**changes)


def test_the_content_hash_covers_everything_that_training_sees():
    original = dataset().digest()
    assert dataset().digest() == original
    assert dataset(name="other", image_names=tuple("uvwxyz")).digest() == original
    changed = PIXELS.copy()
    changed[3, 2, 2] ^= 1
    for changes in (
        {"images": ArrayImages(changed, 8)},
        {"images": ArrayImages(PIXELS, 9)},
        {"labels": np.array([0, 1, 0, 1, 1, 1])},
        {"patients": np.array([2, 2, 0, 1, 1, 2])},
        {"split": np.zeros(6, np.int8)},
        {"sites": np.array([1, 1, 0, 0, 1, 1])},
        {"sites": None, "site_names": ()},
        {"classes": ("clear", "opacity")},
    ):
        assert dataset(**changes).digest() != original, changes
