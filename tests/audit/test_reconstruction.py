"""Images that come out of gradients, and what noise leaves of them."""

import numpy as np
import pytest
import torch

from fedveil.audit.reconstruction import from_linear_gradient, invert_gradient, rank_of, ssim
from fedveil.errors import InvalidValue
from fedveil.learning.models.logistic import LinearHead, LinearLearner


@pytest.fixture(scope="module")
def images(shared_data):
    with np.load(shared_data / "kermany_cxr" / "kermany_cxr_28.npz") as file:
        return file["images"][:60] / 255.0


def gradient(image: np.ndarray, label: int) -> np.ndarray:
    """One patient's contribution, as a site computes it."""
    features = image.reshape(1, -1)
    learner = LinearLearner(LinearHead(features.shape[1], 2), features, np.array([label]), np.array([0]))
    return learner.contribution(np.zeros(features.shape[1]), clip_norm=1.0)


@pytest.mark.parametrize("label", [0, 1])
def test_a_linear_gradient_is_the_image(images, label) -> None:
    mean = images[20:].mean(axis=0)
    found = from_linear_gradient(gradient(images[3], label), mean)
    assert ssim(found, images[3]) > 0.85
    assert rank_of(3, found, images) == 1


def test_the_noise_of_a_guarantee_hides_it(images) -> None:
    mean = images[20:].mean(axis=0)
    noise = np.random.default_rng(1).normal(0, 1.0, mean.size)  # epsilon 4.4 for a single sum
    found = from_linear_gradient(gradient(images[3], 1) + noise, mean)
    assert ssim(found, images[3]) < 0.2


def test_a_networks_gradient_is_inverted(images) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(28 * 28, 16)

    def gradient_of(image: torch.Tensor) -> torch.Tensor:
        weight = layer.weight.detach().clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy((weight @ image.reshape(-1))[None], torch.tensor([2]))
        return torch.autograd.grad(loss, weight, create_graph=True)[0].reshape(-1)

    truth, mean = images[3], images[20:].mean(axis=0)
    observed = gradient_of(torch.tensor(truth[None], dtype=torch.float32)).detach().numpy()
    found = invert_gradient(gradient_of, observed, mean[None], steps=150)[0]
    assert ssim(found, truth) > ssim(mean, truth) + 0.1
    assert rank_of(3, found - mean, images - mean) == 1


def test_similarity_is_1_for_equal_images_alone(images) -> None:
    assert ssim(images[0], images[0]) == pytest.approx(1.0)
    assert ssim(images[0], images[1]) < 0.9
    with pytest.raises(InvalidValue, match="shapes"):
        ssim(images[0], images[0][1:])


def test_a_gradient_of_another_size_is_refused(images) -> None:
    with pytest.raises(InvalidValue, match="one weight per pixel"):
        from_linear_gradient(np.zeros(5), images[0])
