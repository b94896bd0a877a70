"""The learner protocol: the only code that sees a hospital's pixels, labels and patients.

A learner knows nothing about budgets, noise or rounds. A site asks it for exact sums of bounded contributions, adds
the noise of the agreement, and only releases the noisy sum.
"""

from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]


class Learner(Protocol):
    """One cohort behind one model.

    Parameters cross the trust boundary as one flat vector, for every model. Every method returns exact
    values about private data: none may leave the hospital before noise has been added and charged.
    """

    @property
    def dimension(self) -> int:
        """Length of the parameter vector."""
        ...

    @property
    def units(self) -> int:
        """Number of protected units here: patients, images, or 1 if the unit is the site."""
        ...

    def check_parameters(self, parameters: Vector, *, judged: bool = False) -> None:
        """Refuse parameters that the model cannot have; a function of parameters and model, never of the cohort.

        Args:
            parameters: the model's whole parameter vector.
            judged: class frequencies come before it, as in an evaluation.

        Raises:
            InvalidValue: no honest coordinator sends them; see `fedveil.learning.Model.check_parameters`.
        """
        ...

    def contribution(self, parameters: Vector, *, clip_norm: float, units: Indices | None = None) -> Vector:
        """Sum the units' contributions, each with L2 norm at most ``clip_norm`` for any images.

        Args:
            parameters: float64 of shape (dimension,).
            clip_norm: the bound on one unit's contribution, finite and positive.
            units: indices of the units that take part, each at most once; all if None.

        Returns:
            float64 of shape (dimension,), un-noised. Adding or removing one unit changes it by at most
            ``clip_norm`` in L2 norm, up to rounding.

        Raises:
            InvalidValue: parameters of another length or not finite, or a clip norm that bounds nothing.
        """
        ...

    def statistics(self, parameters: Vector, units: Indices | None = None, *, plain: bool = False) -> Vector:
        """Sum over the units a vector of L2 norm at most 1 that is released once, before or after training.

        Args:
            parameters: empty before training; then the trained model.
            units: indices of the units that take part; all if None.
            plain: use the images alone, without degraded views.

        Returns:
            float64, un-noised.
        """
        ...
