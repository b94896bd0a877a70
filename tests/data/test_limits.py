"""No file takes the machine: not a small one that becomes a large image, nor one that was damaged anywhere."""

import json
import os
import resource
import struct
import subprocess
import sys
import zlib
from io import BytesIO

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless
from tests.data.test_dicom import write

from fedveil.data import Reading, check, load
from fedveil.data.formats.image_files import probe, read_image
from fedveil.errors import DataError

TRIES = int(os.environ.get("FEDVEIL_FUZZ", "25"))
"""Damaged files of each kind; 200 take a minute."""


def large_png(path, side, bits=8, colour=0):
    """A PNG of one shade: hardly any bytes, and as many pixels as one likes."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    samples = {0: 1, 2: 3, 6: 4}[colour]
    row = b"\0" + b"\x10" * (side * samples * bits // 8)
    packer = zlib.compressobj(9)
    content = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", content) + chunk(b"IEND", b""))
    return path


def deflated(path, side):
    """A DICOM file that is 1,000 times as large once it is inflated."""
    write(path, np.zeros((side, side), np.uint16))
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(path)
    return path


@pytest.mark.parametrize("side", [5600, 13_000, 20_000])
def test_a_small_file_that_is_a_large_image_is_refused_before_it_is_decoded(tmp_path, side):
    path = large_png(tmp_path / "large.png", side)
    for look in (probe, read_image):
        with pytest.raises(DataError, match=r"large.png: it is .* megapixels; an image of more than 30"):
            look(path)


def test_the_limit_is_a_setting(tmp_path):
    path = large_png(tmp_path / "large.png", 1500)
    with pytest.raises(DataError, match=r"2.2 megapixels; an image of more than 2 would"):
        probe(path, Reading(max_megapixels=2))
    assert read_image(path).shape == (1, 1500, 1500)
    huge = large_png(tmp_path / "huge.png", 14_000)
    assert probe(huge, Reading(max_megapixels=200)).width == 14_000, "Pillow's own limit is lower"
    assert Image.MAX_IMAGE_PIXELS is not None


def test_a_deflated_file_is_not_inflated_whole(tmp_path):
    path = deflated(tmp_path / "bomb.dcm", 12_000)
    assert path.stat().st_size < 400_000
    for look in (probe, read_image):
        with pytest.raises(DataError, match=r"bomb.dcm: inflated, it is larger than"):
            look(path)
    small = deflated(tmp_path / "small.dcm", 40)
    assert read_image(small).shape == (1, 40, 40)


def test_checking_many_large_images_stays_within_a_gigabyte(tmp_path):
    """Four of 81 to 169 megapixels took 12 GB; images just below the limit are decoded one at a time."""
    for label in "ab":
        (tmp_path / label).mkdir()
        for number, (side, colour) in enumerate([(9000, 0), (13_000, 0), (5400, 6), (5400, 2)]):
            large_png(tmp_path / label / f"{number}.png", side, colour=colour)
    script = (
        "import json, resource, sys\n"
        "from fedveil.data import check\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "report = check(sys.argv[1])\n"
        "most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(json.dumps([report.images, len(report.problems), (most - start) / 2**20]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    images, problems, gigabytes = json.loads(done.stdout)
    assert (images, problems) == (4, 4)
    assert gigabytes < 1
    assert done.stderr == ""


def picture(kind):
    def make():
        pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        return buffer.getvalue()

    return make


def deep_tiff():
    buffer = BytesIO()
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(
        buffer, "TIFF", compression="tiff_lzw"
    )
    return buffer.getvalue()


def dicom(**options):
    def make(folder):
        pixels = np.random.default_rng(0).integers(0, 4096, (20, 20)).astype(np.uint16)
        elements = {
            "WindowCenter": [900, 10],
            "WindowWidth": [800, 5],
            "RescaleSlope": 1,
            "RescaleIntercept": 0,
        }
        return write(folder / "whole.dcm", pixels, **elements, **options).read_bytes()

    return make


def deflated_dicom(folder):
    return deflated(folder / "whole.dcm", 20).read_bytes()


def jpeg_dicom(folder):
    path = write(folder / "whole.dcm", np.zeros((24, 20), np.uint8), bits=8)
    header = pydicom.dcmread(path)
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20), dtype=np.uint8)).save(buffer, "JPEG")
    header.PixelData = pydicom.encaps.encapsulate([buffer.getvalue()])
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    header.save_as(path)
    return path.read_bytes()


def npz(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 9), dtype=np.uint8)
    labels = np.array([0, 1] * 4)
    np.savez_compressed(folder / "whole.npz", images=pixels, labels=labels, patient=np.arange(8))
    return (folder / "whole.npz").read_bytes()


def table(folder):
    for number in range(4):
        Image.fromarray(np.full((9, 9), 50 * number, np.uint8)).save(folder / f"{number}.png")
    rows = [f"{number}.png,{'ab'[number % 2]},p{number}" for number in range(4)]
    return "\n".join(["path,label,patient", *rows]).encode()


KINDS = {
    "png": (".png", lambda _: picture("PNG")()),
    "jpeg": (".jpg", lambda _: picture("JPEG")()),
    "tiff": (".tiff", lambda _: picture("TIFF")()),
    "deep tiff": (".tiff", lambda _: deep_tiff()),
    "bmp": (".bmp", lambda _: picture("BMP")()),
    "webp": (".webp", lambda _: picture("WEBP")()),
    "dicom": (".dcm", dicom()),
    "rle dicom": (".dcm", dicom(compress=RLELossless)),
    "jpeg dicom": (".dcm", jpeg_dicom),
    "deflated dicom": (".dcm", deflated_dicom),
    "npz": (".npz", npz),
    "table": (".csv", table),
}


def mutants(whole, seed, count):
    """The file with a few bytes changed, cut, doubled, or its head changed, where lengths and types stand."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        content = bytearray(whole)
        reach = len(content) if number % 2 else min(len(content), 700)
        for position in generator.integers(0, reach, generator.integers(1, 9)):
            content[position] = generator.choice([0, 0xFF, generator.integers(0, 256)])
        start = int(generator.integers(0, len(content)))
        if number % 5 == 0:
            del content[start:]
        elif number % 5 == 1:
            del content[start : start + int(generator.integers(1, 40))]
        elif number % 5 == 2:
            content[start:start] = content[start : start + int(generator.integers(1, 40))]
        yield bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path, kind):
    """Run with FEDVEIL_FUZZ=200 for the full number."""
    suffix, make = KINDS[kind]
    whole = make(tmp_path)
    messages, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in mutants(whole, sum(map(ord, kind)), TRIES):
        path = tmp_path / f"fuzzed{suffix}"
        path.write_bytes(content)
        try:
            if suffix in (".npz", ".csv"):
                load(str(path), image_size=8).images.read([0])
            else:
                facts = probe(path)
                image = read_image(path)
                assert np.isfinite(image).all()
                assert image.min() >= 0
                assert image.max() <= 1
                assert image.shape[0] == facts.channels
        except DataError as error:
            messages.append(str(error))
    assert messages, "mutants that are all fine test nothing"
    assert all("fuzzed" in message and len(message.splitlines()) == 1 for message in messages)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "a gigabyte"


def test_a_damaged_header_is_one_problem_of_a_check_that_goes_on(tmp_path):
    """Values of the header are parsed where they are used, which was outside of what caught errors."""
    for number in range(4):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        write(tmp_path / "ab"[number % 2] / f"{number}.dcm", PatientID=f"P{number}")
    path = tmp_path / "a" / "0.dcm"
    with pydicom.config.disable_value_validation():
        header = pydicom.dcmread(path)
        header.add_new("WindowCenter", "DS", "900")
        header.add_new("WindowWidth", "DS", "800")
        header.save_as(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"DS\x04\x00900 ", b"DS\x04\x009x0 "))
    assert content != path.read_bytes()
    report = check(str(tmp_path))
    assert report.images == 3
    (problem,) = report.problems
    assert problem.place == str(path)
    assert "cannot be read as DICOM" in problem.found
