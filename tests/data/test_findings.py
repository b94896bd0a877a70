"""Several findings per image, and ordered grades: (n, K) of 1, 0 and -1, or codes in order."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedveil.data import Dataset, Options, check, load, load_usable, write_split
from fedveil.errors import DataError, InvalidValue, StudyError
from fedveil.study import Study

LISTED = ("Effusion", "Mass|Effusion", "No Finding", "", "Mass|uncertain", "Edema")
MARKED = (("1", "0.0"), ("", "1"), ("-1", "0"), ("0", "0"), ("1.0", "-1.0"), ("0", "1"))
COLUMNS = {"label": ("Mass", "Effusion")}


@pytest.fixture
def listed(tmp_path):
    def write(labels=LISTED) -> str:
        lines = ["path,label,patient,split"]
        for row, label in enumerate(labels):
            Image.fromarray(np.full((8, 8), 30 * row, np.uint8)).save(tmp_path / f"{row}.png")
            lines.append(f"{row}.png,{label},p{row},{'test' if row == 5 else 'train'}")
        (tmp_path / "listed.csv").write_text("\n".join(lines))
        return str(tmp_path / "listed.csv")

    return write


@pytest.fixture
def marked(tmp_path):
    def write(cells=MARKED) -> str:
        lines = ["path,Mass,Effusion,patient"]
        for row, (mass, effusion) in enumerate(cells):
            Image.fromarray(np.full((8, 8), 30 * row, np.uint8)).save(tmp_path / f"{row}.png")
            lines.append(f"{row}.png,{mass},{effusion},p{row}")
        (tmp_path / "marked.csv").write_text("\n".join(lines))
        return str(tmp_path / "marked.csv")

    return write


FINDINGS = {"image_size": 8, "task": "findings", "unknown_labels": "unknown"}


def test_a_list_of_findings_becomes_one_column_each(listed):
    data = load(listed(), separator="|", classes=("Mass", "Effusion"), **FINDINGS)
    assert data.task == "findings"
    assert data.classes == ("Mass", "Effusion")
    assert data.labels.dtype == np.int8
    assert data.labels.tolist() == [[0, 1], [1, 1], [0, 0], [-1, -1], [1, -1], [0, 0]]
    part = data.subset([1, 4])
    assert part.labels.tolist() == [[1, 1], [1, -1]]
    assert data.cohort("north", [0, 1]).labels.tolist() == [[0, 1], [1, 1]]
    assert data.digest() != load(listed(), separator="|", classes=("Effusion", "Mass"), **FINDINGS).digest()


def test_one_column_per_finding_is_the_same(marked):
    data = load(marked(), columns=COLUMNS, test_fraction=0, **FINDINGS)
    assert data.classes == ("Mass", "Effusion")
    assert data.labels.tolist() == [[1, 0], [-1, 1], [-1, 0], [0, 0], [1, -1], [0, 1]]
    turned = load(marked(), columns=COLUMNS, test_fraction=0, classes=("Effusion", "Mass"), **FINDINGS)
    assert turned.labels.tolist() == data.labels[:, ::-1].tolist()


@pytest.mark.parametrize(
    ("unknown", "expected"),
    [
        ("drop", [[1, 0], [0, 0], [0, 1]]),
        (0, [[1, 0], [0, 1], [0, 0], [0, 0], [1, 0], [0, 1]]),
        (1, [[1, 0], [1, 1], [1, 0], [0, 0], [1, 1], [0, 1]]),
    ],
)
def test_unknown_findings_are_what_the_study_says(marked, unknown, expected):
    settings = {**FINDINGS, "unknown_labels": unknown, "columns": COLUMNS, "test_fraction": 0}
    assert load(marked(), **settings).labels.tolist() == expected
    refused = {**settings, "unknown_labels": "refuse"}
    with pytest.raises(DataError, match=r"line 3: a finding is blank or -1; .* \"unknown\", 0 or 1"):
        load(marked(), **refused)
    assert len(check(marked(), **refused).problems) == 3


def test_only_the_findings_of_the_study_need_to_be_known(marked):
    settings = {**FINDINGS, "unknown_labels": "refuse", "columns": COLUMNS, "test_fraction": 0}
    with pytest.raises(DataError, match=r"line 3: a finding .* 1 other problems"):
        load(marked(), **settings, classes=("Mass",))
    cells = [(mass if mass in ("0", "1") else "0", effusion) for mass, effusion in MARKED]
    assert load(marked(cells), **settings, classes=("Mass",)).labels.shape == (6, 1)


def test_a_cell_that_is_no_mark_is_named(marked):
    with pytest.raises(DataError, match=r"marked.csv, line 3: Effusion is 2; a finding is 1 or 0"):
        load(marked([("1", "0"), ("0", "2")]), columns=COLUMNS, **FINDINGS)


def test_what_is_no_finding_of_the_study_is_noted_and_a_misspelling_refused(listed):
    settings = {**FINDINGS, "separator": "|", "classes": ("Mass", "Effusion")}
    notes = check(listed(), **settings).notes
    assert any(
        "no finding of data.classes count as none: Edema, No Finding, uncertain" in note for note in notes
    )
    with pytest.raises(
        DataError, match=r"line 2: label is effusion; classes contains Effusion, which is spelt"
    ):
        load(listed(("effusion", *LISTED[1:])), **settings)


def test_columns_of_classes_need_exactly_one(marked):
    settings = {"image_size": 8, "columns": COLUMNS, "task": "classes", "test_fraction": 0}
    data = load(marked([("1", "0"), ("0", "1"), ("0", "1")]), **settings)
    assert (data.classes, data.labels.tolist()) == (("Mass", "Effusion"), [0, 1, 1])
    for odd in (("1", "1"), ("0", "0")):
        with pytest.raises(
            DataError, match=r"line 3: \d of its findings are 1; fedveil needs exactly one class"
        ):
            load(marked([("1", "0"), odd, ("0", "1")]), **settings)


def test_columns_of_findings_can_become_two_classes(marked):
    cells = [("1", "0"), ("0", "1"), ("0", "0"), ("-1", "0"), ("-1", "1")]
    settings = {"image_size": 8, "columns": COLUMNS, "test_fraction": 0}
    with pytest.raises(DataError, match="line 5: a positive finding is blank or -1"):
        load(marked(cells), positive=("Mass", "Effusion"), **settings)
    data = load(marked(cells), positive=("Mass", "Effusion"), unknown_labels="drop", **settings)
    assert data.labels.tolist() == [1, 1, 0, 1]
    assert load(marked(cells), positive=("Mass",), unknown_labels=0, **settings).labels.tolist() == [
        1,
        0,
        0,
        0,
        0,
    ]


def test_arrays_of_findings_and_their_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    values = np.array([[1, 0], [0, np.nan], [-1, 1], [0, 0]])
    data = Dataset.from_arrays(
        pixels,
        values,
        task="findings",
        classes=["mass", "edema"],
        unknown_labels="unknown",
        test_fraction=0.0,
    )
    assert data.labels.tolist() == [[1, 0], [0, -1], [-1, 1], [0, 0]]
    np.savez(tmp_path / "set.npz", images=pixels, labels=values, classes=np.array(["mass", "edema"]))
    stored = load(str(tmp_path / "set.npz"), test_fraction=0, **FINDINGS)
    assert (stored.labels == data.labels).all()
    with pytest.raises(DataError, match="can have several labels at once"):
        load(str(tmp_path / "set.npz"), image_size=8)
    with pytest.raises(DataError, match="of 1, 0, and -1 or NaN"):
        Dataset.from_arrays(pixels, values * 2, task="findings")


def test_grades_are_classes_in_order(listed):
    grades = {"image_size": 8, "task": "grades", "classes": ("none", "mild", "severe")}
    data = load(listed(["severe", "none", "mild", "none", "severe", "mild"]), **grades)
    assert (data.task, data.classes) == ("grades", ("none", "mild", "severe"))
    assert data.labels.tolist() == [2, 0, 1, 0, 2, 1]
    with pytest.raises(DataError, match="to the grades in order"):
        load(listed(["severe", "none", "mild", "none", "severe", "mild"]), image_size=8, task="grades")
    numbered = load(listed(["2", "0", "10", "0", "2", "10"]), image_size=8, task="grades", test_fraction=0)
    assert numbered.classes == ("0", "2", "10")


def test_a_hospital_judges_each_finding_by_itself(listed, marked, tmp_path):
    settings = {**FINDINGS, "classes": ("Mass", "Effusion", "Hernia"), "channels": 1}

    def usable(source, **more):
        options = Options.of({**settings, **more})
        return load_usable(Path(source).name, options, base=tmp_path, need_patients=True)

    by_list = usable(listed(), separator="|")
    assert by_list.labels.tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0], [-1] * 3, [1, -1, -1], [0, 0, 0]]
    by_column = usable(marked(), columns=COLUMNS)
    assert by_column.labels[:, 2].tolist() == [-1] * 6, "a hospital may lack a finding"
    fewer = usable(marked(MARKED[:3]), columns=COLUMNS)
    assert fewer.labels.tolist() == by_column.labels[:3].tolist()


def test_settings_that_contradict_each_other_are_refused():
    for settings, words in (
        ({"positive": ("a",), "task": "findings"}, "positive makes the task binary"),
        ({"unknown_labels": "unknown", "task": "classes"}, "needs to have it"),
        ({"task": "boxes"}, "classes, findings, grades"),
        ({"unknown_labels": 2}, '"unknown", 0 or 1'),
        ({"preset": "nih"}, "nih-cxr14, chexpert"),
    ):
        with pytest.raises(InvalidValue, match=words):
            Options.of(settings)
    with pytest.raises(StudyError, match="positive makes the task binary"):
        Study.parse('[data]\npositive = ["a"]\ntask = "findings"')


def test_findings_in_one_label_are_never_negative_without_a_word(listed):
    with pytest.raises(
        DataError, match=r"Mass\|Effusion; it contains Mass of classes, and would count as negative"
    ):
        load(listed(), classes=("Mass", "Effusion"), **FINDINGS)
    with pytest.raises(DataError, match="findings are one 0/1 column each"):
        load(listed(), **FINDINGS)


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "quantity"])
def test_findings_can_be_split_and_written(listed, tmp_path, scheme):
    data = load(listed(), separator="|", classes=("Mass", "Effusion"), **FINDINGS)
    written = write_split(data, tmp_path / scheme, 2, scheme)
    columns = {"label": data.classes}
    parts = [load(str(path), columns=columns, allow_patient_overlap=True, **FINDINGS) for path in written[:2]]
    found = {
        Path(name).name: row.tolist()
        for part in parts
        for name, row in zip(part.image_names, part.labels, strict=True)
    }
    assert found == {f"{row}.png": data.labels[row].tolist() for row in range(5)}
