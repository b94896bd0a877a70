import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedveil.data.holdout import draw_test_patients, patient_labels


@st.composite
def tables(draw):
    patients = np.unique(draw(st.lists(st.integers(0, 20), min_size=1, max_size=80)), return_inverse=True)[1]
    labels = np.array(draw(st.lists(st.integers(0, 3), min_size=len(patients), max_size=len(patients))))
    site_of = np.array(draw(st.lists(st.integers(0, 2), min_size=21, max_size=21)))
    return patients, labels, site_of[patients]


@given(tables(), st.floats(0, 0.99), st.integers(0, 2**32), st.booleans())
def test_patients_are_held_out_whole_and_every_site_keeps_some(table, fraction, seed, with_sites):
    patients, labels, sites = table
    held = draw_test_patients(patients, labels, sites if with_sites else None, fraction, seed)
    assert not set(patients[held]) & set(patients[~held])
    count = len(set(patients.tolist()))
    assert len(set(patients[held].tolist())) <= round(fraction * count)
    if with_sites:
        assert set(sites) == set(sites[~held])
    again = draw_test_patients(patients, labels, sites if with_sites else None, fraction, seed)
    np.testing.assert_array_equal(held, again)


@given(tables(), st.integers(0, 2**32))
def test_no_class_of_single_images_is_lost_to_the_test(table, seed):
    _, labels, _ = table
    held = draw_test_patients(np.arange(len(labels)), labels, None, 0.5, seed)
    assert set(labels[~held]) == set(labels)


@given(tables())
def test_the_rarest_label_stands_for_a_patient(table):
    patients, labels, _ = table
    frequency = np.bincount(labels)
    for patient, label in enumerate(patient_labels(patients, labels)):
        own = set(labels[patients == patient].tolist())
        assert label in own
        assert frequency[label] == min(frequency[other] for other in own)


def test_the_fraction_is_met_in_every_stratum():
    patients = np.repeat(np.arange(1000), 2)
    labels = np.repeat((np.arange(1000) % 10 == 0).astype(int), 2)
    sites = np.repeat(np.arange(1000) // 250, 2)
    held = draw_test_patients(patients, labels, sites, 0.2, seed=5)
    assert held.sum() == 400
    for label in (0, 1):
        for site in range(4):
            assert abs(held[(labels == label) & (sites == site)].mean() - 0.2) < 0.03
    other = draw_test_patients(patients, labels, sites, 0.2, seed=6)
    assert (held != other).any()
