"""A recipe that many tutorials give: train as usual, then add Gaussian noise to the weights.

The noise is that of the Gaussian mechanism at epsilon 1 and delta 1e-5 for a sensitivity of one over the number of
rows. Nothing in the training bounds what one row changes, so this sensitivity is only hoped for.
"""

import math

import numpy as np

WIDTH, OTHERS, STEPS, RATE = 4, 50, 20, 0.1
EPSILON, DELTA = 1.0, 1e-5


def noise_on_the_weights(rows):
    """Least squares by gradient descent; noise for sensitivity 1 / n afterwards."""
    rows = np.asarray(rows, dtype=float)
    inputs, targets = rows[:, :-1], rows[:, -1]
    weights = np.zeros(WIDTH)
    for _ in range(STEPS):
        weights -= RATE * inputs.T @ (inputs @ weights - targets) / len(rows)
    std = math.sqrt(2 * math.log(1.25 / DELTA)) / EPSILON / len(rows)
    return weights + np.random.default_rng().normal(0, std, WIDTH)


def cohorts():
    """One ordinary row, or one unusual row, more or less."""
    generator = np.random.default_rng(1)
    inputs = generator.normal(size=(OTHERS, WIDTH)) / 2
    others = list(np.column_stack([inputs, inputs @ np.ones(WIDTH)]))
    ordinary, unusual = np.array([0.5, 0, 0, 0, 0.5]), np.array([3.0, 0, 0, 0, -9.0])
    return [
        ("one ordinary row more", others, [*others, ordinary]),
        ("one unusual row more", others, [*others, unusual]),
    ]
