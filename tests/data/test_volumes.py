"""Volumes of every format: one body gives one stack of slices, and nothing else decides how it is read."""

import gzip

import numpy as np
import pytest
from tests.data.volumes import SHAPE, SPACING, body, change, write_frames, write_nifti, write_series

from fedveil.data import ArrayImages, Dataset, Reading, check, load, load_usable
from fedveil.data.formats.image_files import FileImages, probe, read_image
from fedveil.data.formats.volumes.files import probe_volume, read_volume
from fedveil.data.formats.volumes.resampling import resampling_weights
from fedveil.data.options import Options
from fedveil.errors import DataError, InvalidValue

WINDOW = (50.0, 520.0)
SIDE = 12


def reading(**settings) -> Reading:
    return Reading(**{"slices": 6, "window": WINDOW, **settings})


def shades(values, low=WINDOW[0] - WINDOW[1] / 2, width=WINDOW[1]):
    return np.clip((values.astype(np.float64) - low) / width, 0, 1)


def resampled(values, slices=6, side=SIDE):
    """Slices of shades (d, h, w), by the same weights on each axis."""
    weights = [resampling_weights(n, m) for n, m in zip(values.shape, (slices, side, side), strict=True)]
    return np.einsum("id,jh,kw,dhw->ijk", *weights, values, optimize=True)


VIEWS = {
    "axial": lambda values: values,
    "coronal": lambda values: values.transpose(1, 0, 2)[:, ::-1],
    "sagittal": lambda values: values.transpose(2, 0, 1)[:, ::-1],
}


@pytest.mark.parametrize("axis", VIEWS)
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL"])
def test_a_nifti_is_turned_by_its_affine(tmp_path, codes, axis):
    path = write_nifti(tmp_path / "body.nii.gz", body(), codes)
    expected = resampled(shades(VIEWS[axis](body())))
    found = read_volume(path, reading(axis=axis), SIDE)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("across", [0, 1, 2])
def test_a_series_is_ordered_by_where_slices_lie(tmp_path, across):
    path = write_series(tmp_path / "series", body(), axis=across)
    for axis, view in VIEWS.items():
        found = read_volume(path, reading(axis=axis), SIDE)
        np.testing.assert_allclose(found, resampled(shades(view(body()))), atol=1e-5)
    facts = probe(path, reading())
    assert facts.patient == "P1"
    assert "DICOM series" in facts.mode


def test_slices_that_run_to_the_feet_are_turned(tmp_path):
    path = write_series(tmp_path / "series", body())
    for file in path.iterdir():
        change(file, ImageOrientationPatient=[1, 0, 0, 0, -1, 0])  # rows run to the front
    found = read_volume(path, reading(), SIDE)
    np.testing.assert_allclose(found, resampled(shades(body()[:, ::-1])), atol=1e-5)


def test_frames_lie_as_the_file_says_or_as_they_are_stored(tmp_path):
    order = [3, 0, 5, 1, 4, 2]
    placed = write_frames(tmp_path / "enhanced.dcm", body(), order, slope=0.5)
    scaled = body() * 0.5 * np.arange(1, 7)[:, None, None]
    np.testing.assert_allclose(read_volume(placed, reading(), SIDE), resampled(shades(scaled)), atol=1e-5)
    cine = write_frames(tmp_path / "cine.dcm", body())
    np.testing.assert_allclose(read_volume(cine, reading(), SIDE), resampled(shades(body())), atol=1e-5)


def test_the_scale_in_the_groups_of_an_enhanced_image_counts(tmp_path):
    path = write_frames(tmp_path / "one.dcm", body(shape=(1, 8, 10)), [0], slope=2.0)
    found = read_image(path, Reading(window=WINDOW))
    np.testing.assert_allclose(found[0], shades(body(shape=(1, 8, 10))[0] * 2.0), atol=1e-6)


def test_spacing_is_in_mm_about_the_centre_and_black_outside(tmp_path):
    path = write_nifti(tmp_path / "body.nii", body())
    settings = reading(spacing=(SPACING[0], SPACING[1]), slices=8)
    found = read_volume(path, settings, SIDE)
    assert (found[[0, -1]] == 0).all(), "eight slices of 3 mm around six"
    assert (found[:, :2] == 0).all(), "twelve rows of 1.5 mm around eight"
    assert (found[:, :, 0] == 0).all(), "twelve columns of 1.5 mm around ten of 1 mm"
    assert (found[1:7, 2:10, 3:9].max(axis=(1, 2)) > 0).all()
    series = write_series(tmp_path / "series", body())
    np.testing.assert_allclose(read_volume(series, settings, SIDE), found, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "wanted", "step"), [(6, 6, None), (32, 8, None), (5, 16, None), (9, 4, 1.5)]
)
def test_weights_keep_a_constant_volume_and_a_ramp(count, wanted, step):
    weights = resampling_weights(count, wanted, step).astype(np.float64)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    ramp = weights @ np.arange(count)
    np.testing.assert_allclose(ramp + ramp[::-1], count - 1, atol=1e-5)
    assert (np.diff(ramp) >= 0).all()
    if count == wanted:
        assert (weights == np.eye(count)).all()


def _lose_the_middle(path):
    places = sorted(path.iterdir(), key=lambda file: float(_position(file)))
    places[2].unlink()


def _position(file):
    import pydicom

    return pydicom.dcmread(file).ImagePositionPatient[2]


def _first(path):
    return sorted(path.iterdir())[0]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: change(_first(path), SeriesInstanceUID="1.2.3"), "2 series"),
        (lambda path: change(_first(path), PatientID="P2"), "2 patients"),
        (_lose_the_middle, "mm apart"),
        (lambda path: (path / "double.dcm").write_bytes(_first(path).read_bytes()), "mm apart"),
        (lambda path: change(_first(path), ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "turned against"),
        (lambda path: change(_first(path), ImagePositionPatient=None), "lacks ImagePositionPatient"),
        (lambda path: (path / "note.txt").write_text("x"), "note.txt, which is not DICOM"),
        (lambda path: _first(path).write_bytes(_first(path).read_bytes()[:300]), "holds no pixels"),
    ],
)
def test_a_series_that_is_not_one_volume_is_refused_and_named(tmp_path, harm, said):
    path = write_series(tmp_path / "series", body())
    harm(path)
    for look in (lambda: probe(path, reading()), lambda: read_volume(path, reading(), SIDE)):
        with pytest.raises(DataError, match=said) as caught:
            look()
        assert str(path) in caught.value.found


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda content: content[:200], "no NIfTI header"),
        (lambda content: content[:-10], "bytes of values"),
        (lambda content: content[:40] + b"\x02\x00" + content[42:], "its shape is"),
        (lambda content: content[:42] + b"\xff\x1f" * 3 + content[48:], "megapixels"),
        (lambda content: content[:70] + b"\x80\x00" + content[72:], "real numbers"),
        (
            lambda content: content[:280] + np.float32(1e-9).tobytes() + content[284:],
            "where each axis points",
        ),
        (lambda content: content[:42] + b"\x00\x40\x01\x00\x01\x00" + content[48:], "longer than"),
        (lambda content: content[:108] + np.float32(1e9).tobytes() + content[112:], "start at byte"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_damaged_nifti_is_refused_and_named(tmp_path, suffix, harm, said):
    content = harm(write_nifti(tmp_path / "whole.nii", body()).read_bytes())
    path = tmp_path / f"harmed{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with pytest.raises(DataError, match=said) as caught:
        read_volume(path, reading(), SIDE)
    assert str(path) in caught.value.found


def test_a_gzip_that_breaks_off_is_named(tmp_path):
    path = write_nifti(tmp_path / "body.nii.gz", body())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"body\.nii\.gz"):
        read_volume(path, reading(), SIDE)


def test_the_scale_of_a_nifti_is_public(tmp_path):
    signed = write_nifti(tmp_path / "signed.nii", body())
    for window in ("file", "full range"):
        with pytest.raises(DataError, match="int16"):
            probe_volume(signed, reading(window=window))
    own = write_nifti(tmp_path / "own.nii", body(), cal_min=-210, cal_max=310)
    np.testing.assert_array_equal(
        read_volume(own, reading(window="file"), SIDE), read_volume(signed, reading(), SIDE)
    )
    floats = write_nifti(tmp_path / "floats.nii", body().astype(np.float32))
    with pytest.raises(DataError, match="reach from"):
        read_volume(floats, reading(window="file"), SIDE)
    unsigned = write_nifti(tmp_path / "unsigned.nii", (body() + 200).astype(np.uint16))
    with pytest.raises(DataError, match="Hounsfield"):
        probe_volume(unsigned, reading(window="lung"))


def test_arrays_hold_volumes(tmp_path):
    volumes = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), dtype=np.uint8)
    images = ArrayImages(volumes, SIDE, Reading(slices=3, axis="coronal"))
    assert images.planes == 3
    assert images.channels == 1
    found = images.read([2])
    expected = resampled(VIEWS["coronal"](volumes[2]) / 255, slices=3)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    assert images.digest([2]) != ArrayImages(volumes, SIDE, Reading(slices=3)).digest([2])
    for wrong, said in ((volumes[0], "shape"), (volumes, "data.slices")):
        with pytest.raises(DataError, match=said):
            ArrayImages(wrong, SIDE, Reading(slices=3) if wrong.ndim == 3 else Reading())
    np.savez(tmp_path / "set.npz", train_images=volumes, train_labels=[[0], [1], [0], [1]])
    set_ = load("set.npz", base=tmp_path, slices=3, axis="coronal", image_size=SIDE)
    np.testing.assert_array_equal(set_.images.read([2]), found)
    given = Dataset.from_arrays(volumes, [0, 1, 0, 1], slices=3, axis="coronal")
    assert given.images.planes == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"slices": 1}, "between 2 and"),
        ({"axis": "coronal"}, "slices is not"),
        ({"slices": 4, "axis": "up"}, "one of axial"),
        ({"slices": 4, "channels": 3}, "grey"),
        ({"slices": 4, "spacing": (0.0, 1.0)}, "0.01 to 50 mm"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(InvalidValue, match=said):
        Options.of(settings)


@pytest.fixture
def table(tmp_path):
    """A manifest of four volumes of every format."""
    write_nifti(tmp_path / "a.nii.gz", body(1))
    write_series(tmp_path / "b", body(2))
    write_frames(tmp_path / "c.dcm", body(3), [5, 4, 3, 2, 1, 0])
    write_nifti(tmp_path / "d.nii", body(4), "PIR")
    rows = ["path,label,patient", "a.nii.gz,ill,1", "b,well,2", "c.dcm,ill,3", "d.nii,well,4"]
    (tmp_path / "set.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "set.csv"


SETTINGS = {"slices": 6, "window": WINDOW, "image_size": SIDE}


def test_a_manifest_mixes_formats(table):
    found = load(table.name, base=table.parent, **SETTINGS).images.read(range(4))
    assert found.shape == (4, 6, SIDE, SIDE)
    for volume, seed in zip(found, (1, 2, 3, 4), strict=True):
        slope = np.arange(1, 7)[:, None, None] if seed == 3 else 1
        np.testing.assert_allclose(volume, resampled(shades(body(seed) * slope)), atol=1e-5)
    report = check(table.name, base=table.parent, **SETTINGS)
    assert report.ok, str(report)
    with pytest.raises(DataError, match=r"set data\.slices"):
        load(table.name, base=table.parent)


def test_a_folder_holds_volumes_by_class(tmp_path):
    write_series(tmp_path / "ill" / "a", body(1), PatientID="A")
    write_series(tmp_path / "well" / "b", body(2), PatientID="B")
    write_nifti(tmp_path / "c.nii", body(3))
    report = check(str(tmp_path), layout="class", **SETTINGS)
    assert [problem.place for problem in report.problems] == [str(tmp_path / "c.nii")]
    (tmp_path / "c.nii").unlink()
    found = load(str(tmp_path), **SETTINGS)
    assert [found.classes[code] for code in found.labels] == ["ill", "well"]
    np.testing.assert_allclose(found.images.read([1])[0], resampled(shades(body(2))), atol=1e-5)


def _other_shape(path):
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    write_series(path, body(2, (9, 5, 4)) * 100)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: _first(path).write_bytes(b""),
        lambda path: change(_first(path), SeriesInstanceUID="1.2.3"),
        lambda path: change(_first(path), PixelData=b"0"),
        _other_shape,
    ],
)
def test_one_odd_volume_changes_no_other(table, harm):
    options = Options.of({**SETTINGS, "channels": 1, "classes": ["ill", "well"]})

    def others():
        found = load_usable(table.name, options, base=table.parent, need_patients=True)
        rows = [row for row, name in enumerate(found.image_names) if name != "b"]
        return found.images.read(range(len(found)))[rows], [found.images.digest([row]) for row in rows]

    before = others()
    harm(table.parent / "b")
    after = others()
    np.testing.assert_array_equal(after[0], before[0])
    assert after[1] == before[1]
    assert len(after[1]) == 3


def test_a_series_is_hashed_anew_when_one_of_its_files_is_rewritten(tmp_path, monkeypatch):
    path = write_series(tmp_path / "series", body())
    monkeypatch.setattr("fedveil.data.formats.stamps.SETTLED", -1.0)
    images = FileImages([path], [probe(path, reading())], SIDE, reading())
    before = images.digest([0])
    assert images.digest([0]) == before
    content = bytearray(_first(path).read_bytes())
    content[-1] ^= 1
    _first(path).write_bytes(content)
    assert images.digest([0]) != before
