"""Evaluation: a histogram of a model's scores on the patients that hospitals hold out; released last."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from fedveil.federation.queries.held_out import HeldOutSum
from fedveil.federation.queries.query import Indices, ModelState, NoisySum, Vector
from fedveil.learning import HeldOut, Sizes, histogram_of

__all__ = ["EvaluationQuery"]


@final
@dataclass(frozen=True)
class EvaluationQuery(HeldOutSum):
    """Test metrics of the hospitals' own patients, from one noisy histogram; see `fedveil.learning.ScoreHistogram`.

    **Bound: 1.** With two classes an image adds one onehot vector of true class and score bin; with K > 2 it adds K + 1
    onehot vectors, divided by sqrt(K + 1), and with K > 2 ordered grades K, divided by sqrt(K), see
    `fedveil.learning.GradeHistogram`. In all cases its norm is exactly 1 (or 0, if a number overflowed), and a unit
    adds the average over its images: norm at most 1, by convexity. With K findings per image it adds one such vector
    for each finding that is known, divided by sqrt(K): norm ``sqrt(known / K)``, at most 1, over all findings together;
    see `fedveil.learning.FindingHistogram`. Each image is scored independently, so it does not affect other images'
    bins. If the unit is the site, the sum over all its patients is scaled down to norm 1.
    """

    name: ClassVar[str] = "evaluation"
    title: ClassVar[str] = "evaluation"
    setting: ClassVar[str] = "evaluation_share"
    adds: ClassVar[str] = "its true class and score bin, if it is held out, norm 1"
    purpose: ClassVar[str] = "test metrics of the hospitals' own patients"

    def length(self, model: Sizes) -> int:
        """Bins by true class."""
        return histogram_of(findings=model.findings, grades=model.grades).size(model.classes)

    def summed(self, held_out: HeldOut, parameters: Vector, units: Indices | None) -> Vector:
        """The histogram."""
        return held_out.histogram(parameters, units)

    def decode(self, released: NoisySum, state: ModelState) -> ModelState:
        """The model with the histogram added; its parameters are unchanged."""
        model, kind = state.model, histogram_of(findings=state.model.findings, grades=state.model.grades)
        histogram = kind.from_released(
            released.total, model.classes, released.variance, released.sampling_rate
        )
        return replace(state, histogram=histogram)
