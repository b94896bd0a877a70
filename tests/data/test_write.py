from pathlib import Path

import numpy as np
import pytest

from fedveil.data import hospitals, load, write_split
from fedveil.errors import DataError


def names(data):
    return sorted(data.image_names)


def test_a_manifest_becomes_one_a_hospital(manifest, tmp_path):
    data = load(str(manifest()), image_size=8)
    folder = tmp_path / "deep" / "split"
    paths = write_split(data, folder, 2, "iid", seed=3)
    assert [path.name for path in paths] == ["site-1.csv", "site-2.csv", "test.csv"]
    assert sorted(folder.iterdir()) == sorted(paths)
    for rows, path in zip([*hospitals(data, 2, "iid", seed=3), data.test], paths, strict=True):
        part = (
            load(str(path), image_size=8, allow_patient_overlap=True, classes=data.classes)
            if path.stem != "test"
            else None
        )
        if part is None:
            assert "image-6.png,clear,test,p3" in path.read_text()
            continue
        assert part.split.tolist() == [0] * len(rows)
        assert [Path(name).name for name in part.image_names] == [data.image_names[row] for row in rows]
        assert [part.patient_names[code] for code in part.patients] == [
            data.patient_names[code] for code in data.patients[rows]
        ]
        np.testing.assert_array_equal(part.images.read(range(len(part))), data.images.read(rows))
        np.testing.assert_array_equal(part.labels, data.labels[rows])


def test_unknown_patients_stay_unknown(images, tmp_path):
    images(6, "images/clear")
    images(6, "images/ill")
    data = load(str(tmp_path / "images"), image_size=8)
    path = write_split(data, tmp_path / "split", 2)[0]
    assert path.read_text().splitlines()[0] == "path,label,split"


def test_arrays_are_written_along(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "images": rng.integers(0, 256, (40, 9, 9), dtype=np.uint8),
        "labels": np.arange(40) % 2,
        "patient": np.arange(40) // 2,
        "classes": np.array(["clear", "ill"]),
    }
    np.savez(tmp_path / "set.npz", **arrays)
    data = load("set.npz", base=tmp_path, image_size=8, seed=1)
    paths = write_split(data, tmp_path / "split", 3, "quantity", 5.0, seed=2)
    assert [path.name for path in paths] == ["site-1.npz", "site-2.npz", "site-3.npz", "test.npz"]
    for rows, path in zip(hospitals(data, 3, "quantity", 5.0, seed=2), paths, strict=False):
        part = load(str(path), image_size=8)
        np.testing.assert_array_equal(part.images.read(range(len(part))), data.images.read(rows))
        np.testing.assert_array_equal(part.labels, data.labels[rows])
        assert part.classes == data.classes
        assert [part.patient_names[code] for code in part.patients] == [
            data.patient_names[code] for code in data.patients[rows]
        ]
    part = write_split(data.subset(data.train), tmp_path / "again", 3, "quantity", 5.0, seed=2)[0]
    same = load(str(part), image_size=8)
    np.testing.assert_allclose(
        same.images.read(range(len(same))), load(str(paths[0]), image_size=8).images.read(range(len(same)))
    )


def test_what_exists_is_not_overwritten(manifest, tmp_path):
    data = load(str(manifest()), image_size=8)
    (tmp_path / "split").mkdir()
    with pytest.raises(DataError, match="split exists already"):
        write_split(data, tmp_path / "split", 2)
    assert not list((tmp_path / "split").iterdir())


def test_a_full_disk_leaves_nothing_behind(manifest, tmp_path, monkeypatch):
    data = load(str(manifest()), image_size=8)
    before = sorted(tmp_path.iterdir())

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(DataError, match=r"split cannot be written \(No space left on device\)"):
        write_split(data, tmp_path / "split", 2)
    assert sorted(tmp_path.iterdir()) == before


def test_a_place_that_cannot_be_written_is_refused(manifest, tmp_path):
    data = load(str(manifest()), image_size=8)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        write_split(data, tmp_path / "file" / "split", 2)
