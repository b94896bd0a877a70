"""What a study can use of a hospital's images: what is wrong with one changes nothing for any other."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedveil.data import Dataset, Options, load_usable
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
    options = Options(image_size=8, classes=classes, positive=positive, secret=b"key")
    wanted = {"channels": 1, "need_patients": True, **settings}
    return load_usable("images.csv", options, base=folder, **wanted)


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
    np.savez(tmp_path / "images.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.array([0, 1, 0, 1]))
    options = Options(image_size=8, classes=("0", "1"))
    with pytest.raises(DataError, match="3 channels"):
        load_usable("images.npz", options, base=tmp_path, channels=1, need_patients=False)
