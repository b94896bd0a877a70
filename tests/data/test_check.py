import json

import numpy as np
from PIL import Image

from fedveil.data import check


def test_a_sound_manifest_is_described(manifest):
    report = check(str(manifest()), image_size=8)
    assert report.ok
    assert (report.images, report.patients, report.patients_known) == (8, 4, True)
    assert report.images_per_patient == (2, 2.0, 2)
    assert report.sizes == (("10 x 12", 8),)
    assert report.modes == (("PNG L", 8),)
    counted = {
        (count.site, count.split, count.label): (count.images, count.patients) for count in report.counts
    }
    assert counted["a", "train", "clear"] == (2, 2)
    assert counted["b", "test", "ill"] == (1, 1)
    assert sum(images for images, _ in counted.values()) == 8
    text = str(report)
    assert "8 images of 4 patients, 2 to 2 each (median 2)" in text
    assert "b / test / ill: 1 images, 1 patients" in text
    assert text.endswith("no problems")
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def test_pixels_that_cannot_be_decoded_are_found_though_headers_are_sound(manifest, tmp_path):
    path = manifest()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(
        tmp_path / "image-4.png"
    )
    content = (tmp_path / "image-4.png").read_bytes()
    (tmp_path / "image-4.png").write_bytes(content[: len(content) // 2])
    report = check(str(path), image_size=8)
    (problem,) = report.problems
    assert problem.place == f"{path}, line 6"
    assert f"{tmp_path / 'image-4.png'}: it is damaged" in problem.found
    assert f"problem: {path}, line 6: " in str(report)


def test_a_source_that_cannot_be_read_at_all_is_one_problem(tmp_path):
    for source, place in (
        (str(tmp_path / "none.csv"), str(tmp_path / "none.csv")),
        ("medmnist:none", "medmnist:none"),
    ):
        report = check(source)
        assert not report.ok
        assert report.images == 0
        assert [problem.place for problem in report.problems] == [place]
        assert str(report).count(place) <= 2


def test_copies_are_noted_with_what_they_cross(manifest, tmp_path):
    path = manifest()
    (tmp_path / "image-7.png").write_bytes((tmp_path / "image-0.png").read_bytes())
    report = check(str(path), image_size=8)
    assert report.ok
    note, torn = report.notes
    assert torn.startswith(f"1 copies have another label than their original; the first is {path}, line 9")
    assert note.startswith(
        "1 images are copies of another (1 under another patient, 1 under another site, 1 under"
    )
    assert f"{path}, line 9, a copy of {path}, line 2" in note


def test_missing_patients_and_splits_are_noted(images, tmp_path):
    images(2, "a")
    images(3, "b")
    report = check(str(tmp_path), image_size=8)
    assert report.patients == 5
    assert (
        "no patients are named: each image counts as one patient, and the guarantee covers single images"
        in report.notes
    )
    assert any("there is no split" in note for note in report.notes)


def test_arrays_are_described(tmp_path):
    np.savez(tmp_path / "set.npz", images=np.eye(9, dtype=np.uint16)[None].repeat(4, 0), labels=[0, 1, 0, 1])
    report = check("set.npz", base=tmp_path)
    assert report.ok
    assert report.sizes == (("9 x 9", 4),)
    assert report.modes == (("uint16 grey", 4),)


def test_the_phantom_is_sound():
    report = check("phantom:5", image_size=16)
    assert report.ok
    assert len({count.site for count in report.counts}) == 5
