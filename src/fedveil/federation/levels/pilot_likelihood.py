"""How likely a pilot's sums are, for a separation D and a noise tolerance b; see `.rule` for both.

All is stated for one class against the rest, in d dimensions. What is measured in the sample exceeds what holds in the
population by ``chance = tau (1 / n_1 + 1 / n_0)``: delta below is the sample's difference, of squared length
``D sqrt(tau) / (b / sqrt k) + chance``. The released difference is ``x = delta + e`` with noise of variance
``s = s_1 + s_0`` in each coordinate, and w = x / |x| is the direction of the histogram.

**Length.** ``|x|^2 = |delta|^2 + 2 delta . e + |e|^2``, with mean ``|delta|^2 + d s`` and variance
``4 s |delta|^2 + 2 d s^2``.

**Histogram.** Given |x|, delta . e is normal, and so is ``a = w . delta = (|delta|^2 + delta . e) / |x|``, the distance
of the classes' mean scores. Their spread is that of features along w: the part of w along delta, ``a^2 / |delta|^2``,
has the variance ``delta' C delta / |delta|^2``, the rest the average of the other directions. Scores are counted from
the middle of the noisy means. Its error along w is normal with mean ``(s_1 - s_0) (|x| - a) / (2 s)`` and variance
``s_1 s_0 / s``, since |x| - a is the noise of the difference along w. Scores of each class are taken to be normal.
Bins have independent noise of known variance, and the number of units of a class is known with the error of the class
statistics. a and the middle are integrated over by Gauss-Hermite quadrature.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.polynomial.hermite_e import hermegauss

from fedveil.lazy import later
from fedveil.learning.released.pilot_scores import bin_edges

__all__ = ["Measured", "log_likelihood"]

special = later("scipy.special")

Vector = npt.NDArray[np.float64]
LENGTH_ERROR = 0.05
"""Relative error of the formula for the squared length."""
FORM_ERROR = 0.02
"""Error of a bin's share of a class, because scores are not normal."""
TAIL = 4.0
"""Variance of features along the difference that chance makes between the means, in units of the average direction."""
NODES = 5
SMALLEST = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """What a pilot released of one class against the rest, of which index 0 is the rest.

    Attributes:
        sizes: (2,) n_0 and n_1, from all that was released.
        squares: s_0 and s_1, variances of the noise in each coordinate of the means.
        length: |x|^2.
        features: d.
        trace: tau, of the covariance within classes.
        bins: (2, BINS) of the histogram; None without one.
        bin_variance: of the noise in each bin.
        counted: (2,) units by the class statistics alone.
        counted_variances: of the noise in them.
    """

    sizes: Vector
    squares: tuple[float, float]
    length: float
    features: int
    trace: float
    bins: Vector | None
    bin_variance: float
    counted: Vector
    counted_variances: tuple[float, float]


def log_likelihood(seen: Measured, separation: Vector, relative: Vector) -> Vector:
    """Log likelihood, up to a constant, at every point.

    Args:
        seen: the pilot's numbers.
        separation: (points,) D.
        relative: (points,) b / sqrt k.
    """
    square = separation * math.sqrt(seen.trace) / relative
    s, d = sum(seen.squares), seen.features
    chance = seen.trace * float((1 / seen.sizes).sum())
    whole = square + chance
    along = (np.square(square / separation) + chance * TAIL * seen.trace / d) / whole
    missing = seen.length - d * s - whole
    doubt = 4 * s * whole + 2 * d * s**2 + np.square(LENGTH_ERROR * whole)
    logs: Vector = -np.square(missing) / (2 * doubt) - np.log(doubt) / 2
    if seen.bins is None:
        return logs
    mean = 2 * s * whole / doubt * missing
    deviation = np.sqrt(np.maximum(s * whole - np.square(2 * s * whole) / doubt, 0.0))
    return logs + _of_histogram(seen, whole, np.minimum(along, seen.trace), mean, deviation)


def _of_histogram(seen: Measured, whole: Vector, along: Vector, mean: Vector, deviation: Vector) -> Vector:
    """Log likelihood of the bins, with delta . e of this mean and deviation, at every point."""
    nodes, weights = hermegauss(NODES)
    length, (s_0, s_1) = math.sqrt(max(seen.length, SMALLEST)), seen.squares
    longest = np.sqrt(whole)[:, None]
    distance = (whole[:, None] + mean[:, None] + deviation[:, None] * nodes) / length
    distance = np.clip(distance, -longest, longest)
    part = np.square(distance / longest)
    variance = part * along[:, None] + (1 - part) * (seen.trace - along[:, None]) / max(seen.features - 1, 1)
    spread = np.sqrt(np.maximum(variance, SMALLEST))
    middle = (s_1 - s_0) / (2 * (s_1 + s_0)) * (length - distance)
    shift = -middle[:, :, None] + math.sqrt(s_1 * s_0 / (s_1 + s_0)) * nodes
    logs = np.zeros(shift.shape)
    for row, sign in enumerate((-0.5, 0.5)):
        centre = sign * distance[:, :, None] + shift
        logs = logs + _of_class(seen, row, centre, spread[:, :, None])
    found: Vector = special.logsumexp(logs, b=weights[:, None] * weights, axis=(1, 2))
    return found


def _of_class(seen: Measured, row: int, centre: Vector, spread: Vector) -> Vector:
    """Log likelihood of one class's bins for scores of this mean and deviation, its size being integrated over."""
    assert seen.bins is not None
    edges = bin_edges(seen.features)[1:-1]
    below = special.ndtr((edges - centre[..., None]) / spread[..., None])
    shares = np.diff(below, axis=-1, prepend=0.0, append=1.0)
    variance = seen.bin_variance + (FORM_ERROR * seen.sizes[row]) ** 2
    doubt = seen.counted_variances[row]
    rest = seen.bins[row] - seen.counted[row] * shares
    power, product = np.square(shares).sum(axis=-1), (shares * rest).sum(axis=-1)
    fit = np.square(rest).sum(axis=-1) - doubt * np.square(product) / (variance + doubt * power)
    result: Vector = -fit / (2 * variance) - np.log1p(doubt * power / variance) / 2
    return result
