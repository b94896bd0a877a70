"""How much a model's test metrics vary over the noise of training, from public numbers.

Gradient descent, with momentum, decay or averaging, is linear in the noise of its gradients: the released parameters
hold ``sum_t c_t e_t`` with independent noise e_t of known variance, and the c_t follow from running the rule on one
unit impulse per round. The effect of noise on later gradients is left out; it contracts noise along directions in
which the loss is curved, so the sum is an upper estimate. The threshold's noise is known from the calibration release.

Fresh noise of this size is added to the finished model a number of times, and the standard deviation of each metric
over these draws is its spread: a parametric bootstrap. It is public, since the model and the test images are.
"""

import math
from dataclasses import fields

import numpy as np

from fedveil.federation import Rounds
from fedveil.learning import Adam, Averaged, Optimizer, Spread
from fedveil.learning.models.learner import Vector
from fedveil.learning.models.public_start import fraction_left
from fedveil.study.evaluation import TestSet
from fedveil.study.pipeline import NetworkTask, Task
from fedveil.study.steps import Steps
from fedveil.study.training import Trained

__all__ = ["coefficients", "spread_of"]

METRICS = tuple(one.name for one in fields(Spread))
DRAWS = 24
IMAGES, IMAGES_OF_NETWORK = 2000, 400
"""Most test images on which draws are evaluated: a spread needs no more, and a network takes its time."""


def spread_of(task: Task, trained: Trained) -> Spread | None:
    """The spread of the test metrics over the noise of training.

    None if its size is not known in the parameters: without rounds, with noise inside local steps, or with Adam.
    """
    std = _std(task, trained)
    if std is None:
        return None
    middle = np.array([0.0] if trained.certainty is None else trained.certainty.noise)
    if std == 0 and not middle.any():
        return Spread()
    most = IMAGES if task.study.model.network == "linear" else IMAGES_OF_NETWORK
    rows = task.dataset.test
    test = TestSet(
        task, rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64))]
    )
    points = []
    for draw in range(DRAWS):
        point = test.point(task.model.redrawn(trained.parameters, std, middle, draw), trained.priors)
        if point is not None:
            points.append([point.get(name, 0.0) for name in METRICS])
    stds = np.nan_to_num(np.std(points, axis=0, ddof=1))
    return Spread(**{name: float(std) for name, std in zip(METRICS, stds, strict=True)})


def _std(task: Task, trained: Trained) -> float | None:
    """Standard deviation of the noise in each trained parameter."""
    agreement = trained.agreement
    release = agreement.main
    if not isinstance(release.query, Rounds) or release.noise_inside:
        return None
    steps = Steps.plan(task.study, agreement, release.query, trained.statistics)
    found = coefficients(steps.optimizer, trained.rounds)
    if found is None:
        return None
    divisor = steps.normalizer or len(agreement.sites)
    variance = agreement.noise_variance(release, len(agreement.sites)) / divisor**2 * float(found @ found)
    left = 1.0
    if isinstance(task, NetworkTask) and (start := task.network.start) is not None:
        left = fraction_left(task.network.split(trained.parameters)[-1], start.trained, variance)
    return left * math.sqrt(variance)


def coefficients(rule: Optimizer, rounds: int) -> Vector | None:
    """c_t: what a unit of noise in each round's gradient adds to the released parameters; None for Adam."""
    inner = rule.optimizer if isinstance(rule, Averaged) else rule
    if isinstance(inner, Adam):
        return None
    state = rule.init(np.zeros(rounds))
    for impulse in np.eye(rounds):
        state = rule.step(state, impulse)
    return rule.released(state)
