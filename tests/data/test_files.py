import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from fedveil.data import Reading, load
from fedveil.data.formats.image_files import FileImages, probe, read_image
from fedveil.errors import DataError

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
DEEP = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000


def tags(**values):
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in values.items():
        directory[int(tag[1:])] = value
    return directory


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize(("stored", "white"), [(RAMP, 255), (DEEP, 65535)])
def test_grey_is_divided_by_what_its_bits_can_hold(tmp_path, kind, stored, white):
    path = tmp_path / f"image.{kind}"
    Image.fromarray(stored).save(path)
    assert probe(path).channels == 1
    np.testing.assert_allclose(read_image(path), stored[None] / white, atol=1e-6)


def test_bilevel_float_and_big_endian(tmp_path):
    Image.fromarray(RAMP > 100).save(tmp_path / "one.png")
    np.testing.assert_array_equal(read_image(tmp_path / "one.png"), (RAMP > 100)[None])
    Image.fromarray(RAMP.astype(np.float32) / 255).save(tmp_path / "float.tiff")
    np.testing.assert_allclose(read_image(tmp_path / "float.tiff"), RAMP[None] / np.float32(255))
    Image.fromarray(DEEP.astype(">u2")).save(tmp_path / "big.tiff")
    np.testing.assert_allclose(read_image(tmp_path / "big.tiff"), DEEP[None] / 65535, atol=1e-6)


def test_tiff_whose_white_is_zero_is_turned_bright(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "deep.tiff", tiffinfo=tags(t262=0))
    np.testing.assert_allclose(read_image(tmp_path / "deep.tiff"), 1 - DEEP[None] / 65535, atol=1e-6)


def test_twelve_bit_tiff_is_divided_by_4095(tmp_path):
    values = np.array([[0, 1000, 2048, 4095]], np.uint16)
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.reshape(-1, 2).tolist()
    )
    entries = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 6)]
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    header = struct.pack("<2sHI", b"II", 42, 14)
    content = header + packed + struct.pack("<H", len(entries)) + directory + b"\0" * 4
    (tmp_path / "twelve.tiff").write_bytes(content)
    np.testing.assert_allclose(read_image(tmp_path / "twelve.tiff"), values[None] / 4095, atol=1e-6)


def test_colour_alpha_palette_and_cmyk(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(colour)
    image.save(tmp_path / "rgb.png")
    np.testing.assert_allclose(read_image(tmp_path / "rgb.png"), colour.transpose(2, 0, 1) / 255, atol=1e-6)
    alpha = np.full((5, 6, 1), 51, np.uint8)
    Image.fromarray(np.concatenate([colour, alpha], axis=2)).save(tmp_path / "rgba.png")
    faint = read_image(tmp_path / "rgba.png")
    np.testing.assert_allclose(faint, colour.transpose(2, 0, 1) / 255 * 0.2, atol=1e-6)
    palette = image.convert("P")
    palette.save(tmp_path / "palette.png")
    expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(read_image(tmp_path / "palette.png"), expected, atol=1e-6)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert read_image(tmp_path / "cmyk.jpg").shape == (3, 5, 6)
    Image.fromarray(RAMP).convert("LA").save(tmp_path / "la.png")
    np.testing.assert_allclose(read_image(tmp_path / "la.png"), RAMP[None] / 255, atol=1e-6)


@pytest.mark.parametrize("kind", ["jpg", "png", "tiff"])
def test_the_camera_orientation_is_undone(tmp_path, kind):
    smooth = np.tile(np.arange(48, dtype=np.uint8) * 5, (32, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"turned.{kind}"
    Image.fromarray(smooth).save(path, exif=exif)
    np.testing.assert_allclose(read_image(path)[0], np.rot90(smooth, -1) / 255, atol=0.02)


def save(path, **options):
    Image.fromarray(RAMP).save(path, **options)
    return path


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    return path


def zero_sized(path):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 1, 8, 0, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )
    return path


def bytes_at(path, content):
    path.write_bytes(content)
    return path


FRAMES = {"save_all": True, "append_images": [Image.fromarray(255 - RAMP)]}


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("none.png", lambda path: path, "there is no such file"),
        ("folder.png", lambda path: path.mkdir() or path, "cannot be opened"),
        ("empty.png", lambda path: bytes_at(path, b""), "empty \\(0 bytes\\)"),
        ("text.png", lambda path: bytes_at(path, b"no image"), "not an image that can be read"),
        ("zero.png", zero_sized, "not an image that can be read"),
        ("moving.png", lambda path: save(path, **FRAMES), "animated or holds several images \\(2 frames\\)"),
        ("pages.tiff", lambda path: save(path, **FRAMES), "animated or holds several images \\(2 frames\\)"),
        ("moving.gif", lambda path: save(path, **FRAMES), "not an image that can be read"),
    ],
)
def test_what_is_no_image_is_refused_by_its_header_and_when_read(tmp_path, name, make, said):
    path = make(tmp_path / name)
    for look in (probe, read_image):
        with pytest.raises(DataError, match=said) as caught:
            look(path)
        assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("kind", ["png", "jpg", "tiff"])
def test_a_truncated_image_is_refused_when_read(tmp_path, kind):
    path = truncated(tmp_path / f"cut.{kind}")
    with pytest.raises(DataError, match="damaged") as caught:
        read_image(path)
    assert str(caught.value).startswith(str(path))


def test_pixels_without_a_public_white_are_refused(tmp_path):
    Image.fromarray(DEEP.astype(np.int32)).save(tmp_path / "signed.tiff")
    with pytest.raises(DataError, match=r"signed.tiff: its pixels are 32 bit or signed"):
        read_image(tmp_path / "signed.tiff")
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DataError, match=r"float.tiff: floating point pixels reach from 0 to 220"):
        read_image(tmp_path / "float.tiff")
    Image.fromarray(np.full((3, 3), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    with pytest.raises(DataError, match=r"nan.tiff: pixels hold NaN"):
        read_image(tmp_path / "nan.tiff")


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "closed.png")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(DataError, match="cannot be opened \\(Permission denied\\)"):
        probe(path)


def test_a_stack_reads_in_the_order_asked_for_and_resizes(tmp_path):
    paths = []
    for level in range(5):
        Image.fromarray(np.full((30, 20), level * 40, np.uint8)).save(tmp_path / f"{level}.png")
        paths.append(tmp_path / f"{level}.png")
    stack = FileImages(paths, [probe(path) for path in paths], 16)
    assert (len(stack), stack.channels, stack.size) == (5, 1, 16)
    read = stack.read([3, 0, 3])
    assert read.dtype == np.float32
    assert read.shape == (3, 1, 16, 16)
    np.testing.assert_allclose(read.mean(axis=(1, 2, 3)), np.array([120, 0, 120]) / 255, atol=1e-5)
    part = stack.subset([4, 2]).subset(np.array([1]))
    np.testing.assert_array_equal(part.read([0]), stack.read([2]))
    assert part.digest([0]) == stack.digest([2])
    assert stack.read([]).shape == (0, 1, 16, 16)


def test_grey_among_colour_becomes_three_equal_channels(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([RAMP, RAMP // 2, RAMP // 3], axis=2)).save(tmp_path / "colour.png")
    paths = [tmp_path / "grey.png", tmp_path / "colour.png"]
    stack = FileImages(paths, [probe(path) for path in paths], 8, Reading(channels=3))
    grey, colour = stack.read([0, 1])
    np.testing.assert_array_equal(grey[0], grey[1])
    np.testing.assert_array_equal(grey[0], grey[2])
    np.testing.assert_allclose(colour[0], grey[0])
    assert colour[2].mean() < 0.5 * colour[0].mean()


def test_a_content_hash_follows_the_content_and_the_size_to_read_at(tmp_path):
    first, second = save(tmp_path / "first.png"), save(tmp_path / "second.png")
    facts = [probe(first), probe(second)]
    one, other = FileImages([first, second], facts, 8).digest([0, 1])
    assert one == other
    assert FileImages([first], facts[:1], 16).digest([0]) != [one]
    Image.fromarray(255 - RAMP).save(second)
    assert FileImages([first, second], facts, 8).digest([1]) != [one]


def test_preprocessing_constants_are_public(tmp_path):
    """What an image becomes depends on that image alone, whatever else the data set holds."""
    rng = np.random.default_rng(0)
    dim = rng.integers(0, 40, (6, 9, 9), dtype=np.uint8)
    bright = np.full((6, 9, 9), 255, np.uint8)
    labels = np.array([0, 1] * 6)
    np.savez(tmp_path / "dim.npz", images=dim, labels=labels[:6])
    np.savez(tmp_path / "both.npz", images=np.concatenate([dim, bright]), labels=labels)
    alone = load("dim.npz", base=tmp_path, image_size=8).images.read(range(6))
    np.testing.assert_array_equal(load("both.npz", base=tmp_path, image_size=8).images.read(range(6)), alone)
    assert alone.max() <= 0.2
    for folder, sets in (("one", [dim]), ("two", [dim, bright])):
        for number, image in enumerate(np.concatenate(sets)):
            path = tmp_path / folder / "ab"[number % 2] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    seen = {}
    for folder in ("one", "two"):
        data = load(folder, base=tmp_path, image_size=8)
        pixels = data.images.read(range(len(data)))
        seen[folder] = {name: pixels[row] for row, name in enumerate(data.image_names)}
    for name, image in seen["one"].items():
        np.testing.assert_array_equal(seen["two"][name], image)
    np.testing.assert_allclose(read_image(tmp_path / "one/a/00.png")[0], dim[0] / 255, atol=1e-6)


def test_reading_survives_what_fuzzing_makes_of_an_image(tmp_path):
    """A damaged file is read or refused, never a stray exception."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)).save(buffer, "TIFF")
    whole, rng = buffer.getvalue(), np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        content = bytearray(whole)
        for position in rng.integers(0, len(whole), 4):
            content[position] = rng.integers(0, 256)
        path = bytes_at(tmp_path / "fuzzed.tiff", bytes(content))
        try:
            probe(path)
            read_image(path)
        except DataError:
            refused += 1
    assert 0 < refused < 60
