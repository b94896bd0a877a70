"""Data sets from arrays, embeddings and tables: the same data set as from files, and clear errors."""

import numpy as np
import pytest
import torch
from PIL import Image

from fedveil.data import Dataset, Embeddings, Options, Reading, load, load_usable, write_split
from fedveil.data.formats.arrays import as_pixels, sized
from fedveil.errors import DataError

LABELS = ["ill", "well"] * 10


def pixels(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def whole(dataset):
    return dataset.images.read(np.arange(len(dataset)))


@pytest.mark.parametrize(
    ("make", "channels"),
    [
        (lambda: pixels(20, 12, 9), 1),
        (lambda: pixels(20, 12, 9, 1), 1),
        (lambda: pixels(20, 12, 9, 3), 3),
        (lambda: torch.from_numpy(pixels(20, 12, 9)), 1),
        (lambda: torch.from_numpy(pixels(20, 1, 12, 9)), 1),
        (lambda: torch.from_numpy(pixels(20, 3, 12, 9)), 3),
        (lambda: torch.from_numpy(pixels(20, 3, 12, 9)).float().div(255).requires_grad_(), 3),
        (lambda: (pixels(20, 12, 9) / 255).tolist(), 1),
    ],
)
def test_images_come_as_numpy_or_torch_has_them(make, channels):
    dataset = Dataset.from_arrays(make(), LABELS)
    found = whole(dataset)
    assert found.shape == (20, channels, 64, 64)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1


def test_a_tensor_and_its_array_are_the_same_data():
    images = pixels(20, 16, 16, 3)
    first = Dataset.from_arrays(images, LABELS)
    second = Dataset.from_arrays(torch.from_numpy(images.transpose(0, 3, 1, 2)), LABELS)
    assert first.digest() == second.digest()


def test_arrays_mean_what_a_file_of_them_means(tmp_path):
    """Content, classes, patients and the drawn test split."""
    images, patients = pixels(20, 16, 16), np.arange(20) // 2
    labels = np.array([0, 1] * 10)
    np.savez(tmp_path / "arrays.npz", images=images, labels=labels, patient=patients, classes=["ill", "well"])
    from_file = load("arrays.npz", base=tmp_path, seed=3)
    here = Dataset.from_arrays(images, labels, patients=patients, classes=["ill", "well"], seed=3)
    assert here.digest() == from_file.digest()
    assert here.patient_names == from_file.patient_names


def test_a_patient_is_on_one_side_of_the_drawn_split():
    patients = np.arange(200) // 4
    dataset = Dataset.from_arrays(pixels(200, 8, 8), LABELS * 10, patients=patients)
    assert 0 < len(dataset.test) < 120
    assert not set(patients[dataset.test]) & set(patients[dataset.train])


def test_given_sites_and_split_are_kept():
    split = ["train"] * 12 + ["test"] * 8
    dataset = Dataset.from_arrays(pixels(20, 8, 8), LABELS, sites=["a", "b"] * 10, split=split)
    assert dataset.site_names == ("a", "b")
    assert dataset.test.tolist() == list(range(12, 20))


def test_whole_numbers_are_names_or_index_the_classes():
    images = pixels(20, 8, 8)
    assert Dataset.from_arrays(images, [10, 9] * 10).classes == ("9", "10")
    assert Dataset.from_arrays(images, torch.tensor([1, 0] * 10)).classes == ("0", "1")
    named = Dataset.from_arrays(images, [1.0, 0.0] * 10, classes=["well", "ill", "unsure"])
    assert named.classes == ("well", "ill", "unsure")
    assert named.labels.tolist() == [1, 0] * 10


def test_positive_makes_the_task_binary():
    labels = ["bacteria", "normal", "virus", "normal"] * 5
    dataset = Dataset.from_arrays(pixels(20, 8, 8), labels, positive=["bacteria", "virus"])
    assert dataset.classes == ("normal", "positive")
    assert dataset.labels.tolist() == [1, 0] * 10


@pytest.mark.parametrize(
    ("images", "labels", "columns", "words"),
    [
        (pixels(20, 3, 8, 8), LABELS, {}, ["(20, 3, 8, 8)", "channels last"]),
        (pixels(20, 64), LABELS, {}, ["(20, 64)", "(n, height, width)"]),
        (pixels(20, 8, 8).astype(np.int32), LABELS, {}, ["int32", "uint8"]),
        (pixels(20, 8, 8) * 1.0, LABELS, {}, ["[0, 1]"]),
        (pixels(20, 8, 8), LABELS[1:], {}, ["20 images and 19 labels"]),
        (pixels(20, 8, 8), np.eye(2)[[0, 1] * 10], {}, ["(20, 2)", "one label"]),
        (pixels(20, 8, 8), [*LABELS[1:], None], {}, ["no value at row 19"]),
        (pixels(20, 8, 8), LABELS, {"patients": [1, 2]}, ["2 patients"]),
        (pixels(20, 8, 8), LABELS, {"patients": [float("nan")] * 20}, ["patients has no value at row 0"]),
        (pixels(20, 8, 8), LABELS, {"split": ["learn"] * 20}, ["split holds learn"]),
        (pixels(20, 8, 8), LABELS, {"classes": ["ill", "good"]}, ["labels hold well", "ill, good"]),
        (pixels(20, 8, 8), [0, 7] * 10, {"classes": ["ill", "good"]}, ["labels hold 0, 7"]),
        (pixels(20, 8, 8), ["ill"] * 20, {}, ["every training image has the label ill"]),
        (pixels(20, 8, 8), LABELS, {"patients": [1] * 20, "sites": ["a", "b"] * 10}, ["in the site"]),
        ([[[1.0]], [[1.0, 0.5]]], LABELS[:2], {}, ["one array"]),
    ],
)
def test_what_does_not_fit_is_named(images, labels, columns, words):
    with pytest.raises(DataError) as error:
        Dataset.from_arrays(images, labels, **columns)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_images_are_read_at_the_size_that_a_study_asks_for():
    images = pixels(20, 32, 32)
    dataset = sized(Dataset.from_arrays(images, LABELS), 32, Reading())
    assert np.array_equal(whole(dataset)[:, 0], images / np.float32(255))


def test_pixels_are_brought_to_a_models_channels():
    grey, colour = pixels(3, 8, 8), pixels(3, 8, 8, 3)
    assert as_pixels(grey, 16, Reading(channels=3)).shape == (3, 3, 16, 16)
    assert np.ptp(as_pixels(grey, 16, Reading(channels=3)), axis=1).max() == 0
    assert as_pixels(colour, 16, Reading(channels=1)).shape == (3, 1, 16, 16)


def test_embeddings_stand_for_images():
    vectors = np.random.default_rng(0).normal(size=(20, 5))
    dataset = Dataset.from_features(torch.from_numpy(vectors), LABELS, patients=np.arange(20) // 2)
    assert isinstance(dataset.images, Embeddings)
    part = dataset.subset([3, 1])
    assert np.array_equal(part.images.vectors([0, 1]), vectors[[3, 1]].astype(np.float32))
    assert len({*dataset.images.digest(range(20))}) == 20
    with pytest.raises(DataError, match="pixels were asked for"):
        dataset.images.read([0])


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (np.zeros((20, 4, 4)), ["(20, 4, 4)", "(n, d)"]),
        (np.zeros((20, 0)), ["(20, 0)"]),
        (np.where(np.arange(60).reshape(20, 3) == 7, np.nan, 0.0), ["embedding 2", "finite"]),
        (np.full((20, 3), 1e30), ["embedding 0"]),
        (np.full((20, 3), "x"), ["(n, d)"]),
    ],
)
def test_embeddings_that_are_none_are_named(vectors, words):
    with pytest.raises(DataError) as error:
        Dataset.from_features(vectors, LABELS)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_embeddings_lie_in_files_too_and_split_into_hospitals(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    np.savez(tmp_path / "e.npz", features=vectors, labels=np.array(LABELS), patient=np.arange(20) // 2)
    dataset = load("e.npz", base=tmp_path)
    here = Dataset.from_features(vectors, LABELS, patients=np.arange(20) // 2)
    assert dataset.digest() == here.digest()
    files = write_split(dataset, tmp_path / "split", 2, "iid")
    again = [load(str(file)) for file in files if file.name.startswith("site")]
    assert sum(map(len, again)) == len(dataset.train)
    assert all(isinstance(one.images, Embeddings) for one in again)


def table_of(folder):
    """Files of images, and the columns that name them."""
    for row in range(20):
        Image.fromarray(pixels(9, 9) + np.uint8(row)).save(folder / f"{row}.png")
    return {
        "path": [f"{row}.png" for row in range(20)],
        "label": LABELS,
        "patient": [row // 2 for row in range(20)],
    }


class Missing:
    """As pandas.NA: what it is compared with gives no truth."""

    def __eq__(self, other):
        return self

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = None


class Frame:
    """What a pandas or polars DataFrame has in common: columns by name."""

    def __init__(self, columns):
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name):
        return self._columns[name]


@pytest.mark.parametrize("kind", [dict, Frame])
def test_a_table_is_read_as_a_manifest_is(tmp_path, kind):
    table = table_of(tmp_path)
    lines = [",".join(map(str, row)) for row in zip(*table.values(), strict=True)]
    (tmp_path / "frame.csv").write_text("\n".join([",".join(table), *lines]))
    expected = load("frame.csv", base=tmp_path, test_fraction=0.5)
    found = Dataset.from_frame(kind(table), base=tmp_path, test_fraction=0.5)
    assert found.digest() == expected.digest()
    assert found.patient_names == expected.patient_names
    assert len(whole(found)) == 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patient": None, "patientid": list(range(20))}, ["patientid", "looks like patient"]),
        ({"label": None}, ["needs label"]),
        ({"path": ["none.png"] * 20}, ["line 3", "listed before"]),
        ({"label": ["ill", float("nan")] * 10}, ["line 3", "label is empty"]),
        ({"label": ["ill", Missing()] * 10}, ["line 3", "label is empty"]),
    ],
)
def test_the_checks_of_a_manifest_apply_to_a_table(tmp_path, change, words):
    table = {name: values for name, values in (table_of(tmp_path) | change).items() if values is not None}
    with pytest.raises(DataError) as error:
        Dataset.from_frame(table, base=tmp_path)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "the table" in str(error.value)
    assert "/tmp/fedveil" not in str(error.value)


def test_data_is_brought_to_channels_and_window_of_a_study(tmp_path):
    """In memory and in files alike; the study's window is not lost on the way."""
    deep = np.random.default_rng(2).integers(0, 4096, (20, 8, 8)).astype(np.uint16)
    for row, image in enumerate(deep):
        Image.fromarray(image).save(tmp_path / f"{row}.png")
    table = {"path": [f"{row}.png" for row in range(20)], "label": LABELS}
    asked = Reading(channels=3, window=(2048.0, 4096.0))
    expected = np.repeat((deep / 4096)[:, None], 3, axis=1)
    for dataset in (Dataset.from_arrays(deep, LABELS), Dataset.from_frame(table, base=tmp_path)):
        found = sized(dataset, 8, asked)
        assert np.allclose(whole(found), expected, atol=1e-3)
        assert sized(found, 8, asked) is found
        assert sized(found, 8, Reading(window=asked.window)) is found
    assert np.allclose(as_pixels(deep, 8, asked), expected, atol=1e-3)


def test_any_numbers_may_be_stored_where_a_window_is_given():
    hounsfield = np.random.default_rng(2).integers(-1000, 1000, (20, 8, 8)).astype(np.int16)
    dataset = Dataset.from_arrays(hounsfield, LABELS, window="lung")
    assert np.ptp(whole(dataset)) == 1
    with pytest.raises(DataError, match="give window"):
        Dataset.from_arrays(hounsfield, LABELS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.5])
def test_one_image_that_cannot_be_read_is_named(value):
    images = pixels(20, 8, 8) / 255
    images[7, 2, 3] = value
    with pytest.raises(DataError, match=r"image 7: its pixels .* must lie in \[0, 1\].* divide them"):
        Dataset.from_arrays(images, LABELS)


def test_patients_and_labels_in_memory_are_judged_as_in_files():
    images, nobody = pixels(20, 8, 8), ["ANONYMOUS", *range(19)]
    with pytest.raises(DataError, match="the patient is called ANONYMOUS"):
        Dataset.from_arrays(images, LABELS, patients=nobody)
    assert len(Dataset.from_arrays(images, LABELS, patients=nobody, accept=["placeholder-patients"])) == 20
    unsure = ["unknown", *LABELS[1:]]
    with pytest.raises(DataError, match="label is unknown"):
        Dataset.from_arrays(images, unsure)
    assert len(Dataset.from_arrays(images, unsure, unknown_labels="drop")) == 19
    assert "unknown" in Dataset.from_arrays(images, unsure, classes=["ill", "well", "unknown"]).classes


def test_one_vector_that_cannot_be_used_changes_nothing_about_the_others(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    columns = {"labels": np.array(LABELS), "patient": np.arange(20)}
    np.savez(tmp_path / "whole.npz", features=vectors, **columns)
    vectors[6, 2] = np.nan
    np.savez(tmp_path / "odd.npz", features=vectors, **columns)
    with pytest.raises(DataError, match=r"odd\.npz, row 6: it holds NaN"):
        load("odd.npz", base=tmp_path)
    options = Options(classes=("ill", "well"))
    odd, sound = (
        load_usable(f"{name}.npz", options, base=tmp_path, need_patients=True) for name in ("odd", "whole")
    )
    assert isinstance(odd.images, Embeddings)
    others = np.flatnonzero(np.arange(20) != 6)
    assert odd.digest() == sound.subset(others).digest()


def test_the_column_of_paths_may_be_called_otherwise(tmp_path):
    table = table_of(tmp_path)
    table["Image Index"] = table.pop("path")
    found = Dataset.from_frame(table, base=tmp_path, columns={"path": "Image Index"})
    assert len(whole(found)) == 20
