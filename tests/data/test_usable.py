"""What a study can use of a hospital's images: what is wrong with one changes nothing for any other."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedveil.data import Dataset, Options, Reading, load, load_usable
from fedveil.errors import DataError

Table = list[dict[str, str]]
COLUMNS = ("path", "label", "patient", "split")


def write(folder: Path, change: Callable[[Path, Table], Table]) -> None:
    generator, rows = np.random.default_rng(1), []
    for number in range(12):
        pixels = generator.integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"i{number}.png")
        label = ("normal", "ill")[number % 2]
        split = ("train", "test")[number % 5 == 4]
        rows.append({"path": f"i{number}.png", "label": label, "patient": f"p{number // 2}", "split": split})
    with (folder / "images.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(change(folder, rows))


def usable(folder: Path, positive: tuple[str, ...] | None = None, **settings: object) -> Dataset:
    classes = ("normal", "ill") if positive is None else ("normal", "positive")
    options = Options(
        image_size=8, reading=Reading(channels=1), classes=classes, positive=positive, secret=b"key"
    )
    return load_usable("images.csv", options, base=folder, **{"need_patients": True, **settings})


def contents(dataset: Dataset, without: str) -> dict[str, tuple[object, ...]]:
    """All that a study sees of every image but one."""
    rows = np.arange(len(dataset))
    pixels, digests = dataset.images.read(rows), dataset.images.digest(rows)
    return {
        f"{dataset.image_names[row]} {dataset.patient_names[dataset.patients[row]]}": (
            int(dataset.labels[row]),
            int(dataset.split[row]),
            digests[row],
            pixels[row].tobytes(),
        )
        for row in rows
        if dataset.image_names[row] != without
    }


def colour(folder: Path, rows: Table) -> Table:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / rows[3]["path"])
    return rows


def cut_short(folder: Path, rows: Table) -> Table:
    content = (folder / rows[3]["path"]).read_bytes()
    (folder / rows[3]["path"]).write_bytes(content[: len(content) // 2])
    return rows


def gone(folder: Path, rows: Table) -> Table:
    (folder / rows[3]["path"]).unlink()
    return rows


@pytest.mark.parametrize(
    "line",
    [
        'i3.png,ill,"p1,train',
        '"i3.png,ill,p1,train',
        'i3.png,"ill"x,p1,train',
        "i3.png,ill\0,p1,train",
        "i3\0.png,ill,p1,train",
        f"i3.png,{'x' * 140_000},p1,train",
        f"i3.png,{'7' * 5000},p1,train",
        f"a\\{'x' * 300}.png,ill,p1,train",
        f"{'x' * 300}.png,ill,p1,train",
        "i3.png,ill,-1,train",
        "i3.png,ill",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_no_line_of_a_table_takes_another_along(tmp_path, line, encoding):
    """A stray quote took all rows below it, a zero byte or a long cell the whole table."""
    write(tmp_path, lambda folder, rows: rows)
    table = (tmp_path / "images.csv").read_text().splitlines()
    seen = []
    for odd in ([line], []):
        lines = [*table[:4], *odd, *table[5:]]
        (tmp_path / "images.csv").write_bytes("\n".join(lines).encode(encoding))
        seen.append(contents(usable(tmp_path), without="i3.png"))
    assert seen[0] == seen[1]
    assert len(seen[0]) == 11


def test_half_a_character_of_a_table_takes_nothing_along(tmp_path):
    write(tmp_path, lambda folder, rows: rows)
    content = (tmp_path / "images.csv").read_text().replace("i3.png,ill", "i3.png,il\u0394").encode("utf-16")
    (tmp_path / "images.csv").write_bytes(content.replace("\u0394".encode("utf-16-le"), b"\x00\xd8"))
    assert len(contents(usable(tmp_path), without="i3.png")) == 11


def test_whose_row_of_a_file_came_first_decides_nothing_about_others(tmp_path):
    """Two rows of one patient count once, also where another patient lists the file before."""

    def listed(first: bool) -> list[str]:
        write(tmp_path, lambda folder, rows: rows)
        path = tmp_path / "images.csv"
        head, *rows = path.read_text().splitlines()
        more = ["i3.png,normal,p99,train"] if first else []
        path.write_text("\n".join([head, *more, *rows, "i3.png,normal,p1,train", "i3.png,normal,P01,train"]))
        found = usable(tmp_path)
        return [one for one in found.image_names if one == "i3.png"]

    assert (len(listed(True)), len(listed(False))) == (2, 1)


def test_one_label_of_an_array_names_one_class(tmp_path):
    """Classes were named up to the largest label: one of 10^9 took all memory."""
    images, labels = np.zeros((6, 8, 8), np.uint8), np.array([0, 1, 0, 1, 0, 10**9])
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    options = Options(image_size=8, classes=("0", "1"), reading=Reading(channels=1))
    assert len(load_usable("images.npz", options, base=tmp_path, need_patients=False)) == 5


def test_people_without_a_name_are_not_one_patient(tmp_path):
    images, labels = np.zeros((6, 8, 8), np.uint8), np.array([0, 1] * 3)
    patients = np.array(["a", "b", "", "", "-1", "-1"])
    np.savez(tmp_path / "images.npz", images=images, labels=labels, patient=patients)
    options = Options(image_size=8, classes=("0", "1"), reading=Reading(channels=1))
    assert len(load_usable("images.npz", options, base=tmp_path, need_patients=True)) == 2
    with pytest.raises(DataError, match="the patient has no name"):
        load("images.npz", base=tmp_path, image_size=8)


def test_a_folder_needs_a_layout_where_each_image_is_judged_by_itself(tmp_path):
    """By majority, one image more gave all others another meaning."""
    for place in ("ill", "normal", "s/ill", "s/normal"):
        (tmp_path / place).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / place / "x.png")
    options = Options(image_size=8, classes=("ill", "normal"), reading=Reading(channels=1))
    with pytest.raises(DataError, match="no layout is set"):
        load_usable(".", options, base=tmp_path, need_patients=False)
    found = load_usable(".", replace(options, layout="class"), base=tmp_path, need_patients=False)
    assert sorted(found.image_names) == ["ill/x.png", "normal/x.png"]


def changed(**values: str) -> Callable[[Path, Table], Table]:
    def change(folder: Path, rows: Table) -> Table:
        return [{**row, **values} if number == 3 else row for number, row in enumerate(rows)]

    return change


@pytest.mark.parametrize(
    "change",
    [
        colour,
        cut_short,
        gone,
        changed(label="rare"),
        changed(label=""),
        changed(patient=""),
        changed(split="later"),
        changed(split="test"),
        changed(patient="p0"),
        changed(path="i4.png"),
        changed(path="nowhere.png"),
    ],
)
@pytest.mark.parametrize("positive", [None, ("ill",)])
def test_what_is_odd_about_one_image_changes_no_other(tmp_path, change, positive):
    write(tmp_path, change)
    found = contents(usable(tmp_path, positive), without="i3.png")
    write(
        tmp_path, lambda folder, rows: [row for number, row in enumerate(change(folder, rows)) if number != 3]
    )
    assert contents(usable(tmp_path, positive), without="i3.png").items() <= found.items()
    assert len(found) >= 11


@pytest.mark.parametrize("label", ["Ill", "il-l", " ILL "])
def test_a_label_spelt_almost_like_a_positive_one_counts_nothing(tmp_path, label):
    write(tmp_path, changed(label=label))
    assert "i3.png" not in usable(tmp_path, ("ill",)).image_names
    write(tmp_path, changed(label="fracture"))
    found = usable(tmp_path, ("ill",))
    assert found.labels[found.image_names.index("i3.png")] == 0


def test_images_that_nobody_names_are_of_different_patients_even_where_they_are_alike(tmp_path):
    write(tmp_path, lambda folder, rows: rows)
    with (tmp_path / "images.csv").open("w") as file:
        file.write("path,label\n" + "".join(f"{name}.png,normal\n" for name in ("i0", "i1", "./i0")))
    assert len(usable(tmp_path)) == 0
    assert len(set(usable(tmp_path, need_patients=False).patients)) == 3


def test_what_is_wrong_with_the_whole_source_is_said(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        usable(tmp_path)
    write(tmp_path, lambda folder, rows: rows)
    options = Options(image_size=8, classes=("0", "1"))
    with pytest.raises(DataError, match="no channels"):
        load_usable("images.csv", options, base=tmp_path, need_patients=False)


def test_images_of_an_array_are_brought_to_the_channels_of_the_study(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.array([0, 1, 0, 1]))
    options = Options(image_size=8, classes=("0", "1"), reading=Reading(channels=1))
    found = load_usable("images.npz", options, base=tmp_path, need_patients=False)
    assert found.images.read(range(4)).shape == (4, 1, 8, 8)
