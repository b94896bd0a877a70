"""Texts in arrays: they behave as tuples of strings do, and no Python object per image is held."""

import gc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.data import Dataset
from fedveil.data.annotations.columns import Column, Names, numbers

TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=20)), max_size=30)


@given(TEXTS)
def test_a_column_holds_the_texts_it_was_made_of(texts):
    column = Column.of(texts)
    assert list(column) == texts
    assert [column[row] for row in range(len(texts))] == texts
    assert list(column.names) == sorted({text for text in texts if text is not None})
    assert column.complete == (None not in texts)
    assert column.texts().tolist() == [text or "" for text in texts]


@given(TEXTS, st.data())
def test_what_is_taken_from_a_column_is_what_is_taken_from_its_texts(texts, data):
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=20)) if texts else []
    part = Column.of(texts).take(rows)
    expected = [texts[row] for row in rows]
    assert list(part) == list(part.compact()) == expected
    assert list(part.compact().names) == sorted({text for text in expected if text is not None})
    changed = part.renamed(lambda text: text.casefold())
    assert list(changed) == [None if text is None else text.casefold() for text in expected]


def test_names_equal_any_sequence_of_the_same_texts():
    names = Names(["b", "a", "b"])
    assert names == ("b", "a", "b")
    assert names == ["b", "a", "b"]
    assert names != ("b", "a")
    assert names != ("b", "a", "a")
    assert names.index("a") == 1
    assert names[1:] == ("a", "b")
    assert isinstance(names, Sequence)
    assert hash(names) == hash(Names(("b", "a", "b")))


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


@pytest.mark.parametrize("known", [True, False])
def test_a_data_set_holds_no_object_per_image(known):
    count = 5_000
    images = np.zeros((count, 8, 8), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    columns = {"patients": np.arange(count) // 2} if known else {}
    before = objects()
    data = Dataset.from_arrays(
        images, np.arange(count) % 3, attributes={"age": np.arange(count) % 90}, **columns
    )
    part = data.subset(np.arange(0, count, 2))
    cohort = data.cohort("north", np.arange(count))
    assert objects() - before < 200
    assert len(part) == count // 2
    assert len(cohort) == (count // 2 if known else count)
    for name in ("labels", "patients", "split"):
        assert isinstance(getattr(data, name), np.ndarray)
    held = [data.patient_names, data.image_names, data.attributes["age"].names]
    assert all(isinstance(names, Names) and names.array.dtype == np.dtypes.StringDType() for names in held)


def test_unnamed_patients_are_numbered_as_texts_sort():
    data = Dataset.from_arrays(np.zeros((12, 8, 8), np.uint8), [0, 1] * 6, test_fraction=0.0)
    named = [data.patient_names[code] for code in data.patients]
    assert named == [f"image-{row}" for row in range(1, 13)]
    assert data.patient_names == sorted(named)
    assert data.image_names == numbers(12)
