"""The model protocol, equal for coordinator and sites: sizes, and how released numbers are combined."""

from typing import Any, Protocol

import numpy as np

from fedveil.learning.models.learner import Vector
from fedveil.learning.released.score_statistics import Certainty

__all__ = ["Model", "Sizes", "Statistics", "check_sent"]


class Statistics(Protocol):
    """The release before training with its noise, as everything but its model uses it."""

    @property
    def units(self) -> float:
        """Number of units."""
        ...

    @property
    def priors(self) -> Vector:
        """(classes,) class frequencies, or the frequency of each finding."""
        ...

    @property
    def groups(self) -> Vector:
        """(thresholds, k) units of the k classes that each threshold separates: one of all classes, or K of two."""
        ...


class Sizes(Protocol):
    """The lengths of a model's vectors: all that an agreement needs."""

    @property
    def classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def findings(self) -> bool:
        """Whether an image may have any number of the classes."""
        ...

    @property
    def grades(self) -> bool:
        """Whether the classes are ordered."""
        ...

    @property
    def thresholds(self) -> tuple[int, int]:
        """Number of thresholds, and of classes that each separates: the shape of `Statistics.groups`."""
        ...

    @property
    def score_share(self) -> float:
        """The squared length that one threshold's scores have at most in a contribution to the release after
        training."""
        ...

    @property
    def trained(self) -> int:
        """Length of the trained part, and so of a gradient."""
        ...

    @property
    def parameters(self) -> int:
        """Length of the whole parameter vector."""
        ...

    @property
    def statistics_size(self) -> int:
        """Length of the release before training."""
        ...

    @property
    def calibration_size(self) -> int:
        """Length of the release after training."""
        ...


class Model(Sizes, Protocol):
    """A model's public side. Its whole parameter vector ends with the trained part."""

    def initial(self) -> Vector:
        """The trained part before training, (trained,); the same everywhere."""
        ...

    def join(self, statistics: Any, trained: Vector, shift: Vector | None = None) -> Vector:
        """The whole parameter vector from the release before training (None without one), the trained part and a shift
        of the logits."""
        ...

    def read_statistics(self, released: Vector, noise_variance: float) -> Statistics:
        """The release before training; its noise has this variance in each coordinate."""
        ...

    def calibrated(
        self, parameters: Vector, released: Vector, noise_variance: float, statistics: Any
    ) -> tuple[Vector, Certainty]:
        """The model with a threshold.

        Args:
            parameters: the whole model, as sites were sent it: `unshifted`.
            released: the release after training.
            noise_variance: of each number in it.
            statistics: the release before training; None if there was none.

        Returns:
            The whole parameter vector, and how sure the decision rule is.
        """
        ...

    def redrawn(self, parameters: Vector, trained_std: float, middle_std: Vector, seed: int) -> Vector:
        """The model with fresh noise, as another run of the study might have had: in simulation only.

        Args:
            parameters: the whole model.
            trained_std: standard deviation of the noise in each trained parameter.
            middle_std: standard deviation of the noise in each coordinate of the middle of scores.
            seed: of the draw.
        """
        ...

    def check_parameters(self, parameters: Vector) -> None:
        """Refuse a whole parameter vector that no honest coordinator sends, see `fedveil.learning.ranges`.

        Any vector that `join`, `calibrated` or `recalibrated` makes from released numbers passes, for any noise, also
        with another trained part after `unshifted`.

        Raises:
            InvalidValue: another length, or a part outside the public range of what the model makes.
        """
        ...

    def check_frequencies(self, frequencies: Vector) -> None:
        """Refuse (classes,) frequencies that no release of this model's kind gives, or InvalidValue."""
        ...

    def unshifted(self, parameters: Vector) -> Vector:
        """The same parameter vector without the shift of the logits."""
        ...

    def recalibrated(
        self, parameters: Vector, frequencies: Vector, released: Vector, noise_variance: float
    ) -> tuple[Vector, Vector]:
        """The same model with the threshold and class frequencies of one hospital; see `..released.site_threshold`.

        Args:
            parameters: the whole model.
            frequencies: (classes,) those of all hospitals together.
            released: the noisy sum of the `unshifted` model's scores on the hospital's images.
            noise_variance: of each number in them.

        Returns:
            The model's whole parameter vector, and the hospital's frequencies.
        """
        ...


def check_sent(model: Model, parameters: Vector, *, judged: bool) -> None:
    """Refuse what no honest coordinator sends to a learner; see `Learner.check_parameters`.

    A site without a usable image asks the model alone, so that its answer is that of a site with images.
    """
    if judged:
        frequencies, parameters = np.split(parameters, [model.classes])
        model.check_frequencies(frequencies)
    model.check_parameters(parameters)
