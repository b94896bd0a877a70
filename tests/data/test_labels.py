"""Labels as other people write them: several findings, unsure ones, names within names."""

import numpy as np
import pytest
from PIL import Image

from fedveil.data import check, load
from fedveil.errors import DataError

NIH = ["Infiltration|Pneumonia", "No Finding", "Pneumonia", "Effusion", "No Finding", "Effusion|Mass"]


@pytest.fixture
def table(tmp_path):
    def write(labels, header="path,label"):
        rows = []
        for number, label in enumerate(labels):
            pixels = np.random.default_rng(number).integers(0, 256, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{number}.png")
            rows.append(f'{number}.png,"{label}"')
        (tmp_path / "set.csv").write_text("\n".join([header, *rows]))
        return str(tmp_path / "set.csv")

    return write


def labels(source, **settings):
    data = load(source, image_size=8, test_fraction=0, **settings)
    return data.classes, data.labels.tolist()


def test_a_positive_name_within_a_list_of_findings_is_never_a_negative(table):
    """Of the full NIH table, 77 % of the pneumonia images would have been negative."""
    source = table(NIH)
    with pytest.raises(DataError, match="contains Pneumonia of positive") as caught:
        load(source, image_size=8, positive=["Pneumonia"])
    assert 'separator = "|"' in str(caught.value)
    assert "line 2" in str(caught.value)
    read = labels(source, positive=["Pneumonia"], separator="|")
    assert read == (("other", "positive"), [1, 0, 1, 0, 0, 0])
    assert labels(source, positive=["Pneumonia", "Mass"], separator="|")[1] == [1, 0, 1, 0, 0, 1]
    assert labels(source, positive=["Pneumonia"], accept=["joined-labels"])[1] == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    "label", ["viral pneumonia", "Pneumonia, viral", "pneumonia/effusion", "no pneumonia"]
)
def test_a_positive_name_within_another_label_is_asked_about(table, label):
    source = table([label, "pneumonia", "normal"])
    with pytest.raises(DataError, match="contains pneumonia of positive"):
        load(source, image_size=8, positive=["pneumonia"])
    assert labels(source, positive=["pneumonia", label])[1] == [1, 1, 0]
    assert labels(table(["ill", "chill", "ill"]), positive=["ill"])[1] == [1, 0, 1]


def test_findings_side_by_side_are_no_class_of_their_own(table):
    source = table(NIH)
    with pytest.raises(DataError, match="which looks like 2 findings"):
        load(source, image_size=8, test_fraction=0)
    assert len(labels(source, accept=["joined-labels"])[0]) == 5
    with pytest.raises(DataError, match="can have several labels at once"):
        load(source, image_size=8, separator="|")
    assert labels(table(["normal, benign", "malignant", "malignant"]))[0] == ("malignant", "normal, benign")


@pytest.mark.parametrize("unknown", ["-1", "-1.0", "", "uncertain", "NaN", "?"])
def test_unknown_stays_unknown(table, unknown):
    source = table(["1.0", "0.0", unknown, "0.0", "1.0"])
    for settings in ({"positive": ["1.0"]}, {}, {"classes": ["0.0", "1.0"]}):
        with pytest.raises(DataError, match="an unknown label must not count as a class"):
            load(source, image_size=8, **settings)
    assert labels(source, positive=["1.0"], unknown_labels="drop") == (("0.0", "positive"), [1, 0, 0, 1])
    assert "1 images of unknown label are left out" in check(source, unknown_labels="drop").notes
    assert labels(table(["-1", "1", "1"]), classes=["-1", "1"])[1] == [0, 1, 1], "named, it is a class"


def test_an_unsure_list_is_unknown_unless_a_finding_counts(table):
    source = table(["Mass|uncertain", "Mass", "Effusion|uncertain", "none"])
    settings = {"positive": ["Effusion"], "separator": "|"}
    with pytest.raises(DataError, match=r"label is Mass\|uncertain"):
        load(source, image_size=8, **settings)
    assert labels(source, unknown_labels="drop", **settings)[1] == [0, 1, 0]


def test_unsure_findings_in_columns(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 9), dtype=np.uint8)
    findings = np.array([[1.0, -1.0], [0, 1], [-1, 0], [0, np.nan], [0, 0]])
    np.savez(tmp_path / "set.npz", images=pixels, labels=findings, classes=np.array(["mass", "edema"]))
    source, settings = str(tmp_path / "set.npz"), {"image_size": 8, "test_fraction": 0}
    with pytest.raises(DataError, match="row 2: a positive finding is blank or -1"):
        load(source, positive=["mass"], **settings)
    kept = load(source, positive=["mass"], unknown_labels="drop", **settings)
    assert kept.labels.tolist() == [1, 0, 0, 0]
    both = load(source, positive=["mass", "edema"], unknown_labels="drop", **settings)
    assert both.labels.tolist() == [1, 1, 0]


def test_a_table_with_other_names_says_what_would_read_it(table):
    source = table(NIH, header="Image Index,Finding Labels")
    with pytest.raises(DataError) as caught:
        load(source, image_size=8)
    assert '[data.columns] path = "Image Index", label = "Finding Labels"' in str(caught.value)
    columns = {"path": "Image Index", "label": "Finding Labels"}
    assert labels(source, columns=columns, positive=["Mass"], separator="|")[1] == [0, 0, 0, 0, 0, 1]
    with pytest.raises(DataError, match="there is no column Image Name"):
        load(source, columns={**columns, "path": "Image Name"})


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age",
            'path = "Image Index", label = "Finding Labels", patient = "Patient ID"',
        ),
        ("image_id,class_name,class_id,rad_id", 'path = "image_id", label = "class_name"'),
        ("lesion_id,image_id,dx,dx_type,age", 'path = "image_id", label = "dx"'),
        ("patientId,filename,Target", 'path = "filename", label = "Target", patient = "patientId"'),
        ("a,b", "name them in the first line"),
    ],
)
def test_the_headers_of_known_tables_are_recognised(tmp_path, header, said):
    (tmp_path / "set.csv").write_text(header + "\n")
    with pytest.raises(DataError) as caught:
        load(str(tmp_path / "set.csv"))
    assert said in str(caught.value)
