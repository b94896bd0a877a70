import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.data import ArrayImages, Dataset, hospitals, named_hospitals
from fedveil.errors import DataError, InvalidValue


def dataset(patients: list[int], labels: list[int], split: list[int] | None = None) -> Dataset:
    count = len(patients)
    return Dataset(
        name="drawn",
        images=ArrayImages(np.zeros((count, 8, 8), np.uint8), 8),
        labels=np.array(labels, np.int64),
        patients=np.array(patients, np.int64),
        patient_names=tuple(f"p{code}" for code in range(max(patients) + 1)),
        image_names=tuple(f"i{row}" for row in range(count)),
        classes=("a", "b", "c"),
        split=np.zeros(count, np.int8) if split is None else np.array(split, np.int8),
    )


@st.composite
def partitions(draw: st.DrawFn) -> tuple[Dataset, int, str, float, int]:
    images = draw(st.lists(st.integers(0, 11), min_size=1, max_size=60))
    codes = np.unique(images, return_inverse=True)[1]
    labels = draw(st.lists(st.integers(0, 2), min_size=len(codes), max_size=len(codes)))
    split = draw(
        st.lists(st.integers(0, 2), min_size=len(codes), max_size=len(codes)).filter(lambda s: 0 in s)
    )
    data = dataset(codes.tolist(), labels, split)
    count = draw(st.integers(1, len(set(data.patients[data.train].tolist()))))
    scheme = draw(st.sampled_from(["iid", "dirichlet", "quantity"]))
    return data, count, scheme, draw(st.floats(1e-3, 1e3)), draw(st.integers(0, 2**32))


@given(partitions())
def test_every_training_patient_goes_to_one_hospital(case):
    data, count, scheme, alpha, seed = case
    parts = hospitals(data, count, scheme, alpha, seed)
    assert len(parts) == count
    assert all(len(part) for part in parts)
    assert sorted(np.concatenate(parts)) == data.train.tolist()
    held = [set(data.patients[part].tolist()) for part in parts]
    assert sum(len(patients) for patients in held) == len(set.union(*held))
    again = hospitals(data, count, scheme, alpha, seed)
    assert all(np.array_equal(part, other) for part, other in zip(parts, again, strict=True))


def test_dirichlet_skews_labels_and_iid_does_not():
    patients = list(range(1200))
    data = dataset(patients, [code % 3 for code in patients])

    def skew(scheme, alpha):
        parts = hospitals(data, 4, scheme, alpha, seed=1)
        shares = [np.bincount(data.labels[part], minlength=3) / len(part) for part in parts]
        return np.abs(np.array(shares) - 1 / 3).max()

    assert skew("dirichlet", 0.1) > 0.4
    assert skew("dirichlet", 1e4) < 0.05
    assert skew("iid", 0.1) < 0.1


def test_iid_is_even_and_quantity_is_not():
    data = dataset(list(range(503)), [0, 1] * 251 + [0])
    even = [len(part) for part in hospitals(data, 5, "iid", 0.5, seed=3)]
    assert max(even) - min(even) <= 1
    uneven = [len(part) for part in hospitals(data, 5, "quantity", 0.5, seed=3)]
    assert max(uneven) > 2 * min(uneven)


def test_extreme_skew_leaves_no_hospital_empty():
    data = dataset(list(range(6)), [0, 0, 0, 1, 1, 1])
    parts = hospitals(data, 6, "dirichlet", 1e-3, seed=0)
    assert [len(part) for part in parts] == [1] * 6


@pytest.mark.parametrize(
    ("count", "scheme", "alpha", "said"),
    [
        (0, "iid", 0.5, "count is 0"),
        (4, "iid", 0.5, "there are 3 training patients"),
        (2, "random", 0.5, "scheme is random"),
        (2, "dirichlet", 0.0, "alpha is 0.0"),
        (2, "dirichlet", float("nan"), "alpha is nan"),
    ],
)
def test_impossible_partitions_are_refused(count, scheme, alpha, said):
    with pytest.raises(InvalidValue, match=said):
        hospitals(dataset([0, 1, 2], [0, 1, 0]), count, scheme, alpha, seed=0)


def test_hospitals_named_by_the_source():
    data = dataset([0, 0, 1, 2], [0, 1, 0, 1], [0, 0, 0, 1])
    with pytest.raises(DataError, match="names no hospitals"):
        named_hospitals(data)
