import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedveil.data import load
from fedveil.data.split import draw_test_patients, patient_labels

NAMES = st.lists(st.text(max_size=8), min_size=1, max_size=40, unique=True)
PIXELS = np.random.default_rng(0).integers(0, 256, (400, 8, 8)).astype(np.uint8)


@st.composite
def tables(draw):
    patients = np.unique(draw(st.lists(st.integers(0, 20), min_size=1, max_size=80)), return_inverse=True)[1]
    return patients, np.array(
        draw(st.lists(st.integers(0, 3), min_size=len(patients), max_size=len(patients)))
    )


@given(NAMES, st.floats(0, 0.999), st.integers(0, 2**70), st.binary(max_size=64), st.data())
def test_who_is_held_out_depends_on_nobody_else(names, fraction, seed, secret, data):
    held = dict(zip(names, draw_test_patients(names, fraction, seed, secret), strict=True))
    others = data.draw(st.permutations(names))[: len(names) // 2]
    alone = draw_test_patients(others, fraction, seed, secret)
    assert [held[name] for name in others] == alone.tolist()


def test_the_fraction_is_met_on_average_and_by_every_seed_and_secret_anew():
    names = [f"P-{number}" for number in range(20_000)]
    splits = [
        draw_test_patients(names, 0.2, seed, secret) for seed, secret in ((5, b""), (6, b""), (5, b"x"))
    ]
    for one in splits:
        assert abs(one.mean() - 0.2) < 0.015
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs((splits[one] & splits[other]).mean() - 0.04) < 0.01
    assert not draw_test_patients(names, 0.0, 5).any()


def write(path, rows, patients=None):
    more = {} if patients is None else {"patient": patients[rows]}
    np.savez(path, images=PIXELS[rows], labels=np.arange(400)[rows] % 2, **more)
    return str(path)


def test_one_patient_less_leaves_all_others_on_their_side(tmp_path):
    """With the images and labels of a file, patients named or not; hundreds changed sides when ranks were drawn."""
    patients = np.arange(400) // 2
    for named in (patients, None):
        whole = load(write(tmp_path / "a.npz", np.arange(400), named), image_size=8)
        assert 0 < len(whole.test) < 400
        for left_out in (0, 77, 199):
            kept = np.flatnonzero(patients != left_out)
            less = load(write(tmp_path / "b.npz", kept, named), image_size=8)
            np.testing.assert_array_equal(whole.split[kept], less.split)


def test_patients_are_held_out_whole_and_sites_do_not_matter(tmp_path):
    patients, rows = np.arange(400) // 2, np.arange(400)
    arrays = {"images": PIXELS, "labels": rows % 2, "patient": patients}
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez(tmp_path / "b.npz", **arrays, site=patients % 3)
    one, other = (load(str(tmp_path / name), image_size=8, seed=3) for name in ("a.npz", "b.npz"))
    assert not set(one.patients[one.train]) & set(one.patients[one.test])
    np.testing.assert_array_equal(one.split, other.split)


@given(tables())
def test_the_rarest_label_stands_for_a_patient(table):
    patients, labels = table
    frequency = np.bincount(labels)
    for patient, label in enumerate(patient_labels(patients, labels)):
        own = set(labels[patients == patient].tolist())
        assert label in own
        assert frequency[label] == min(frequency[other] for other in own)
