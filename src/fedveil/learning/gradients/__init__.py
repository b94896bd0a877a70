"""Sums of per-patient gradients, each clipped to a public bound, near the speed of ordinary training.

`PrivateGradients(model, loss, clip_norm).sum(images, labels, units)` makes one forward and one backward pass
without parameter gradients, computes the norm of every patient's gradient from the layers' inputs and output
gradients, and adds up the clipped gradients with one product per layer. `check_private` refuses models for which no
such bound holds, before any budget is spent; `try_out` does so too, and returns what the trial has shown, for
`PrivateGradients` to use again. Nothing here adds noise or uses a budget: it only guarantees that one patient
changes the sum by at most the clip norm.
"""

from typing import TYPE_CHECKING

from fedveil.lazy import on_first_use

if TYPE_CHECKING:
    from fedveil.learning.gradients.clipping import Clipping, clip_factors
    from fedveil.learning.gradients.engine import GradientSum, Loss, PrivateGradients, Reduction
    from fedveil.learning.gradients.parameters import (
        dimension,
        flatten_parameters,
        load_flat,
        trainable_parameters,
    )
    from fedveil.learning.gradients.trial.probe import Trial, check_private, try_out
    from fedveil.learning.gradients.units import poisson_sample

__all__ = [
    "Clipping",
    "GradientSum",
    "Loss",
    "PrivateGradients",
    "Reduction",
    "Trial",
    "check_private",
    "clip_factors",
    "dimension",
    "flatten_parameters",
    "load_flat",
    "poisson_sample",
    "trainable_parameters",
    "try_out",
]

__getattr__, __dir__ = on_first_use(__name__)
