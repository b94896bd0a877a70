import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedveil.data import check, load
from fedveil.errors import DataError


def refused(path: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load(str(path), image_size=8, **options)
    return str(caught.value)


def test_a_manifest_becomes_a_data_set(manifest, tmp_path):
    data = load("set.csv", base=manifest().parent, image_size=8)
    assert len(data) == 8
    assert data.classes == ("clear", "ill")
    assert data.labels.tolist() == [0, 1] * 4
    assert data.patient_names == ("p0", "p1", "p2", "p3")
    assert data.patients.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert data.site_names == ("a", "b")
    assert data.sites.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert data.split.tolist() == [0] * 6 + [1] * 2
    assert data.patients_known
    assert not data.synthetic
    assert data.name == "set"
    stored = np.asarray(Image.open(tmp_path / data.image_names[3]))
    assert data.images.channels == 1
    assert abs(float(data.images.read([3]).mean()) - stored.mean() / 255) < 0.05


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_other_encodings_and_separators(images, tmp_path, encoding, separator):
    lines = [separator.join(("path", "label", "patient"))]
    labels = ("Müller", "gesund")
    lines += [separator.join((name, labels[row % 2], f"é{row}")) for row, name in enumerate(images(6))]
    path = tmp_path / "set.csv"
    path.write_bytes("\r\n".join(lines).encode(encoding))
    data = load(str(path), image_size=8)
    assert data.classes == ("Müller", "gesund")
    assert data.patient_names[0] == "é0"
    notes = check(str(path), image_size=8).notes
    assert any("Windows-1252" in note for note in notes) == (encoding == "latin-1")


def test_spreadsheet_habits_are_understood(images, tmp_path):
    first, second, third = images(3, "deep")
    text = f'sep=;\n"Path" ; LABEL\n\n"{first}";a\n{second.replace("/", chr(92))}; b \n;;\n{third};b\n'
    (tmp_path / "set.csv").write_text(text.replace(";;\n", " ; \n"))
    data = load(str(tmp_path / "set.csv"), image_size=8, test_fraction=0)
    assert data.classes == ("a", "b")
    assert data.labels.tolist() == [0, 1, 1]


def test_without_patients_every_image_is_its_own(images, tmp_path):
    lines = [f"{name},{row % 2}" for row, name in enumerate(images(12))]
    (tmp_path / "set.csv").write_text("\n".join(["path,label", *lines]))
    data = load(str(tmp_path / "set.csv"), image_size=8)
    assert not data.patients_known
    assert len(data.patient_names) == 12
    assert sorted(data.patients) == list(range(12))


def test_numbered_classes_are_ordered_by_value(images, tmp_path):
    lines = [f"{name},{label}" for name, label in zip(images(6), (10, 9, 2, 10, 9, 2), strict=True)]
    (tmp_path / "set.csv").write_text("\n".join(["path,label", *lines]))
    assert load(str(tmp_path / "set.csv"), image_size=8, test_fraction=0).classes == ("2", "9", "10")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the columns are none; a manifest needs path and label"),
        (b"file,label\na,b\n", "the columns are file, label; a manifest needs path"),
        (b"path,path,label\n", "the column path occurs twice"),
        (b"path,label,patients\n", "the column patients is unknown; it looks like patient"),
        (b"path,label,Patient ID\n", "the column patient id is unknown; it looks like patient"),
        (b"path,label,pateint\n", "the column pateint is unknown; it looks like patient"),
        (b"PK\x03\x04\0\0", "it is not text that can be read (it holds zero bytes)"),
        ("path,label\n".encode("utf-16-le"), "it is not text that can be read"),
        (b"\xff\xfep\0a", "it is not text that can be read"),
        (b"path,label\n", "there are no images"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, content, said):
    path = tmp_path / "set.csv"
    path.write_bytes(content)
    assert said in refused(path)


def test_a_missing_manifest_or_folder_is_refused(tmp_path, monkeypatch):
    assert "none.csv: there is no such file" in refused(tmp_path / "none.csv")
    assert "there is no such folder" in refused(tmp_path / "none")


@pytest.mark.parametrize(
    ("line", "row", "said"),
    [
        (3, "image-1.png,ill,p0,a", "it has 4 cells where the first line has 5"),
        (3, "image-1.png,,p0,a,train", "label is empty"),
        (3, "image-1.png,ill,,a,train", "patient is empty"),
        (3, "image-1.png,ill,p0,a,maybe", "split is maybe; it must be train, test or validation"),
        (3, "image-0.png,clear,p0,a,train", "image-0.png was listed before, at"),
        (3, "./x/../image-0.png,ill,p0,a,train", "was listed before, at"),
        (3, "nowhere.png,ill,p0,a,train", "nowhere.png: there is no such file"),
        (3, "image-1.png,ill,p0,b,train", "patient p0 is in the site b, but in a at"),
        (9, "image-7.png,ill,p3,b,train", "patient p3 is in the split train, but in test at"),
        (9, "image-7.png,rare,p3,b,test", "the label rare occurs only outside the training images"),
    ],
)
def test_a_bad_row_is_told_by_file_and_line(manifest, line, row, said):
    path = manifest(replace={line: row})
    message = refused(path)
    assert f"{path}, line {line}: " in message
    assert said in message
    assert message.count("; ") >= 1
    problems = check(str(path), image_size=8).problems
    assert {problem.place for problem in problems} == {f"{path}, line {line}"}


def test_every_problem_is_listed_and_counted(manifest, tmp_path):
    path = manifest(
        "gone.png,ill,p0,a,train", replace={2: "empty.png,clear,p0,a,train", 5: "image-3.png,ill,p1,b,dev"}
    )
    (tmp_path / "empty.png").write_bytes(b"")
    assert "and see the 2 other problems with `fedveil data check" in refused(path)
    report = check(str(path), image_size=8)
    assert not report.ok
    assert {problem.place for problem in report.problems} == {f"{path}, line {n}" for n in (2, 5, 10)}
    assert report.images == 6


def test_a_site_with_nothing_to_train_on_is_refused(manifest):
    path = manifest(replace={4: "image-2.png,clear,p1,b,test", 5: "image-3.png,ill,p1,b,test"})
    assert "the site b has no patients to train on" in refused(path)


def test_one_class_is_refused_unless_the_study_names_others(images, tmp_path):
    (tmp_path / "set.csv").write_text("\n".join(["path,label", *(f"{name},ill" for name in images(4))]))
    assert "every training image has the label ill" in refused(tmp_path / "set.csv")
    data = load(str(tmp_path / "set.csv"), image_size=8, classes=("clear", "ill"))
    assert data.classes == ("clear", "ill")
    assert set(data.labels) == {1}
    assert "the class ill is unknown; the classes are clear, sick" in refused(
        tmp_path / "set.csv", classes=("clear", "sick")
    )


def test_overlap_is_allowed_where_the_study_says_so(manifest):
    path = manifest(replace={9: "image-7.png,ill,p3,a,train"})
    assert "patient p3 is in the site" in refused(path)
    data = load(str(path), image_size=8, allow_patient_overlap=True)
    assert data.patients.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert check(str(path), image_size=8, allow_patient_overlap=True).ok


def test_columns_that_do_not_count_are_noted(images, tmp_path):
    lines = [f"{name},{row % 2},{row}" for row, name in enumerate(images(4))]
    (tmp_path / "set.csv").write_text("\n".join(["path,label,age", *lines]))
    assert "the column age is not used" in check(str(tmp_path / "set.csv"), image_size=8).notes


def test_a_line_break_within_a_cell_is_told_and_takes_no_other_row_along(images, tmp_path):
    names = images(3)
    text = f'path,label,remark\n{names[0]},a,"two\nlines"\n{names[1]},b,\ngone.png,a,\n{names[2]},a,\n'
    (tmp_path / "set.csv").write_text(text)
    told = refused(tmp_path / "set.csv")
    assert f"{tmp_path / 'set.csv'}, line 3: it has 1 cells where the first line has 3" in told
    assert "remove line breaks within cells" in told


def test_the_real_jpegs_agree_with_the_npz_made_from_them(shared_data, tmp_path):
    """A manifest made from the index of real JPEG files gives the images and labels of the 64 pixel .npz."""
    with (shared_data / "kermany_cxr" / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::60]
    lines = ["path,label,patient,split"]
    with zipfile.ZipFile(shared_data / "kermany_cxr" / "kermany_cxr_224_jpeg.zip") as archive:
        for row in rows:
            folder = "NORMAL" if row["class"] == "normal" else "PNEUMONIA"
            path = archive.extract(f"{row['split']}/{folder}/{row['file']}", tmp_path)
            lines.append(f"{Path(path).relative_to(tmp_path)},{row['class']},{row['patient']},{row['split']}")
    (tmp_path / "kermany.csv").write_text("\n".join(lines))
    ours = load("kermany.csv", base=tmp_path, positive=["bacteria", "virus"])
    npz = load("kermany_cxr/kermany_cxr_64.npz", base=shared_data, positive=["bacteria", "virus"])
    where = {name: row for row, name in enumerate(npz.image_names)}
    same = np.array([where[Path(name).name] for name in ours.image_names])
    assert ours.classes == npz.classes == ("normal", "positive")
    np.testing.assert_array_equal(ours.labels, npz.labels[same])
    np.testing.assert_array_equal(ours.split, npz.split[same])
    assert [ours.patient_names[code] for code in ours.patients] == [
        npz.patient_names[code] for code in npz.patients[same]
    ]
    difference = ours.images.read(range(len(ours)))[:, :1] - npz.images.read(same)
    assert np.abs(difference).mean() < 0.002
    assert np.abs(difference).max() < 0.06
