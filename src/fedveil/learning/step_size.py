"""Step sizes that the noise allows, from public numbers alone, so that no tuning is needed.

Let N be the (released) number of units, mu the Gaussian-DP parameter that the budget leaves for training, and f the
factor by which the trust level enlarges the noise (`fedveil.federation.noise`). Then ``nu = N mu / f`` is the
signal-to-noise ratio of a sum with equal contributions of all units, at any number of rounds, and it alone
determines how far T rounds of step size eta with clip norm C can go before noise dominates: ``eta T C`` is
proportional to nu.
"""

__all__ = ["HEAD_LENGTH", "head_length", "learning_rate"]

HEAD_LENGTH = 2.0
"""Norm of the features under the head of a network, which weighs its training against that of the blocks below."""
REACH = 0.75
"""eta T C / nu. Values between 0.5 and 1 give equal results: the noise then stays below the margin of the logistic
loss."""
LARGEST_RATIO = 1500.0
"""Larger signal-to-noise ratios are reduced to this one, so that steps of a study without noise are also bounded."""


def learning_rate(ratio: float, rounds: int, clip_norm: float) -> float:
    """The step size for a signal-to-noise ratio nu, T rounds and clip norm C.

    >>> learning_rate(600.0, 30, 0.2)
    75.0
    """
    return REACH * min(ratio, LARGEST_RATIO) / (rounds * clip_norm)


def head_length(network: str) -> float:
    """Norm of the features under the linear head of a network, or of frozen features; step sizes are divided by it."""
    return 1.0 if network == "linear" else HEAD_LENGTH
