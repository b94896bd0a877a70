"""A model that was trained on public patients, and how strongly private training is pulled towards it.

**Linear heads.** Training without a start is gradient descent from 0: after t rounds the weights of one logit are a
displacement x, a sum of noisy gradients, whose noise has a known variance v in each of its d coordinates. Let u be the
direction of the public weights. The prior is Gaussian around the line of u:

- along u, the noise-free displacement has mean and standard deviation B / 2, where B is the longest one that t clipped
  gradients can make, by the number of units less two standard deviations of its noise: the public model is believed to
  point the right way, and nothing is believed about its length;
- in each of the n = d - 1 other directions it has mean 0 and a common variance s, which is estimated.

The weights are the posterior mean, c u + k (x - (u . x) u), with

    c = (v B / 2 + (B / 2)^2 u . x) / (v + (B / 2)^2),    k = n s / (n s + n v).

``n s`` is the squared length of x beside u less that of its noise, n v (empirical Bayes: Efron & Morris, 1973; towards
a line: Lindley, 1962). This has standard deviation ``sqrt(2 n) v``. Twice that cannot be told from 0, and is the least
that is assumed, so that a start which says nothing about the hospitals' images does not decide alone. It is at most
B^2. Without noise the weights are x; as the budget approaches 0, their direction becomes u.

**Networks.** Training begins at the public weights w_0, since those of hidden layers mean nothing by themselves. With w
what descent from there has reached, in n parameters with noise of variance v each, the weights are ``w_0 + k (w -
w_0)``, with k as above: ``n s = |w - w_0|^2 - n v``, at least ``2 sqrt(2 n) v``. Without noise they are w; as the
budget approaches 0, they become w_0.

All of this is post-processing of released sums. What a hospital computes does not depend on the start, except that
gradients are taken at other weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedveil.learning.models.learner import Vector
from fedveil.learning.ranges import bounded_blocks

__all__ = ["PublicStart", "centre_towards", "fraction_left", "pulled", "shrunk_towards"]

SMALLEST = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class PublicStart:
    """The parts of a public model that training is pulled towards.

    Attributes:
        centre: (d,) what features are centred with.
        trained: (logits, d) weights of a linear head, or all trained parameters of a network.
    """

    centre: Vector
    trained: Vector


def pulled(displacement: Vector, start: Vector, variance: float, longest: float) -> Vector:
    """The posterior mean of one logit's weights; see the module's text.

    Args:
        displacement: (d,) x, what gradient descent from 0 has reached.
        start: (d,) public weights; the displacement is returned as it is if they are 0.
        variance: v, of the noise in each coordinate of x.
        longest: B, the largest length of x without noise.
    """
    length, others = float(np.linalg.norm(start)), len(start) - 1
    if variance == 0 or longest == 0 or length < SMALLEST or others == 0:
        return displacement
    direction = start / length
    along, belief = float(direction @ displacement), (longest / 2) ** 2
    beside = displacement - along * direction
    signal = max(float(beside @ beside) - others * variance, 2 * np.sqrt(2 * others) * variance)
    signal = min(signal, longest**2)
    found = (variance * longest / 2 + belief * along) / (variance + belief)
    result: Vector = found * direction + signal / (signal + others * variance) * beside
    return result


def shrunk_towards(found: Vector, start: Vector, variance: float) -> Vector:
    """A network's parameters, shrunk towards public ones; see the module's text.

    Args:
        found: (n,) w, what descent from the start has reached.
        start: (n,) w_0.
        variance: v, of the noise in each coordinate of w.

    >>> shrunk_towards(np.full(1000, 2.0), np.ones(1000), 1.0).round(2)[0], shrunk_towards(np.ones(2), np.zeros(2), 0.0)
    (np.float64(1.08), array([1., 1.]))
    """
    if variance == 0:
        return found
    away, count = found - start, len(start)
    signal = max(float(away @ away) - count * variance, _least(count, variance))
    result: Vector = start + signal / (signal + count * variance) * away
    return result


def fraction_left(shrunk: Vector, start: Vector, variance: float) -> float:
    """k of the weights that `shrunk_towards` returned: the fraction of their noise that it left.

    With S the signal, |k (w - w_0)|^2 = S^2 / (S + n v) wherever S exceeds its lower bound.
    """
    if variance == 0:
        return 1.0
    noise, square = len(start) * variance, float(np.sum((shrunk - start) ** 2))
    signal = (square + np.sqrt(square**2 + 4 * square * noise)) / 2
    signal = max(float(signal), _least(len(start), variance))
    return signal / (signal + noise)


def _least(count: int, variance: float) -> float:
    """The squared length that cannot be told from noise in so many coordinates."""
    return float(2 * np.sqrt(2 * count) * variance)


def centre_towards(middle: Vector, public: Vector, blocks: Sequence[int], variance: float) -> Vector:
    """A noisy centre of features, shrunk block by block towards a public one.

    Positive-part James-Stein with a bound: where a block of k numbers of m differs from m_0 by a, and its noise has
    variance v, the result is ``m_0 + a min(max(0, 1 - k v / ||a||^2), L^2 / (L^2 + k v))``. L is the largest distance
    of two centres, so the result approaches m_0 as the noise grows. Blocks are clipped as without a start.

    Args:
        middle: (d,) m.
        public: (d,) m_0.
        blocks: lengths of the blocks of features.
        variance: v.
    """
    shrunk, ends = [], np.cumsum(blocks)[:-1]
    for block, centre in zip(np.split(middle, ends), np.split(public, ends), strict=True):
        away, noise, longest = block - centre, len(block) * variance, 4 / len(blocks)
        power = max(float(away @ away), SMALLEST**2)
        shrunk.append(centre + away * min(max(0.0, 1 - noise / power), longest / (longest + noise)))
    return bounded_blocks(np.concatenate(shrunk), blocks)
