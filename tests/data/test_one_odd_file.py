"""One file more, whatever it is, changes nothing about the images of others: not their pixels, classes or split."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.dicom_files import odd_dicom

from fedveil.data import load, load_usable
from fedveil.data.options import Options
from fedveil.errors import DataError
from fedveil.study import Study
from fedveil.study.pipeline import make_task
from fedveil.study.prepare import prepare
from fedveil.study.progress import Silent

PUBLIC = {"classes": ("ill", "normal"), "channels": 1, "image_size": 16}


def usable(source, *, need_patients=True, **settings):
    """What a hospital that has approved a study takes part with."""
    return load_usable(source, Options.of({**PUBLIC, **settings}), base=Path(), need_patients=need_patients)


def picture(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(folder, odd=None):
    """Twelve grey images of six patients as a manifest, and perhaps an odd one of a seventh in the middle."""
    folder.mkdir()
    rows = []
    for number in range(12):
        Image.fromarray(picture(number, 20, 18)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{('ill', 'normal')[number % 2]},p{number // 2}")
    if odd is not None:
        rows.insert(5, odd(folder))
    (folder / "set.csv").write_text("\n".join(["path,label,patient", *rows]))
    return folder / "set.csv"


def saved(image, row="odd.png,ill,p9"):
    def make(folder):
        image.save(folder / row.partition(",")[0])
        return row

    return make


def torn(folder):
    Image.fromarray(picture(50, 64, 64)).save(folder / "odd.png")
    content = (folder / "odd.png").read_bytes()
    (folder / "odd.png").write_bytes(content[: len(content) // 2])
    return "odd.png,ill,p9"


def dicom(slope, intercept="0"):
    def make(folder):
        odd_dicom(folder / "odd.dcm", slope, intercept)
        return "odd.dcm,ill,p9"

    return make


GREY = Image.fromarray(picture(50, 20, 18))
ODD = {
    "rgba": saved(Image.fromarray(picture(50, 20, 18, 4))),
    "rgb": saved(Image.fromarray(picture(50, 20, 18, 3))),
    "16 bit": saved(Image.fromarray(picture(50, 20, 18).astype(np.uint16) * 257)),
    "larger": saved(Image.fromarray(picture(50, 300, 200))),
    "webp": saved(GREY, "odd.webp,ill,p9"),
    "torn": torn,
    "slope nan": dicom("nan"),
    "slope inf": dicom("inf"),
    "slope 1e308": dicom("1e308", "1e308"),
    "intercept -inf": dicom("1", "-inf"),
    "missing": lambda _: "none.png,ill,p9",
    "too many cells": saved(GREY, "odd.png,ill,p9,train"),
    "no label": saved(GREY, "odd.png,,p9"),
    "unsure": saved(GREY, "odd.png,-1,p9"),
    "other label": saved(GREY, "odd.png,fracture,p9"),
    "no patient": saved(GREY, "odd.png,ill,"),
    "anonymous": saved(GREY, "odd.png,ill,ANONYMOUS"),
    "listed twice": lambda _: "0.png,ill,p9",
    "other spelling": lambda folder: saved(GREY, "odd.png,ill,P00")(folder),
}


def seen(data):
    """Every image by its name: pixels, label, patient and split."""
    pixels = data.images.read(range(len(data)))
    return {
        name: (pixels[row].tobytes(), data.classes[data.labels[row]], data.split[row])
        for row, name in enumerate(data.image_names)
    }


@pytest.mark.parametrize("odd", ODD)
def test_one_odd_file_changes_nothing_about_the_others(tmp_path, odd, caplog):
    with caplog.at_level(logging.WARNING, "fedveil.site"):
        alone = usable(str(write(tmp_path / "without")))
        both = usable(str(write(tmp_path / "with", ODD[odd])))
        assert (alone.classes, alone.images.channels) == (both.classes, both.images.channels)
        first, second = seen(alone), seen(both)
    assert len(first) == 12
    if odd != "listed twice":  # there the odd row bears the name of another one
        assert {name: second[name] for name in first} == first
    rows = [
        row
        for row, name in enumerate(both.image_names)
        if both.patient_names[both.patients[row]] != "patient p9"
    ]
    assert len(rows) == 12 + (odd == "other spelling")
    counted = odd in ("rgba", "rgb", "16 bit", "larger", "webp", "listed twice", "other spelling", "torn")
    assert len(both) == 12 + counted
    reported = bool(caplog.records)
    assert reported == (
        odd not in ("rgba", "rgb", "16 bit", "larger", "webp", "other spelling", "listed twice")
    )


@pytest.mark.parametrize("kind", ["manifest", "folder"])
def test_one_colour_file_leaves_features_and_views_of_all_others_bit_for_bit(tmp_path, monkeypatch, kind):
    """It decided the channels of the whole set, and with them the seeds of everybody's degraded views."""
    found = []
    for name, odd in (("without", None), ("with", ODD["rgba"])):
        monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / f"cache-{name}"))
        table = write(tmp_path / name, odd)
        if kind == "folder":
            for line in table.read_text().splitlines()[1:]:
                file, label, patient = line.split(",")
                target = table.parent / "images" / label / f"{patient}-{file}"
                target.parent.mkdir(parents=True, exist_ok=True)
                (table.parent / file).rename(target)
        study = Study.parse('[model]\nfeatures = "pixels@8"').with_changes(
            {
                "data": {
                    "source": str(table if kind == "manifest" else table.parent / "images"),
                    "image_size": 16,
                    "test_fraction": 0.5,
                    "sites": {"count": 1},
                },
                "privacy": {"delta": 1e-3},
            }
        )
        prepared = prepare(study)
        assert (prepared.study.data.channels, prepared.study.data.classes) == (1, ("ill", "normal"))
        task = make_task(prepared.study, prepared.dataset, Silent())
        arrays = [np.asarray(task.features), np.asarray(task.degraded)]
        found.append(
            {
                image: [array[row].tobytes() for array in arrays]
                for row, image in enumerate(task.dataset.image_names)
            }
        )
    assert len(found[0]) == 12
    assert {name: found[1][name] for name in found[0]} == found[0]


def test_the_first_image_decides_where_no_channels_are_set_and_the_run_keeps_them(tmp_path):
    """Its header is public then; a study that names channels asks no image."""
    colour = Image.fromarray(picture(50, 20, 18, 3))
    table = write(tmp_path / "set")
    assert load(str(table), image_size=8).images.channels == 1
    colour.save(tmp_path / "set" / "0.png")
    assert load(str(table), image_size=8).images.channels == 3
    assert load(str(table), image_size=8, channels=1).images.channels == 1


def test_one_line_in_another_encoding_leaves_the_names_of_others(tmp_path):
    """Names decide who is held out: how one row is spelt must not change what others are called."""
    table = write(tmp_path / "set")
    text = table.read_text().replace("p1", "Müller")
    names = []
    for last in (b"p5", "pé".encode("cp1252")):
        table.write_bytes(text.encode().replace(b"p5", last))
        names.append(load(str(table), image_size=8).patient_names)
    assert names[0][:2] == names[1][:2] == ("Müller", "p0")
    assert "pé" in names[1]


def test_one_file_in_another_folder_leaves_the_meaning_of_folders(tmp_path):
    """A level of splits was one only if every image lay so; one stray file turned splits into hospitals."""
    for split in ("train", "test"):
        for label in ("ill", "normal"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for number in range(3):
                Image.fromarray(picture(number, 9, 9)).save(folder / f"{number}.png")
    (tmp_path / "stray" / "ill").mkdir(parents=True)
    Image.fromarray(picture(9, 9, 9)).save(tmp_path / "stray" / "ill" / "x.png")
    data = usable(str(tmp_path), layout="split/class", need_patients=False)
    assert (data.sites, data.classes, len(data)) == (None, ("ill", "normal"), 12)
    assert data.split.tolist().count(1) == 6
    with pytest.raises(DataError, match="do not match the layout split/class"):
        load(str(tmp_path), image_size=8)
    sites = usable(str(tmp_path), layout="site/class", need_patients=False)
    assert sites.site_names == ("stray", "test", "train")
