"""Hospitals that hold embeddings in place of images."""

import logging

import numpy as np
import pytest
from tests.deploy.hospital import NO_IMAGES, Hospital

from fedveil.federation import Reply
from fedveil.study.results.trained_model import TrainedModel

EMBEDDINGS = NO_IMAGES.replace('features = "pixels"', 'features = "precomputed"\ndimension = 64')


def embed(hospital: Hospital, dimension: int = 64) -> None:
    """The hospital's images as vectors: rows of pixels."""
    path = hospital.folder / "images.npz"
    arrays = dict(np.load(path))
    arrays["features"] = arrays.pop("images").reshape(60, -1)[:, :dimension] / 255 - 0.5
    np.savez(path, **arrays)


def test_a_hospital_answers_a_round_from_embeddings_and_charges_it(make_hospital):
    hospital = make_hospital(template=EMBEDDINGS)
    embed(hospital)
    answer = hospital.round()
    assert isinstance(answer, Reply)
    assert hospital.agreement.release("training").dimension == 64
    assert [charge.study for charge in hospital.ledger.charges] == [hospital.agreement.title]


def test_a_model_of_another_length_does_not_fit(make_hospital):
    hospital = make_hospital(template=EMBEDDINGS)
    offer, parameters = hospital.offer, hospital.agreement.release("training").parameters
    fits = [
        TrainedModel.of(offer.study, classes=offer.classes, channels=1, parameters=np.zeros(length)).fits
        for length in (parameters, parameters + 2)
    ]
    assert fits == [True, False]


@pytest.mark.parametrize("dimension", [63, None], ids=["another length", "images"])
def test_the_status_says_nothing_of_what_a_hospital_holds(make_hospital, caplog, dimension):
    hospital = make_hospital(template=EMBEDDINGS)
    if dimension:
        embed(hospital, dimension)
    with caplog.at_level(logging.ERROR):
        hospital.hello()
        hospital.service._opening[hospital.agreement.digest].join()
        assert hospital.hello().head["status"] == "ready"
        assert isinstance(hospital.round(), Reply), "with noise alone"
    assert "use embeddings from the same encoder at every hospital" in caplog.text
    assert len(hospital.ledger.charges) == 1


def test_a_hospital_takes_part_whatever_one_vector_is(make_hospital):
    hospital = make_hospital(template=EMBEDDINGS)
    embed(hospital)
    path = hospital.folder / "images.npz"
    arrays = dict(np.load(path))
    arrays["features"][3, 0] = np.nan
    np.savez(path, **arrays)
    assert isinstance(hospital.round(), Reply)
