"""Images that a coordinator reconstructs from sums, with and without their noise.

The attacker is the one that differential privacy assumes: it knows everything but one patient, so it subtracts all
others' contributions, and it chooses the parameters that sites are sent. What is left is that patient's clipped
gradient, and the noise.

* A linear head's gradient is the sum of residual times feature vector (`from_linear_gradient`): for one image, and
  with pixels as features, it *is* the image, up to a factor.
* A network's gradient is inverted by optimisation (`invert_gradient`): an image is sought whose gradient has the same
  direction (Geiping et al. 2020, "Inverting gradients", 2003.14053).

How much was found is measured by structural similarity (`ssim`) and by the rank of the true image among others
(`rank_of`). That a reconstruction fails proves nothing about other attackers; the guarantee bounds those.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from fedveil.errors import InvalidValue

if TYPE_CHECKING:
    import torch

__all__ = ["from_linear_gradient", "invert_gradient", "rank_of", "ssim"]

Image = NDArray[np.float64]
_WINDOW = 1.5  # standard deviation, in pixels, of the window of Wang et al. 2004
_STABLE = (0.01**2, 0.03**2)  # constants of the same, for values in [0, 1]
_SMOOTH = 1e-2  # weight of total variation
_RATE = 0.05


def from_linear_gradient(gradient: NDArray[np.floating[Any]], like: NDArray[np.floating[Any]]) -> Image:
    """An image from the gradient of a linear head over its pixels, by the only direction in it.

    The gradient is ``(p - y) x`` for features x, whose sign depends on the unknown label: that with the larger
    correlation with ``like`` is taken. Brightness and contrast are those of ``like``.

    Args:
        gradient: of one logit, as many numbers as there are pixels.
        like: a public image of the same kind, such as the mean of a public data set; it has the shape of the result.
    """
    if gradient.size != like.size:
        raise InvalidValue(
            f"a gradient of {gradient.size} numbers is given for an image of {like.size}",
            "a linear head over pixels has one weight per pixel",
            "give the gradient of one logit",
        )
    image = np.asarray(gradient, dtype=np.float64).reshape(like.shape)
    sign = 1.0 if _correlation(image, like) >= 0 else -1.0
    return _toned(sign * image, like)


def _toned(image: Image, like: NDArray[np.floating[Any]]) -> Image:
    spread = max(float(image.std()), 1e-12)
    toned: Image = np.clip((image - image.mean()) / spread * float(like.std()) + float(like.mean()), 0, 1)
    return toned


def _correlation(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> float:
    a, b = np.ravel(one) - np.mean(one), np.ravel(other) - np.mean(other)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def invert_gradient(
    gradient_of: "Callable[[torch.Tensor], torch.Tensor]",
    observed: NDArray[np.floating[Any]],
    start: NDArray[np.floating[Any]],
    *,
    steps: int = 300,
) -> Image:
    """The image whose gradient points where the observed one does.

    Minimises ``1 - cos(gradient(x), observed) + w TV(x)`` by Adam on the sign of its derivative, with pixels kept in
    [0, 1], and w = 0.01.

    Args:
        gradient_of: maps an image (channels, h, w) to the flat gradient that it would contribute, differentiably.
        observed: flat, noise included.
        start: where the search starts, (channels, h, w), such as the mean of a public data set.
        steps: of the optimiser.
    """
    import torch

    wanted = torch.as_tensor(np.array(observed), dtype=torch.float32)
    wanted = wanted / wanted.norm().clamp_min(1e-12)
    image = torch.tensor(np.array(start), dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.Adam([image], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        found = gradient_of(image)
        rough = (image[:, 1:] - image[:, :-1]).abs().mean() + (
            image[:, :, 1:] - image[:, :, :-1]
        ).abs().mean()
        loss = 1 - found @ wanted / found.norm().clamp_min(1e-12) + _SMOOTH * rough
        (derivative,) = torch.autograd.grad(loss, image)
        image.grad = derivative.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            image.clamp_(0, 1)
    return image.detach().double().numpy()


def ssim(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> float:
    """Structural similarity of two images (h, w) with values in [0, 1] (Wang et al. 2004): 1 if they are equal.

    >>> image = np.linspace(0, 1, 64).reshape(8, 8)
    >>> round(ssim(image, image), 3), ssim(image, 1 - image) < 0
    (1.0, True)
    """
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2:
        raise InvalidValue(
            f"images of shapes {a.shape} and {b.shape} are compared",
            "both must have one shape (h, w)",
            "compare channel by channel",
        )

    def mean(values: Image) -> Image:
        blurred: Image = gaussian_filter(values, _WINDOW)
        return blurred

    mean_a, mean_b = mean(a), mean(b)
    both = mean(a * b) - mean_a * mean_b
    spread = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
    first, second = _STABLE
    like = (2 * mean_a * mean_b + first) * (2 * both + second)
    return float(np.mean(like / ((mean_a**2 + mean_b**2 + first) * (spread + second))))


def rank_of(
    truth: int, reconstruction: NDArray[np.floating[Any]], candidates: NDArray[np.floating[Any]]
) -> int:
    """The rank of the true image among candidates by their correlation with a reconstruction: 1 if it is first.

    Args:
        truth: which of the candidates it is.
        reconstruction: an image.
        candidates: (n, ...) images of the same number of pixels.
    """
    scores = [_correlation(reconstruction, one) for one in candidates]
    return 1 + sum(score > scores[truth] for score in scores)
