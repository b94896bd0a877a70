import numpy as np
import pytest
from PIL import Image

from fedveil.data import read_unlabelled
from fedveil.errors import DataError


def write(path, colour=False):
    pixels = np.full((8, 8, 3), (255, 0, 0), np.uint8) if colour else np.full((8, 8), 128, np.uint8)
    Image.fromarray(pixels).save(path)


def test_a_folder_a_manifest_and_a_single_file(tmp_path):
    (tmp_path / "inner").mkdir()
    write(tmp_path / "b.png")
    write(tmp_path / "inner" / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "new.csv").write_text("path,comment\nb.png,first\ninner/a.png,second\n")
    assert read_unlabelled(str(tmp_path), 8, 1).names == ("b.png", "inner/a.png")
    assert read_unlabelled("new.csv", 8, 1, base=tmp_path).names == ("b.png", "inner/a.png")
    one = read_unlabelled("b.png", 8, 1, base=tmp_path)
    np.testing.assert_allclose(one.read(np.array([0])), np.full((1, 1, 8, 8), 128 / 255), atol=1e-6)


def test_images_come_with_the_channels_of_the_model(tmp_path):
    write(tmp_path / "red.png", colour=True)
    write(tmp_path / "grey.png")
    grey = read_unlabelled("red.png", 8, 1, base=tmp_path).read(np.array([0]))
    np.testing.assert_allclose(grey, np.full((1, 1, 8, 8), 0.299), atol=1e-6)
    three = read_unlabelled("grey.png", 8, 3, base=tmp_path).read(np.array([0]))
    assert three.shape == (1, 3, 8, 8)
    np.testing.assert_allclose(three, 128 / 255, atol=1e-6)


def test_what_cannot_be_classified_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        read_unlabelled("empty", 8, 1, base=tmp_path)
    (tmp_path / "bad.csv").write_text("file\na.png\n")
    with pytest.raises(DataError, match="no column path"):
        read_unlabelled("bad.csv", 8, 1, base=tmp_path)
    (tmp_path / "torn.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"torn\.png"):
        read_unlabelled("torn.png", 8, 1, base=tmp_path)
