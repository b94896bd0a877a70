from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import apply_voi_lut, get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    HTJ2K,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from tests.data.dicom_files import HTJ2K as HTJ2K_GREY

from fedveil.data import check, load
from fedveil.data.formats.image_files import probe, read_image
from fedveil.errors import DataError

STORED = np.array([[0, 100, 1000], [2048, 3000, 4095]], np.uint16)


def write(
    path: Path, pixels=STORED, *, bits=12, photometric="MONOCHROME2", compress=None, **elements
) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.PatientID = "H-17"
    if pixels is not None:
        file.Rows, file.Columns = pixels.shape[-2:] if photometric.startswith("MONO") else pixels.shape[:2]
        file.SamplesPerPixel = 1 if photometric in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR") else 3
        file.PhotometricInterpretation = photometric
        file.BitsAllocated = 8 * pixels.dtype.itemsize
        file.BitsStored, file.HighBit = bits, bits - 1
        file.PixelRepresentation = int(pixels.dtype.kind == "i")
        if file.SamplesPerPixel == 3:
            file.PlanarConfiguration = 0
        file.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in elements.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    if compress is not None:
        file.compress(compress)
    file.save_as(path, enforce_file_format=True)
    return path


def test_without_a_window_the_bits_give_the_range(tmp_path):
    path = write(tmp_path / "plain.dcm")
    facts = probe(path)
    assert (facts.width, facts.height, facts.channels, facts.patient) == (3, 2, 1, "H-17")
    assert facts.mode == "DICOM MONOCHROME2 12 bit"
    np.testing.assert_allclose(read_image(path), STORED[None] / 4095, atol=1e-6)


def test_sixteen_bit_signed_with_rescale(tmp_path):
    signed = np.array([[-32768, -1000], [0, 32767]], np.int16)
    path = write(tmp_path / "signed.dcm", signed, bits=16, RescaleSlope=2, RescaleIntercept=-1024)
    np.testing.assert_allclose(read_image(path)[0], (signed.astype(float) + 32768) / 65535, atol=1e-6)


def test_a_negative_slope_still_scales_to_the_range(tmp_path):
    path = write(tmp_path / "negative.dcm", RescaleSlope=-1, RescaleIntercept=0)
    np.testing.assert_allclose(read_image(path)[0], 1 - STORED / 4095, atol=1e-6)


def test_monochrome1_is_inverted(tmp_path):
    path = write(tmp_path / "one.dcm", photometric="MONOCHROME1")
    np.testing.assert_allclose(read_image(path)[0], 1 - STORED / 4095, atol=1e-6)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(1500, 1200), (40, 400), ([900, 10], [800, 5])])
def test_windows_agree_with_pydicom(tmp_path, function, centre, width):
    elements = {} if function is None else {"VOILUTFunction": function}
    path = write(tmp_path / "window.dcm", WindowCenter=centre, WindowWidth=width, **elements)
    header = pydicom.dcmread(path)
    expected = apply_voi_lut(header.pixel_array.astype(float), header) / 4095
    np.testing.assert_allclose(read_image(path)[0], expected, atol=1e-5)


def test_the_window_applies_after_rescale(tmp_path):
    path = write(
        tmp_path / "both.dcm", RescaleSlope=0.5, RescaleIntercept=-1000, WindowCenter=0, WindowWidth=501
    )
    values = STORED * 0.5 - 1000
    np.testing.assert_allclose(read_image(path)[0], np.clip((values + 0.5) / 500 + 0.5, 0, 1), atol=1e-6)


def test_lookup_tables_are_followed(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.LUTData = (np.arange(4096, dtype=np.uint32) ** 2 // 256).astype(np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    path = write(tmp_path / "voi.dcm", VOILUTSequence=Sequence([table]))
    np.testing.assert_allclose(read_image(path)[0], (STORED.astype(int) ** 2 // 256) / 65535, atol=1e-6)
    table.ModalityLUTType = "US"
    path = write(tmp_path / "modality.dcm", ModalityLUTSequence=Sequence([table]))
    np.testing.assert_allclose(read_image(path)[0], (STORED.astype(int) ** 2 // 256) / 65535, atol=1e-6)


def test_colour(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    path = write(tmp_path / "rgb.dcm", colour, bits=8, photometric="RGB")
    assert probe(path).channels == 3
    np.testing.assert_allclose(read_image(path), colour.transpose(2, 0, 1) / 255, atol=1e-6)
    reds = np.arange(256, dtype=np.uint16) * 257
    tables = {
        f"{name}PaletteColorLookupTable{what}": value
        for name, entries in (("Red", reds), ("Green", reds[::-1]), ("Blue", reds * 0))
        for what, value in (("Descriptor", [256, 0, 16]), ("Data", entries.tobytes()))
    }
    path = write(tmp_path / "palette.dcm", colour[..., 0], bits=8, photometric="PALETTE COLOR", **tables)
    index = colour[..., 0] / 255
    np.testing.assert_allclose(read_image(path), np.stack([index, 1 - index, index * 0]), atol=1e-6)


def test_compressed_pixels_are_decoded(tmp_path):
    path = write(tmp_path / "rle.dcm", compress=RLELossless)
    np.testing.assert_allclose(read_image(path)[0], STORED / 4095, atol=1e-6)


def test_a_file_is_known_by_its_content(tmp_path):
    path = write(tmp_path / "IM0001")
    assert probe(path).mode.startswith("DICOM")
    np.testing.assert_allclose(read_image(path)[0], STORED / 4095, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pixels": None}, "it holds no pixels"),
        ({"PixelData": None}, "it holds no pixels"),
        ({"Rows": None}, "its header lacks Rows"),
        ({"NumberOfFrames": 3}, "it holds 3 frames"),
        ({"Columns": 0}, "it is 0 x 2 pixels"),
        ({"WindowCenter": 40, "WindowWidth": 0}, "its window is 0 wide"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "RescaleSlope is 0"),
    ],
)
def test_unusable_files_are_refused_by_their_header_and_when_read(tmp_path, options, said):
    path = write(tmp_path / "bad.dcm", **options)
    for look in (probe, read_image):
        with pytest.raises(DataError, match=said) as caught:
            look(path)
        assert str(caught.value).startswith(str(path))


def test_damaged_files_are_refused(tmp_path):
    path = write(tmp_path / "short.dcm", np.zeros((40, 40), np.uint16))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"short.dcm: it"):
        read_image(path)
    (tmp_path / "text.dcm").write_bytes(b"this is no DICOM file at all" * 10)
    with pytest.raises(DataError, match=r"text.dcm: it cannot be read as DICOM"):
        probe(tmp_path / "text.dcm")


def encapsulated(path, frame, syntax):
    """The file with its pixels replaced by a codestream."""
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = syntax
    header.PixelData = pydicom.encaps.encapsulate([frame])
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = True
    header.save_as(path)
    return path


def test_a_decoder_that_is_missing_is_named_before_anything_is_decoded(tmp_path, monkeypatch):
    path = encapsulated(write(tmp_path / "lossless.dcm"), b"\xff\xd8\xff\xd9", JPEGLosslessSV1)
    monkeypatch.setattr(type(get_decoder(JPEGLosslessSV1)), "is_available", False)
    for look in (probe, read_image):
        with pytest.raises(DataError, match=r'pip install "fedveil\[dicom\]"'):
            look(path)


def test_a_compressed_image_is_as_large_as_its_header_says(tmp_path):
    """A few hundred bytes of JPEG can claim 65,535 pixels a side, in a file that says 3 x 2."""
    buffer = BytesIO()
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(buffer, "JPEG")
    path = write(tmp_path / "large.dcm", np.zeros((2, 3), np.uint8), bits=8)
    encapsulated(path, buffer.getvalue(), JPEGBaseline8Bit)
    with pytest.raises(DataError, match="its pixels are 50 x 40, by its header 3 x 2"):
        read_image(path)


def test_other_codecs_are_decoded(tmp_path):
    gdcm = pytest.importorskip("gdcm", reason="fedveil[dicom] is not installed")
    pixels = np.random.default_rng(0).integers(0, 4096, (40, 32)).astype(np.uint16)
    path = write(tmp_path / "plain.dcm", pixels)
    kinds = ("JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless")
    for kind in kinds:
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(tmp_path / f"{kind}.dcm"))
        assert writer.Write()
        np.testing.assert_allclose(read_image(tmp_path / f"{kind}.dcm")[0], pixels / 4095, atol=1e-6)


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2K])
def test_high_throughput_jpeg_2000_is_decoded(tmp_path, syntax):
    pytest.importorskip("openjpeg", reason="fedveil[dicom] is not installed")
    rows, columns = np.mgrid[:8, :8]
    path = write(tmp_path / "ht.dcm", np.zeros((8, 8), np.uint16), bits=16)
    encapsulated(path, HTJ2K_GREY, syntax)
    assert probe(path).width == 8
    np.testing.assert_allclose(read_image(path)[0], (1000 * rows + 37 * columns) / 65535, atol=1e-6)
    larger = write(tmp_path / "larger.dcm", np.zeros((8, 9), np.uint16), bits=16)
    with pytest.raises(DataError, match="its pixels are 8 x 8, by its header 9 x 8"):
        read_image(encapsulated(larger, HTJ2K_GREY, syntax))


def build(folder: Path, identifiers) -> Path:
    lines = ["path,label"]
    for number, identifier in enumerate(identifiers):
        write(folder / f"{number}.dcm", STORED + number, PatientID=identifier)
        lines.append(f"{number}.dcm,{'ab'[number % 2]}")
    path = folder / "set.csv"
    path.write_text("\n".join(lines))
    return path


def test_patients_come_from_the_header_where_the_manifest_names_none(tmp_path):
    data = load(str(build(tmp_path, ["x", "x", "y", "y", "z", "z"])), image_size=8, test_fraction=0.3)
    assert data.patients_known
    assert data.patient_names == ("x", "y", "z")
    assert data.patients.tolist() == [0, 0, 1, 1, 2, 2]


def test_files_without_a_patient_count_one_by_one_unless_others_have_one(tmp_path):
    assert not load(str(build(tmp_path, [""] * 4)), image_size=8).patients_known
    report = check(str(build(tmp_path, ["x", "x", "", "z"])), image_size=8)
    assert [problem.place.rpartition("/")[2] for problem in report.problems] == ["set.csv, line 4"]
    assert "name their patient, but" in report.problems[0].found


def test_a_patient_column_overrules_the_header(tmp_path):
    path = build(tmp_path, ["x", "x", "y", "y"])
    text = path.read_text().splitlines()
    path.write_text(
        "\n".join([text[0] + ",patient", *(f"{line},p{row}" for row, line in enumerate(text[1:]))])
    )
    with pytest.raises(DataError, match="the PatientID x is patient p1 here and p0 elsewhere"):
        load(str(path), image_size=8)
    accept = ("dicom-patients",)
    assert load(str(path), image_size=8, accept=accept).patient_names == ("p0", "p1", "p2", "p3")
