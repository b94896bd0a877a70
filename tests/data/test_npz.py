import numpy as np
import pytest

from fedveil.data import ArrayImages, load
from fedveil.errors import DataError, InvalidValue

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 9, 9), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1], np.uint8)
FLAT = {
    "images": PIXELS,
    "labels": LABELS,
    "patient": np.array([5, 5, 2, 2, 9, 9, 0, 0], np.int32),
    "split": np.array([0, 0, 0, 0, 0, 0, 1, 1], np.uint8),
    "classes": np.array(["normal", "bacteria", "virus"]),
    "patient_names": np.array([f"p{code}" for code in range(10)]),
    "files": np.array([f"{row}.jpeg" for row in range(8)]),
}
MEDMNIST = {
    "train_images": PIXELS[:4],
    "val_images": PIXELS[4:6],
    "test_images": PIXELS[6:],
    "train_labels": np.array([[0], [1], [0], [1]], np.uint8),
    "val_labels": np.array([[0], [1]], np.uint8),
    "test_labels": np.array([[1], [1]], np.uint8),
}


@pytest.fixture
def read(tmp_path):
    def write_and_load(arrays, name="set.npz", **options):
        np.savez(tmp_path / name, **arrays)
        return load(name, base=tmp_path, image_size=options.pop("image_size", 9), **options)

    return write_and_load


def test_the_flat_layout(read):
    data = read(FLAT)
    assert data.classes == ("normal", "bacteria", "virus")
    assert data.patient_names == ("p0", "p2", "p5", "p9")
    assert data.patients.tolist() == [2, 2, 1, 1, 3, 3, 0, 0]
    assert data.split.tolist() == [0] * 6 + [1] * 2
    assert data.image_names[3] == "3.jpeg"
    assert data.sites is None
    np.testing.assert_array_equal(data.labels, LABELS)
    np.testing.assert_allclose(data.images.read(range(8)), PIXELS[:, None] / np.float32(255))


def test_sites_and_splits_by_name(read):
    split = np.array(["Train"] * 6 + ["test"] * 2)
    data = read(FLAT | {"site": np.array(list("bbaabbaa")), "split": split})
    assert data.site_names == ("a", "b")
    assert data.sites.tolist() == [1, 1, 0, 0, 1, 1, 0, 0]
    data = read(FLAT | {"site": np.array([1, 1, 0, 0, 1, 1, 0, 0]), "site_names": np.array(["x", "y"])})
    assert data.site_names == ("x", "y")
    assert data.split.tolist() == [0] * 6 + [1] * 2


def test_labels_by_name_and_without_names(read):
    data = read({"images": PIXELS, "labels": np.array(list("babababa"))}, test_fraction=0)
    assert data.classes == ("a", "b")
    assert data.labels.tolist() == [1, 0] * 4
    assert not data.patients_known
    assert read({"images": PIXELS, "labels": LABELS.astype(float)}, test_fraction=0).classes == (
        "0",
        "1",
        "2",
    )


def test_the_medmnist_layout(read):
    data = read(MEDMNIST)
    assert data.split.tolist() == [0] * 4 + [2] * 2 + [1] * 2
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1, 1, 1]
    assert not data.patients_known
    assert data.image_names[4] == "val/0"
    np.testing.assert_allclose(data.images.read(range(8)), PIXELS[:, None] / np.float32(255))


def test_a_file_called_like_a_medmnist_set_gets_its_class_names(read):
    assert read(MEDMNIST, "breastmnist.npz").classes == ("malignant", "normal, benign")
    assert read(MEDMNIST, "breastmnist_64.npz", positive=["malignant"]).classes == (
        "normal, benign",
        "positive",
    )


@pytest.mark.parametrize(
    ("positive", "classes", "labels"),
    [
        (["bacteria", "virus"], ("normal", "positive"), [0, 1, 1, 0, 1, 1, 0, 1]),
        (["virus"], ("normal or bacteria", "positive"), [0, 0, 1, 0, 0, 1, 0, 0]),
    ],
)
def test_named_classes_make_the_task_binary(read, positive, classes, labels):
    data = read(FLAT, positive=positive)
    assert data.classes == classes
    assert data.labels.tolist() == labels


def test_a_patient_with_several_findings_needs_to_know_which_count(read):
    findings = np.zeros((8, 3), np.uint8)
    findings[[0, 2, 4, 6], 1] = 1
    findings[[2, 6], 2] = 1
    arrays = {"images": PIXELS, "labels": findings, "classes": np.array(["mass", "edema", "hernia"])}
    data = read(arrays, positive=["edema", "hernia"], test_fraction=0)
    assert data.classes == ("other", "positive")
    assert data.labels.tolist() == [1, 0] * 4
    with pytest.raises(DataError, match=r"can have several labels at once; .* set positive"):
        read(arrays)


@pytest.mark.parametrize(
    ("positive", "said"),
    [
        (["viral"], "the class viral is unknown; the classes are normal, bacteria, virus"),
        (["normal", "bacteria", "virus"], "positive names 3 of the 3 classes"),
        ([], "positive names 0 of the 3 classes"),
    ],
)
def test_impossible_positive_classes_are_refused(read, positive, said):
    with pytest.raises(DataError, match=said):
        read(FLAT, positive=positive)


NAN = np.where(PIXELS > 250, np.nan, 0.5).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": NAN}, "row 2: its pixels hold NaN, infinity or values outside"),
        ({"images": PIXELS.astype(np.float32)}, "row 0: its pixels hold NaN, infinity or values outside"),
        ({"images": PIXELS.astype(np.int64)}, "pixels are of the type int64"),
        ({"images": PIXELS[:, :, :, None, None]}, "images have the shape"),
        ({"images": PIXELS[:, :0]}, "images have the shape"),
        ({"images": PIXELS[:7]}, "there are 7 images but 8 entries in labels"),
        ({"images": PIXELS.astype(object)}, "it holds Python objects"),
        ({"patient": FLAT["patient"][:5]}, "there are 8 images but 5 entries in patient"),
        ({"labels": np.array([0, 1, 2, 0, 1, np.nan, 0, 1])}, "row 5: label is -1; an unknown label"),
        ({"labels": LABELS + 0.5}, "row 0: labels holds 0.5; it must be a whole number"),
        ({"labels": LABELS + 1}, "row 2: its label is 3; with the classes normal, bacteria, virus"),
        ({"labels": LABELS.astype(np.int8) - 1}, "row 0: label is -1; an unknown label"),
        ({"split": FLAT["split"] + 3}, "row 0: split holds 3; it must be 0 or train"),
        ({"patient": FLAT["patient"] + 5}, "row 0: its patient is 10; patient_names names 10"),
        ({"patient": FLAT["patient"].astype(float) / 2}, "row 0: patient holds 2.5"),
        ({"patient": np.stack([FLAT["patient"]] * 2, axis=1)}, "patient has 2 dimensions"),
        ({"split": np.array([0, 1] * 4)}, "patient p5 is in the split test, but in train at"),
        ({"split": np.ones(8, int)}, "no image is in the training split"),
        ({"labels": np.array([0, 1, 0, 1, 0, 1, 0, 2])}, "the label virus occurs only outside"),
        (
            {"images": PIXELS[:0], **{key: FLAT[key][:0] for key in ("labels", "patient", "split", "files")}},
            "no images",
        ),
    ],
)
def test_what_does_not_fit_is_refused(read, change, said):
    with pytest.raises(DataError, match=said) as caught:
        read(FLAT | change)
    assert "set" in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": PIXELS}, "it holds the arrays x; there must be images and labels"),
        (
            {**MEDMNIST, "train_labels": MEDMNIST["train_labels"][:3]},
            "train_images holds 4 images, train_labels 3",
        ),
        ({**MEDMNIST, "val_images": PIXELS[4:6, :5]}, "the splits have the shapes"),
        ({key: MEDMNIST[key] for key in ("train_images", "test_images", "test_labels")}, "train_labels 0"),
    ],
)
def test_other_layouts_are_refused(read, arrays, said):
    with pytest.raises(DataError, match=said):
        read(arrays)


def test_damaged_and_missing_files_are_refused(tmp_path, read):
    read(FLAT)
    content = (tmp_path / "set.npz").read_bytes()
    for name, kept in (("cut", content[: len(content) // 2]), ("empty", b""), ("text", b"no zip file")):
        (tmp_path / f"{name}.npz").write_bytes(kept)
        with pytest.raises(DataError, match=rf"{name}.npz: it is not a complete .npz"):
            load(f"{name}.npz", base=tmp_path)
    flipped = bytearray(content)
    flipped[300] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(bytes(flipped))
    with pytest.raises(DataError, match=r"flipped.npz: it cannot be read"):
        load("flipped.npz", base=tmp_path)
    with pytest.raises(DataError, match="there is no such file"):
        load("none.npz", base=tmp_path)
    np.save(tmp_path / "array.npy", PIXELS)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(DataError, match=r"array.npz: it is not a complete .npz"):
        load("array.npz", base=tmp_path)


def test_sixteen_bit_float_colour_and_single_channel(read):
    deep = PIXELS.astype(np.uint16) * 257
    base = {key: value for key, value in FLAT.items() if key != "images"}
    expected = PIXELS[:, None] / np.float32(255)
    for images in (deep, PIXELS / 255, PIXELS[..., None]):
        np.testing.assert_allclose(read(base | {"images": images}).images.read(range(8)), expected, atol=1e-6)
    colour = np.stack([PIXELS, PIXELS // 2, 255 - PIXELS], axis=3)
    data = read(base | {"images": colour})
    assert data.images.channels == 3
    np.testing.assert_allclose(data.images.read([2])[0], colour[2].transpose(2, 0, 1) / 255, atol=1e-6)


def test_resizing_keeps_the_range_and_the_mean():
    smooth = np.linspace(0, 255, 40 * 30).reshape(1, 40, 30).astype(np.uint8)
    for size in (8, 64):
        image = ArrayImages(smooth, size).read([0])
        assert image.shape == (1, 1, size, size)
        assert 0 <= image.min() <= image.max() <= 1
        assert abs(image.mean() - smooth.mean() / 255) < 0.01
    checker = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[None]
    assert np.abs(ArrayImages(checker, 8).read([0]) - 0.5).max() < 0.05


@pytest.mark.parametrize("size", [0, 7, 2000])
def test_impossible_sizes_are_refused(read, size):
    with pytest.raises(InvalidValue, match=f"image_size is {size}"):
        read(FLAT, image_size=size)


def test_a_content_hash_follows_the_content():
    images = np.concatenate([PIXELS, PIXELS[:1]])
    digests = ArrayImages(images, 9).digest(range(9))
    assert digests[0] == digests[8]
    assert len(set(digests)) == 8
    assert ArrayImages(images, 10).digest([0]) != digests[:1]
    assert ArrayImages(images.astype(np.uint16), 9).digest([0]) != digests[:1]
    assert ArrayImages(images.transpose(0, 2, 1), 9).digest([0]) != digests[:1]


@pytest.mark.parametrize("size", [28, 64])
def test_the_real_chest_images(shared_data, size):
    data = load(f"kermany_cxr/kermany_cxr_{size}.npz", base=shared_data, image_size=size)
    assert len(data) == 5840
    assert data.classes == ("normal", "bacteria", "virus")
    assert np.bincount(data.labels[data.train]).tolist() == [1341, 2530, 1345]
    assert np.bincount(data.labels[data.test]).tolist() == [234, 242, 148]
    assert len(np.unique(data.patients[data.train])) == 2846
    assert len(np.unique(data.patients[data.test])) == 427
    assert np.bincount(data.patients).max() == 30


@pytest.mark.parametrize(
    ("here", "labels"),
    [
        (["normal", "bacteria"], [0, 1]),
        (["normal", "oedema"], [0, 0]),
        (["virus", "bacteria"], [1, 1]),
        (["normal", "normal"], [0, 0]),
    ],
)
def test_a_hospital_need_not_have_every_positive_class(read, here, labels):
    """Its only patient with one of them would decide whether the hospital can take part."""
    arrays = {"images": PIXELS[:2], "labels": np.array(here)}
    study = {"positive": ["bacteria", "virus"], "classes": ["normal", "positive"], "test_fraction": 0}
    assert read(arrays, **study).labels.tolist() == labels


@pytest.mark.parametrize("here", [["normal", "Virus"], ["0", "1"]])
def test_other_names_for_positive_classes_are_still_refused(read, here):
    arrays = {"images": PIXELS[:2], "labels": np.array(here)}
    with pytest.raises(DataError, match=r"is unknown|is spelt differently"):
        read(arrays, positive=["bacteria", "virus"], classes=["normal", "positive"])
