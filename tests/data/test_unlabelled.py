import numpy as np
import pytest
from PIL import Image

from fedveil.data import Reading, read_unlabelled
from fedveil.errors import DataError

GREY, COLOUR = Reading(channels=1), Reading(channels=3)
FIRST = np.array([0])


def write(path, colour=False):
    pixels = np.full((8, 8, 3), (255, 0, 0), np.uint8) if colour else np.full((8, 8), 128, np.uint8)
    Image.fromarray(pixels).save(path)


def test_a_folder_a_manifest_and_a_single_file(tmp_path):
    (tmp_path / "inner").mkdir()
    write(tmp_path / "b.png")
    write(tmp_path / "inner" / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "new.csv").write_text("path,comment\nb.png,first\ninner/a.png,second\n")
    assert read_unlabelled(str(tmp_path), 8, GREY).names == ("b.png", "inner/a.png")
    assert read_unlabelled("new.csv", 8, GREY, base=tmp_path).names == ("b.png", "inner/a.png")
    rows, pixels, problems = read_unlabelled("b.png", 8, GREY, base=tmp_path).read(FIRST)
    assert (rows.tolist(), problems) == ([0], [])
    np.testing.assert_allclose(pixels, np.full((1, 1, 8, 8), 128 / 255), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("a.csv", "path;label;patient\nb.png;x;1\n", {}),
        ("b.tsv", "PATH\tother\nb.png\t1\n", {}),
        ("c.csv", 'Image Index,Patient ID\nb.png,"1,2"\n', {"path": "Image Index"}),
        ("d.csv", "sep=;\npath;site\nb.png;\n", {}),
        ("e.csv", "\ufeffpath,label\nb.png,\n", {}),
    ],
)
def test_every_manifest_that_a_study_reads_can_be_classified(tmp_path, name, text, columns):
    """Separators, byte-order marks and foreign names; nothing but the paths is needed."""
    write(tmp_path / "b.png")
    (tmp_path / name).write_text(text, encoding="utf-16" if name == "a.csv" else "utf-8")
    found = read_unlabelled(name, 8, GREY, base=tmp_path, columns=columns)
    assert (found.names, found.problems) == (("b.png",), ())


def test_images_come_with_the_channels_of_the_model(tmp_path):
    write(tmp_path / "red.png", colour=True)
    write(tmp_path / "grey.png")
    _, grey, _ = read_unlabelled("red.png", 8, GREY, base=tmp_path).read(FIRST)
    np.testing.assert_allclose(grey, np.full((1, 1, 8, 8), 0.299), atol=1e-6)
    _, three, _ = read_unlabelled("grey.png", 8, COLOUR, base=tmp_path).read(FIRST)
    assert three.shape == (1, 3, 8, 8)
    np.testing.assert_allclose(three, 128 / 255, atol=1e-6)


def test_images_that_cannot_be_read_are_named_and_the_others_are_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    for name in ("a", "b", "c"):
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:2000])
    (tmp_path / "d.png").write_bytes(b"no image")
    (tmp_path / "new.csv").write_text("path\na.png\nb.png\nc.png\nd.png\ne.png\n")
    found = read_unlabelled("new.csv", 8, GREY, base=tmp_path)
    assert [problem.place.rpartition(" ")[2] for problem in found.problems] == ["5", "6"]
    rows, pixels, problems = found.read(np.arange(3))
    assert (rows.tolist(), pixels.shape) == ([0, 2], (2, 1, 8, 8))
    (problem,) = problems
    assert "b.png" in str(problem)
    assert "damaged" in problem.found


def test_what_cannot_be_classified_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        read_unlabelled("empty", 8, GREY, base=tmp_path)
    (tmp_path / "bad.csv").write_text("a,b\na.png,1\n")
    with pytest.raises(DataError, match="a manifest needs path"):
        read_unlabelled("bad.csv", 8, GREY, base=tmp_path)
