"""Ordered grades: one linear head for all of them, with one mean score per grade.

**Training** is the proportional-odds model of `.losses.grades`: one patient's gradient has as many numbers as there are
features, and is clipped as one vector. **Afterwards** the grades' mean scores are released, `..released.grade_means`,
and an image belongs to each grade as much as its score is near that grade's mean: the stereotype model (Anderson,
"Regression and ordered categorical variables", 1984), whose grades share one direction too.
"""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

from fedveil.learning.exact import first_sums, softmax
from fedveil.learning.models.feature_head import LONGEST_SHIFT, SMALLEST_SCALE
from fedveil.learning.models.learner import Vector
from fedveil.learning.models.linear_head import SCALE, ClassHead
from fedveil.learning.models.logistic import LinearHead
from fedveil.learning.models.public_start import PublicStart
from fedveil.learning.ranges import check_length
from fedveil.learning.released.class_statistics import ClassStatistics
from fedveil.learning.released.grade_direction import direction_of, means_along
from fedveil.learning.released.grade_means import grade_means, usual_means
from fedveil.learning.released.score_statistics import Certainty, ScoreStatistics
from fedveil.learning.released.site_threshold import own_numbers

__all__ = ["GradesHead"]

STEEP = 0.8
"""Log odds between neighbouring grades per logit. In the model that is trained it is near 1. On training patients of
the graded phantom 0.7 to 0.9 had the best Brier score with three and five grades, at epsilon 0.25 to 2 and without
noise."""
NARROWEST = 0.02
"""Smallest distance between the first and the last mean score that probabilities assume."""


@final
class GradesHead(ClassHead):
    """The model: parameters are the released centre and class weights, K shifts, and one weight per feature.

    The mean logits of the grades are ``m_k = scale u_k + shift_k``, in order, where u are `usual_means`. Under equal
    frequencies an image with logit z has grade k with a probability proportional to ``exp((m_k z - m_k^2 / 2) / v)``:
    that of normal scores with one variance, so that the most probable grade has the nearest mean. ``v`` is the mean
    distance of neighbours divided by `STEEP`, since training makes logits as large as its log odds need. Probabilities
    are converted to the frequencies of training as those of `CentredHead` are.

    Args:
        blocks: lengths of the blocks of features, as the extractor makes them.
        classes: number of grades K.
        centred: whether features are centred; a head from one round of statistics uses them uncentred.
        start: the public model that training is pulled towards; None for none.
    """

    def __init__(
        self, blocks: Sequence[int], classes: int, *, centred: bool = True, start: PublicStart | None = None
    ) -> None:
        super().__init__(LinearHead(sum(blocks), classes, grades=True), blocks, start)
        self.centred = centred

    @property
    def shifts(self) -> int:
        """One per grade."""
        return self.classes

    def means(self, parameters: Vector) -> Vector:
        """m, (K,), non-decreasing."""
        shift = self.split(parameters)[2]
        result: Vector = np.sort(self.scale(parameters) * usual_means(self.classes) + shift)
        return result

    def slopes(self, parameters: Vector) -> Vector:
        """``m / v``, (K,): the log odds of each grade per logit."""
        means = self.means(parameters)
        apart = max(means[-1] - means[0], NARROWEST * self.scale(parameters)) / (self.classes - 1)
        result: Vector = means * STEEP / apart
        return result

    def _shift(self, scores: ScoreStatistics) -> tuple[Vector, Certainty]:
        """The mean score of each grade, less the usual one."""
        found = grade_means(scores.sums, scores.counts)
        return np.clip(found.values, -1.0, 1.0) - usual_means(self.classes), found.certainty

    def one_shot(self, statistics: ClassStatistics) -> tuple[Vector, Vector]:
        """The trained part and the shifts from statistics alone; see `..released.grade_direction`."""
        trained = direction_of(statistics) / STEEP
        unit = max(float(np.linalg.norm(trained)) * SCALE, SMALLEST_SCALE)
        means = np.clip(means_along(statistics, trained, unit), -1.0, 1.0)
        return trained, (means - usual_means(self.classes)) * unit

    def _check_shift(self, shift: Vector, longest: float) -> None:
        """Each has the bound."""
        for one in shift:
            check_length("the shift", np.array([one]), longest)

    def recalibrated(
        self, parameters: Vector, frequencies: Vector, released: Vector, noise_variance: float
    ) -> tuple[Vector, Vector]:
        """The model with one hospital's frequencies, and all means moved by as much as their middle moves there."""
        centre, _, shift, trained = self.split(parameters)
        scale = self.scale(parameters)
        common = np.clip(shift / scale, -LONGEST_SHIFT, LONGEST_SHIFT)
        middle = np.mean(usual_means(self.classes) + common, keepdims=True)
        found = ScoreStatistics.from_released(released, self.classes, noise_variance, None)
        moved, own = own_numbers(middle, frequencies, found)
        shifts = np.clip(common + moved - middle, -LONGEST_SHIFT, LONGEST_SHIFT)
        return np.concatenate([centre, 1 / (self.classes * own), shifts * scale, trained]), own

    def probabilities(self, parameters: Vector, features: npt.NDArray[Any]) -> Vector:
        """Probabilities of the grades (n, K) for raw features (n, d)."""
        weights, means = self.split(parameters)[1], self.means(parameters)
        logits = self.logits(parameters, features)
        probabilities = softmax((logits - means / 2) * self.slopes(parameters)) / weights
        result: Vector = (probabilities.T / first_sums(probabilities.T.copy())).T
        return result
