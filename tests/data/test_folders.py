import pytest

from fedveil.data import check, load
from fedveil.errors import DataError


def folders(data):
    sites = None if data.sites is None else [data.site_names[code] for code in data.sites]
    return [data.classes[label] for label in data.labels], sites, data.split.tolist()


def test_classes(images, tmp_path):
    images(4, "clear")
    images(6, "ill")
    data = load(f"{tmp_path}/", image_size=8, test_fraction=0)
    assert folders(data) == (["clear"] * 4 + ["ill"] * 6, None, [0] * 10)
    assert data.image_names[0] == "clear/image-0.png"
    assert not data.patients_known
    assert data.name == tmp_path.name


def test_sites_and_classes(images, tmp_path):
    for site in ("east", "west"):
        for label in ("clear", "ill"):
            images(2, f"{site}/{label}")
    labels, sites, _ = folders(load(str(tmp_path), image_size=8, test_fraction=0))
    assert labels == ["clear"] * 2 + ["ill"] * 2 + ["clear"] * 2 + ["ill"] * 2
    assert sites == ["east"] * 4 + ["west"] * 4


@pytest.mark.parametrize("pattern", ["{split}/{label}", "{label}/{split}"])
def test_a_level_of_splits_without_sites(images, tmp_path, pattern):
    for split in ("Train", "test", "val"):
        for label in ("clear", "ill"):
            images(1, pattern.format(split=split, label=label))
    labels, sites, split = folders(load(str(tmp_path), image_size=8))
    assert sorted(zip(labels, split, strict=True)) == [
        (label, n) for label in ("clear", "ill") for n in range(3)
    ]
    assert sites is None


@pytest.mark.parametrize("pattern", ["{split}/{site}/{label}", "{site}/{split}/{label}"])
def test_a_level_of_splits_with_sites(images, tmp_path, pattern):
    for split in ("train", "test"):
        for site in ("east", "west"):
            for label in ("clear", "ill"):
                images(1, pattern.format(split=split, site=site, label=label))
    labels, sites, split = folders(load(str(tmp_path), image_size=8))
    assert len(set(zip(labels, sites, split, strict=True))) == 8


def test_hidden_and_other_files_are_passed_over(images, tmp_path):
    images(2, "clear")
    images(2, "ill")
    images(1, ".trash/ill")
    (tmp_path / "ill" / ".hidden.png").write_bytes(b"")
    (tmp_path / "ill" / "notes.txt").write_text("nothing")
    report = check(str(tmp_path), image_size=8)
    assert report.ok
    assert report.images == 4
    assert "1 files were skipped: they have no image suffix" in report.notes


@pytest.mark.parametrize(
    ("where", "place", "said"),
    [
        ({"": 1, "a": 3, "b": 3}, "image-0.png", "it is 0 folders deep, most images 1"),
        ({"x/a": 1, "a": 3, "b": 3}, "x/a/image-0.png", "it is 2 folders deep, most images 1"),
        ({"x/y/a": 2}, "x/y/a/image-0.png", "it is 3 folders deep"),
        ({"a": 3}, "", "every training image has the label a"),
        ({}, "", "there are no images"),
    ],
)
def test_other_shapes_are_refused(images, tmp_path, where, place, said):
    root = tmp_path / "root"
    root.mkdir()
    for folder, count in where.items():
        images(count, f"root/{folder}")
    with pytest.raises(DataError, match=said) as caught:
        load(str(root), image_size=8)
    assert (str(root / place) if place else "root") in str(caught.value)


def test_a_bad_image_is_named_once(images, tmp_path):
    images(3, "a")
    images(3, "b")
    (tmp_path / "b" / "image-1.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        load(str(tmp_path), image_size=8)
    path = str(tmp_path / "b" / "image-1.png")
    assert str(caught.value).startswith(f"{path}: it is empty")
    assert str(caught.value).count(path) == 1
