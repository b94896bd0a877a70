"""Who exchanges masks with whom: everyone with everyone or, with many sites, a random sparse graph.

After Bell et al. (2020), but the server takes no part in drawing the graph: two sites are neighbours by a coin,
heads with probability p, that they derive from their own shared secret, which no third party can compute or
influence. A site that colludes may choose its own coins, and is taken to be everyone's neighbour.

A secret of site v is shared among its m_v holders, v and its neighbours; t_v = floor(m_v / 2) + 1 shares open
it. Of n sites c collude. All sites whose shares the server gets to see agree on one list of survivors, T or
more of the n (`fedveil.federation.secure_aggregation.lock`), which the server chooses, knowing the graph.
What it learns are sums over components of the graph of honest survivors. With a = n / 40, but at least 2
(`isolated`), two things could go wrong, both over the coins of honest sites:

(a) Some honest v has t_v <= c + a: then colluding sites, or they and a component of a sites, could open it.
(b) The honest survivors fall apart into two parts of more than a sites each. For parts of r and q sites, the
    other n - c - r - q <= n - T honest ones being declared lost, that has probability (1 - p)^(r q); a union
    bound over all ways to choose them.

If neither happens, all honest survivors but a at most are in one component, and smaller ones cannot be opened.
The degree p n for which both together have probability at most 2^-40 grows like log n with the sites, and
in proportion with the colluding ones.
"""

import math
from bisect import bisect_left
from functools import lru_cache

import numpy as np

__all__ = ["FAILURE", "edge_probability", "failure_probability", "isolated", "sparse_threshold"]

FAILURE = 2.0**-40
"""The largest probability that a random graph leaves an attack open."""


def isolated(sites: int) -> int:
    """The most honest survivors that a malicious server can cut off from a sum, and their noise with them."""
    return max(2, sites // 40)


def sparse_threshold(holders: int) -> int:
    """How many of a secret's holders open it in a sparse graph: just over half, so that some may be lost."""
    return holders // 2 + 1


@lru_cache(maxsize=256)
def edge_probability(sites: int, colluding: int, threshold: int) -> float:
    """The smallest edge probability, in hundredths, that fails with probability 2^-40 at most, or 1.

    >>> edge_probability(100, 5, 67)
    0.44
    """

    def fails(hundredths: int) -> bool:
        return failure_probability(sites, colluding, threshold, hundredths / 100) > FAILURE

    return bisect_left(range(100), True, key=lambda hundredths: not fails(hundredths)) / 100


def failure_probability(sites: int, colluding: int, threshold: int, probability: float) -> float:
    """An upper bound on the probability that (a) or (b) of the module's text happens."""
    cut = isolated(sites)
    split = _split(sites - colluding, sites - threshold, cut, probability)
    return min(1.0, _exposed(sites, colluding, cut, probability) + split)


def _exposed(sites: int, colluding: int, cut: int, p: float) -> float:
    """(a): exact for one site, times the number of honest ones."""
    others = sites - colluding - 1
    total = 0.0
    for honest in range(others + 1):
        holders = 1 + honest + colluding
        if sparse_threshold(holders) <= colluding + cut:
            total += math.comb(others, honest) * p**honest * (1 - p) ** (others - honest)
    return (sites - colluding) * total


def _split(honest: int, lost: int, cut: int, p: float) -> float:
    """(b): the union bound, over how many honest sites are declared lost and the size of the smaller part."""
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, honest + 1)))])
    total = 0.0
    for gone in range(lost + 1):
        left = honest - gone
        small = np.arange(cut + 1, left // 2 + 1)
        parts = factorials[left] - factorials[small] - factorials[left - small]
        logarithms = math.log(math.comb(honest, gone)) + parts + small * (left - small) * math.log1p(-p)
        total += float(np.exp(np.minimum(0.0, logarithms)).sum())
        if total >= 1:
            return 1.0
    return total
