"""Tables of other people: Parquet, Excel and TSV read as CSV does, and presets by the real headers of public sets."""

import builtins
import re
import zipfile

import numpy as np
import pytest
from PIL import Image
from tests.data.test_dicom import write as dicom

from fedveil.data import Dataset, check, load
from fedveil.data.formats import tables
from fedveil.data.formats.headers import guessed_columns
from fedveil.data.formats.unlabelled import read_unlabelled
from fedveil.data.options import Reading
from fedveil.errors import DataError

pyarrow = pytest.importorskip("pyarrow")
openpyxl = pytest.importorskip("openpyxl")

HEADER = ("path", "label", "patient", "age")
ROWS = [(f"{row}.png", ("clear", "ill")[row % 2], row // 2, 40 + row if row else None) for row in range(8)]


def png(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), shade, np.uint8)).save(path)


def write_csv(path, header, rows, separator=","):
    lines = [
        separator.join(header),
        *(separator.join("" if one is None else str(one) for one in row) for row in rows),
    ]
    path.write_text("\n".join(lines))


def write_parquet(path, header, rows):
    from pyarrow import parquet, table

    parquet.write_table(table({name: [row[at] for row in rows] for at, name in enumerate(header)}), path)


def write_excel(path, header, rows):
    book = openpyxl.Workbook()
    for row in ((), header, *rows):
        book.active.append(row)
    book.save(path)


WRITERS = {
    "csv": write_csv,
    "tsv": lambda path, header, rows: write_csv(path, header, rows, "\t"),
    "parquet": write_parquet,
    "xlsx": write_excel,
}


@pytest.fixture
def images(tmp_path):
    for row in range(8):
        png(tmp_path / f"{row}.png", 20 * row)
    return tmp_path


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_table_reads_alike(images, kind):
    path = images / f"set.{kind}"
    WRITERS[kind](path, HEADER, ROWS)
    data = load(str(path), image_size=8, attributes={"age": "age"})
    frame = {name: [row[at] for row in ROWS] for at, name in enumerate(HEADER)}
    expected = Dataset.from_frame(frame, base=images, image_size=8, attributes={"age": "age"})
    assert data.digest() == expected.digest()
    assert data.image_names == tuple(row[0] for row in ROWS)
    assert data.patient_names == ("0", "1", "2", "3")
    assert list(data.attributes["age"]) == [None, *(str(41 + row) for row in range(7))]
    classified = read_unlabelled(path.name, 8, Reading(channels=1), base=images)
    assert classified.names == data.image_names, "predict reads what run reads"


@pytest.mark.parametrize(("kind", "place"), [("csv", "line 3"), ("parquet", "row 2"), ("xlsx", "row 4")])
def test_a_problem_is_named_by_its_row(images, kind, place):
    path = images / f"set.{kind}"
    WRITERS[kind](path, HEADER, [ROWS[0], ("missing.png", *ROWS[1][1:]), *ROWS[2:]])
    (problem,) = check(str(path), image_size=8).problems
    assert problem.place == f"{path}, {place}"
    assert "there is no such file" in problem.found


@pytest.mark.parametrize("kind", ["parquet", "xlsx"])
@pytest.mark.parametrize("cut", [0, 7, 300, -30])
def test_a_damaged_table_is_named(images, kind, cut):
    path = images / f"set.{kind}"
    WRITERS[kind](path, HEADER, ROWS)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=rf"set.{kind}: it cannot be read"):
        load(str(path), image_size=8)
    path.unlink()
    with pytest.raises(DataError, match="there is no such"):
        load(str(path), image_size=8)


def test_an_excel_file_that_would_fill_the_memory_is_refused_before_it_is_inflated(images, monkeypatch):
    monkeypatch.setattr(tables, "LARGEST_SHEET", 2**22)
    path = images / "set.xlsx"
    write_excel(path, HEADER, ROWS)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("more.xml", b" " * 2**22)
    assert path.stat().st_size < 2**16
    with pytest.raises(DataError, match=r"4 MiB after decompression; an Excel table may hold 4 MiB"):
        load(str(path), image_size=8)


@pytest.mark.parametrize(("kind", "package"), [("parquet", "pyarrow"), ("xlsx", "openpyxl")])
def test_a_missing_package_is_named_with_the_extra(images, monkeypatch, kind, package):
    path = images / f"set.{kind}"
    WRITERS[kind](path, HEADER, ROWS)
    plain = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        DataError, match=re.escape(f"{package} is not installed; it is needed to read .{kind} tables: pip")
    ):
        load(str(path), image_size=8)


NIH = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
NIH += "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,"
)
CHEXPERT += (
    "Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,"
)
CHEXPERT += "Fracture,Support Devices"
VINBIG = "image_id,rad_id,Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,"
VINBIG += "Edema,Emphysema,Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,"
VINBIG += "Nodule/Mass,Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,"
VINBIG += "COPD,Lung tumor,Pneumonia,Tuberculosis,Other disease,No finding"
ISIC = "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target"
HAM = "lesion_id,image_id,dx,dx_type,age,sex,localization"
RSNA = "patientId,x,y,width,height,Target"


@pytest.fixture
def preset(tmp_path):
    """Writes a table of a public set and its images, and reads it by the name of the preset."""

    def read(name, header, rows, files, **settings):
        for shade, file in enumerate(files):
            png(tmp_path / file, 10 * shade)
        table = tmp_path / "set" / "table.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text("\n".join([header, *rows]))
        return load(str(table), preset=name, image_size=8, test_fraction=0, **settings)

    return read


def test_nih(preset):
    rows = [
        "00000001_000.png,Cardiomegaly|Emphysema,0,1,58,M,PA,2682,2749,0.143,0.143,",
        "00000001_001.png,No Finding,1,1,58,M,PA,2894,2729,0.143,0.143,",
        "00000002_000.png,Pleural_Thickening,0,2,81,F,AP,2500,2048,0.171,0.171,",
    ]
    files = ["set/images/00000001_000.png", "set/images_002/images/00000001_001.png", "set/00000002_000.png"]
    data = preset("nih-cxr14", NIH, rows, files)
    assert (data.task, len(data.classes), data.patient_names) == ("findings", 14, ("1", "2"))
    marked = [[data.classes[code] for code in np.flatnonzero(row)] for row in data.labels]
    assert marked == [["Cardiomegaly", "Emphysema"], [], ["Pleural_Thickening"]]
    assert {name: list(column) for name, column in data.attributes.items()} == {
        "age": ["58", "58", "81"],
        "sex": ["M", "M", "F"],
        "view": ["PA", "PA", "AP"],
    }
    binary = preset("nih-cxr14", NIH, rows, files, positive=["Cardiomegaly"])
    assert (binary.task, binary.labels.tolist()) == ("classes", [1, 0, 0])
    renamed = preset("nih-cxr14", NIH.replace("Patient Gender", "Patient Sex"), rows, files)
    assert set(renamed.attributes) == {"age", "view"}, "a version may lack an attribute"


def test_chexpert(preset):
    start = "CheXpert-v1.0-small/train"
    rows = [
        f"{start}/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
        f"{start}/patient00002/study2/view1_frontal.jpg,Female,87,Frontal,AP,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
        f"{start}/patient00002/study1/view2_lateral.jpg,Male,83,Lateral,,,,,1.0,,,-1.0,,,,,,1.0,",
    ]
    data = preset("chexpert", CHEXPERT, rows, [row.split(",")[0] for row in rows], unknown_labels="unknown")
    assert data.patient_names == ("patient00001", "patient00002")
    assert len(data.classes) == 13
    one = dict(zip(data.classes, data.labels[1].tolist(), strict=True))
    assert {name for name, mark in one.items() if mark == 1} == {"Lung Opacity", "Fracture"}
    assert data.labels[0].tolist().count(0) == 1
    with pytest.raises(DataError, match="is blank or -1"):
        preset("chexpert", CHEXPERT, rows, [])
    with pytest.raises(DataError, match=r"line 4: other/x.jpg names no patient; .* matches patient"):
        preset(
            "chexpert",
            CHEXPERT,
            [*rows[:2], "other/x.jpg" + rows[2][rows[2].index(",") :]],
            [],
            unknown_labels=0,
        )


def test_vinbig(preset, tmp_path):
    one, other = (["1" if at == place else "0" for at in range(28)] for place in (0, 17))
    rows = [",".join(["a", "R1", *one]), ",".join(["a", "R2", *one]), ",".join(["b", "R1", *other])]
    for name, folder in (("a", "train"), ("b", "set/test")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        dicom(tmp_path / folder / f"{name}.dicom", PatientID=f"patient of {name}")
    data = preset("vinbig", VINBIG, rows, [])
    assert (data.image_names, len(data.classes)) == (("a", "b"), 26)
    assert [data.classes[code] for code in data.labels.argmax(axis=1)] == [
        "Aortic enlargement",
        "Pleural thickening",
    ]
    assert data.patient_names == ("patient of a", "patient of b"), "as the files say"
    disagreeing = [rows[0], ",".join(["a", "R2", *other]), rows[2]]
    with pytest.raises(DataError, match="line 3: a was listed before"):
        preset("vinbig", VINBIG, disagreeing, [])


def test_isic(preset):
    rows = [
        "ISIC_2637011,IP_7279968,male,45.0,head/neck,unknown,benign,0",
        "ISIC_0015719,IP_3075186,female,45.0,upper extremity,melanoma,malignant,1",
        "ISIC_0052212,IP_2842074,,,lower extremity,nevus,benign,0",
    ]
    files = ["set/train/ISIC_2637011.jpg", "set/jpeg/train/ISIC_0015719.jpg", "set/ISIC_0052212.jpg"]
    data = preset("isic", ISIC, rows, files)
    assert (data.classes, data.labels.tolist()) == (("benign", "malignant"), [0, 1, 0])
    assert list(data.attributes["sex"]) == ["male", "female", None]
    assert data.patients_known


def test_ham10000(preset):
    rows = [
        "HAM_0000118,ISIC_0027419,bkl,histo,80.0,male,scalp",
        "HAM_0000118,ISIC_0025030,bkl,histo,80.0,male,scalp",
        "HAM_0002730,ISIC_0026769,nv,follow_up,,female,back",
    ]
    parts = ("HAM10000_images_part_1", "HAM10000_images_part_2", "images")
    files = [f"set/{part}/{row.split(',')[1]}.jpg" for part, row in zip(parts, rows, strict=True)]
    data = preset("ham10000", HAM, rows, files)
    assert data.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert data.labels.tolist() == [2, 2, 5]
    assert not data.patients_known, "the table names lesions, not patients"


def test_rsna(preset, tmp_path):
    rows = ["0004cfab,,,,,0", "00436515,264,152,213,379,1", "00436515,562,152,256,453,1"]
    for name in ("0004cfab", "00436515"):
        (tmp_path / "set" / "stage_2_train_images").mkdir(parents=True, exist_ok=True)
        dicom(tmp_path / "set" / "stage_2_train_images" / f"{name}.dcm", PatientID=name)
    data = preset("rsna", RSNA, rows, [])
    assert (data.image_names, data.labels.tolist()) == (("0004cfab", "00436515"), [0, 1])
    with pytest.raises(DataError, match="was listed before"):
        preset("rsna", RSNA, [*rows, "0004cfab,1,1,1,1,1"], [])


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (
            NIH,
            'preset = "nih-cxr14", or map its columns: [data.columns] path = "Image Index", label = "Finding Labels"',
        ),
        (CHEXPERT, 'preset = "chexpert"'),
        (VINBIG, 'preset = "vinbig"'),
        (ISIC, 'preset = "isic"'),
        (HAM, 'preset = "ham10000"'),
        (RSNA, 'preset = "rsna"'),
        (
            "file,Edema,Mass,sex",
            '[data.columns] path = "file", label = ["Edema", "Mass"], attributes = { sex = "sex" }',
        ),
        ("study,kvp", ""),
    ],
)
def test_a_foreign_table_is_answered_with_the_lines_that_read_it(header, words):
    assert words in guessed_columns(header.split(","))
    assert bool(words) == bool(guessed_columns(header.split(",")))
