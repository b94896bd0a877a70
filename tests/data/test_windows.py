"""Values become shades by a public scale: a window of the study, or of each file."""

import json

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import FileDataset
from pydicom.uid import ExplicitVRBigEndian
from tests.data.test_dicom import write

from fedveil.data import Reading, check, load
from fedveil.data.formats.image_files import probe, read_image
from fedveil.errors import DataError, InvalidValue
from fedveil.study import Study

CT = np.array([[0, 424], [1024, 1424], [2048, 4095]], np.uint16)
HOUNSFIELD = CT.astype(float) - 1024


def ct(path, **elements):
    return write(path, CT, RescaleSlope=1, RescaleIntercept=-1024, Modality="CT", **elements)


def expected(centre, width):
    return np.clip((HOUNSFIELD - centre) / width + 0.5, 0, 1)


@pytest.mark.parametrize(
    ("window", "centre", "width"),
    [("lung", -600, 1500), ("bone", 400, 1800), ((40.0, 400.0), 40, 400), ("full range", 1023.5, 4095)],
)
def test_the_window_of_a_study_overrules_that_of_the_file(tmp_path, window, centre, width):
    plain, own = ct(tmp_path / "a.dcm"), ct(tmp_path / "b.dcm", WindowCenter=0, WindowWidth=10)
    reading = Reading(window=window)
    for path in (plain, own):
        np.testing.assert_allclose(read_image(path, reading)[0], expected(centre, width), atol=1e-6)
    inverted = ct(tmp_path / "c.dcm", photometric="MONOCHROME1")
    np.testing.assert_allclose(read_image(inverted, reading)[0], 1 - expected(centre, width), atol=1e-6)


def test_hounsfield_units_are_those_of_ct_only(tmp_path):
    xray = write(tmp_path / "x.dcm", Modality="CR")
    for look in (probe, read_image):
        with pytest.raises(DataError, match="its modality is CR, and the window is lung"):
            look(xray, Reading(window="lung"))
    Image.fromarray(CT).save(tmp_path / "deep.png")
    for look in (probe, read_image):
        with pytest.raises(DataError, match="the window is brain; that window is for Hounsfield units"):
            look(tmp_path / "deep.png", Reading(window="brain"))


def test_twelve_bits_in_sixteen_are_noted_and_read_right_with_a_window(tmp_path):
    """Every value lay below a sixteenth of white, and the check said: no problems."""
    values = np.random.default_rng(0).integers(0, 4096, (20, 20)).astype(np.uint16)
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(2):
            Image.fromarray(values).save(tmp_path / label / f"{number}.png")
    notes = check(str(tmp_path), image_size=20).notes
    assert any(note.startswith("4 images use less than a tenth of their range") for note in notes)
    window = (2047.5, 4095.0)
    assert not any("a tenth" in note for note in check(str(tmp_path), image_size=20, window=window).notes)
    read = load(str(tmp_path), image_size=20, window=window).images.read([0])
    np.testing.assert_allclose(read[0, 0], values / 4095, atol=1e-6)


def test_ct_without_a_window_is_noted(tmp_path):
    values = np.random.default_rng(0).integers(0, 300, (20, 20)).astype(np.uint16)
    for number, label in enumerate("ab"):
        (tmp_path / label).mkdir()
        write(tmp_path / label / "0.dcm", values + number, Modality="CT")
    notes = check(str(tmp_path)).notes
    assert any("2 images use less than a tenth of their range" in note for note in notes)


def test_bytes_and_colour_are_shades_already(tmp_path):
    for shape in ((6, 6), (6, 6, 3)):
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        plain = read_image(tmp_path / "a.png")
        np.testing.assert_array_equal(read_image(tmp_path / "a.png", Reading(window=(2000.0, 100.0))), plain)


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.float32])
def test_arrays_of_any_numbers_with_a_window(tmp_path, kind):
    values = np.random.default_rng(0).integers(0, 3000, (4, 9, 9)).astype(kind)
    np.savez(tmp_path / "set.npz", images=values, labels=np.array([0, 1, 0, 1]))
    read = load(str(tmp_path / "set.npz"), image_size=9, window=(1500.0, 3000.0)).images.read(range(4))
    np.testing.assert_allclose(read[:, 0], values / 3000, atol=1e-6)


@pytest.mark.parametrize(("function", "like"), [("sigmoid", "SIGMOID"), ("Linear_Exact ", "LINEAR_EXACT")])
def test_the_function_of_a_window_is_read_in_any_case(tmp_path, function, like):
    with pydicom.config.disable_value_validation():
        one = write(tmp_path / "a.dcm", WindowCenter=900, WindowWidth=800, VOILUTFunction=function)
    other = write(tmp_path / "b.dcm", WindowCenter=900, WindowWidth=800, VOILUTFunction=like)
    np.testing.assert_array_equal(read_image(one), read_image(other))


def test_an_unknown_function_is_refused(tmp_path):
    path = write(tmp_path / "a.dcm", WindowCenter=900, WindowWidth=800, VOILUTFunction="GAMMA")
    for look in (probe, read_image):
        with pytest.raises(DataError, match="its VOILUTFunction is GAMMA"):
            look(path)
    assert read_image(path, Reading(window="full range")).max() == 1


def test_a_palette_of_a_big_endian_file(tmp_path):
    index = np.array([[0, 1], [2, 3]], np.uint8)
    palette = np.array([0, 4000, 30000, 65535], np.uint16)
    elements = {}
    for place, colour in enumerate(("Red", "Green", "Blue")):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        elements[f"{colour}PaletteColorLookupTableData"] = (palette // (place + 1)).astype("<u2").tobytes()
    little = write(tmp_path / "little.dcm", index, bits=8, photometric="PALETTE COLOR", **elements)
    read = pydicom.dcmread(little)
    header = FileDataset("big.dcm", {}, file_meta=read.file_meta, preamble=b"\0" * 128)
    for element in read.iterall():
        header[element.tag] = DataElement(element.tag, element.VR, element.value)
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTableData"
        data = np.frombuffer(getattr(header, name), "<u2").astype(">u2").tobytes()
        setattr(header, name, data)
        header[name].VR = "OW"
    header["PixelData"].VR = "OB"
    header.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(tmp_path / "big.dcm", header, enforce_file_format=True)
    np.testing.assert_allclose(read_image(little)[0], palette[index] / 65535, atol=1e-5)
    np.testing.assert_array_equal(read_image(tmp_path / "big.dcm"), read_image(little))


def test_a_window_survives_the_study_file_and_is_checked():
    for window in ("lung", [40.0, 400.0]):
        study = Study.parse(f"[data]\nwindow = {json.dumps(window)}")
        assert Study.parse(study.to_toml()) == study
        assert study.data.window == (window if isinstance(window, str) else tuple(window))
    with pytest.raises(InvalidValue, match="window is"):
        load("phantom", window=(1.0, float("nan")))
