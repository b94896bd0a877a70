"""Nobody's number may hang on who else is in the batch: the smallest examples of what did."""

import numpy as np
import pytest

from fedveil.learning import CentredHead, HeldOut, NetworkLearner, NetworkModel
from fedveil.learning.encoders import feature_extractor

SIZE = 16
GENERATOR = np.random.default_rng(0)


class Images:
    def __init__(self, pixels):
        self.pixels = pixels

    def read(self, indices):
        return self.pixels[indices]


def draw(count):
    return GENERATOR.random((count, 1, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize("clipping", ["flat", "automatic", "per-layer"])
def test_a_patient_with_many_images_leaves_the_norms_of_all_others_alone(clipping):
    """What rounding may lose grows with a unit's images; taken of the largest in the batch, it shrank all the others.

    One patient with 100 images then moved the sum over 150 others of a cnn by six to eight times the clip norm.
    """
    model = NetworkModel("cnn", classes=2, channels=1, image_size=SIZE)
    others, many = 60, 60
    pixels = np.repeat(draw(1), others + many, axis=0)
    labels = np.repeat([0, 1], [others, many])
    patients = np.concatenate([np.arange(others), np.full(many, others)])

    def total(count):
        learner = NetworkLearner(
            model, Images(pixels[:count]), labels[:count], patients[:count], clipping=clipping
        )
        return learner.contribution(model.join(None, model.initial()), clip_norm=1.0)

    assert 0.9 < np.linalg.norm(total(others + many) - total(others)) <= 1.0


def cancelling(points):
    """Weights under which every image's logit is rounding and nothing else."""
    weights = np.random.default_rng(5).normal(size=points.shape[1])
    axes = np.linalg.svd(points.T, full_matrices=False)[0]
    for _ in range(3):
        weights -= axes @ (axes.T @ weights)
    return 9e5 * weights / np.abs(weights).max()


def test_decisions_that_hang_on_the_last_bit_do_not_hang_on_others():
    """A matrix product rounds a row by how many there are: without one patient, several others were decided anew."""
    head, images = CentredHead((256,), 2), 30
    features = GENERATOR.random((images, 256)).astype(np.float32)
    labels, rows = np.arange(images) % 2, np.arange(images)
    weights = cancelling(head.view(features, np.zeros(256)).astype(np.float64))
    parameters = np.concatenate([np.ones(2), head.join(None, weights)])

    def histogram(kept):
        held_out = HeldOut(
            lambda whole: head.probabilities(whole, features[kept]),
            labels[kept],
            np.arange(len(kept)),
            classes=2,
        )
        return held_out.histogram(parameters)

    decided = head.probabilities(parameters[2:], features)
    for left_out in rows:
        kept = np.delete(rows, left_out)
        np.testing.assert_array_equal(head.probabilities(parameters[2:], features[kept]), decided[kept])
        assert np.linalg.norm(histogram(rows) - histogram(kept)) <= 1


@pytest.mark.parametrize(
    ("name", "whitened"),
    [("pixels", False), ("scattering", False), ("scattering", True), ("efficientnet-lite0", False)],
)
def test_features_are_the_same_to_the_last_bit_whoever_else_is_there(name, whitened):
    extractor = feature_extractor(name, image_size=SIZE, channels=1, whitened=whitened)
    pixels = draw(36)
    whole = extractor(pixels)
    for kept in (np.arange(1, 36), np.arange(33), np.arange(3, 20), np.array([7])):
        np.testing.assert_array_equal(extractor(pixels[kept]), whole[kept])


@pytest.mark.parametrize("network", ["cnn", "efficientnet-lite0"])
def test_networks_say_the_same_to_the_last_bit_whoever_else_is_there(network):
    model = NetworkModel(network, classes=3, channels=1, image_size=SIZE)
    pixels = draw(67)
    parameters = model.join(None, model.initial())

    def said(kept):
        inner = model.before(pixels[kept])
        return model.logits(parameters, Images(inner), len(kept))

    whole = said(np.arange(67))
    for kept in (np.arange(1, 67), np.arange(65), np.array([66])):
        np.testing.assert_array_equal(said(kept), whole[kept])


def test_a_patient_in_a_batch_of_its_own_is_rounded_as_in_a_full_one():
    """The 257th patient, whom one less moved into the batch before, turned around where layers differ in scale."""
    model = NetworkModel("efficientnet-lite0", classes=2, channels=1, image_size=SIZE)
    generator, count = np.random.default_rng(0), 100
    pixels = model.before(generator.random((count, 1, SIZE, SIZE)).astype(np.float32))
    sizes = [one.numel() for one in model.body.parameters() if one.requires_grad]

    def total(parameters, rows):
        learner = NetworkLearner(model, Images(pixels[rows]), rows % 2, np.arange(len(rows)), clipping="flat")
        return learner.contribution(parameters, clip_norm=1.0)

    rows = np.arange(count)
    for _ in range(40):
        trained = np.concatenate([10 ** generator.uniform(-6, 6) * generator.normal(size=n) for n in sizes])
        parameters = model.join(None, np.clip(trained, -1e6, 1e6))
        moved = total(parameters, rows) - total(parameters, rows[1:])
        assert np.linalg.norm(moved - total(parameters, rows[:1])) < 2e-3
