"""Subgroups: a histogram of scores for each subgroup of the patients that hospitals hold out; released last."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import numpy as np

from fedveil.data.annotations.groups import groups_of
from fedveil.federation.queries.held_out import HeldOutSum
from fedveil.federation.queries.query import Asked, Indices, ModelState, NoisySum, Vector
from fedveil.learning import HeldOut, ReleasedSubgroups, Sizes, histogram_of

__all__ = ["SubgroupsQuery"]


@final
@dataclass(frozen=True)
class SubgroupsQuery(HeldOutSum):
    """Test metrics of subgroups of the hospitals' own patients, such as age bands.

    **Bound: 1.** An image is in exactly one of the groups, which are fixed and public; a value that is not among them,
    or a hospital without that column, counts as the last. The image adds the vector of an evaluation, of norm at most
    1, in the place of its group, and zeros elsewhere: the same norm. A unit adds the average over its images: norm at
    most 1, by convexity, even if its images are in several groups. An image's group depends on its own value alone. If
    the unit is the site, the sum over all its patients is scaled down to norm 1.

    Attributes:
        attribute: name of the attribute, public.
        groups: names of its groups, public; the last is everybody else.
    """

    attribute: str
    groups: tuple[str, ...]

    name: ClassVar[str] = "subgroups"
    title: ClassVar[str] = "subgroups"
    setting: ClassVar[str] = "subgroup_share"
    adds: ClassVar[str] = "its subgroup, true class and score bin, if it is held out, norm 1"
    purpose: ClassVar[str] = "test metrics of subgroups of the hospitals' own patients"

    @classmethod
    def of(cls, asked: Asked) -> Self | None:
        """The query, if the study gives it a share of the budget."""
        if asked.privacy[cls.setting] == 0:
            return None
        data = asked.settings["data"]
        return cls(data["subgroup"], groups_of(data["subgroup"], data["subgroup_values"]))

    def length(self, model: Sizes) -> int:
        """One histogram for each group."""
        kind = histogram_of(findings=model.findings, grades=model.grades)
        return len(self.groups) * kind.size(model.classes)

    def summed(self, held_out: HeldOut, parameters: Vector, units: Indices | None) -> Vector:
        """The histograms of all groups, one after the other."""
        return held_out.histograms(parameters, len(self.groups), units)

    def decode(self, released: NoisySum, state: ModelState) -> ModelState:
        """The model with the histograms added; together they replace that of an evaluation, if there is none."""
        parts, model = np.split(released.total, len(self.groups)), state.model
        kind = histogram_of(findings=model.findings, grades=model.grades)
        found = ReleasedSubgroups(
            self.attribute,
            self.groups,
            tuple(
                kind.from_released(part, model.classes, released.variance, released.sampling_rate)
                for part in parts
            ),
        )
        histogram = found.everyone if state.histogram is None else state.histogram
        return replace(state, subgroups=found, histogram=histogram)
