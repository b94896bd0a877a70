"""Subgroups: a histogram of scores for each subgroup of the patients that hospitals hold out; released last."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import numpy as np

from fedveil.data.annotations.groups import groups_of
from fedveil.errors import FederationError
from fedveil.federation.queries.query import (
    Asked,
    Asking,
    HospitalUnits,
    Indices,
    ModelState,
    NoisySum,
    OneSum,
    Part,
    Vector,
)
from fedveil.learning import ReleasedSubgroups, ScoreHistogram, Sizes

__all__ = ["SubgroupsQuery"]


@final
@dataclass(frozen=True)
class SubgroupsQuery(OneSum):
    """Test metrics of subgroups of the hospitals' own patients, such as age bands.

    **Bound: 1.** An image is in exactly one of the groups, which are fixed and public; a value that is not among them,
    or a hospital without that column, counts as the last. The image adds the vector of an evaluation, of norm 1 or 0,
    in the place of its group, and zeros elsewhere: the same norm. A unit adds the average over its images: norm at most
    1, by convexity, even if its images are in several groups. An image's group depends on its own value alone. If the
    unit is the site, the sum over all its patients is scaled down to norm 1.

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
    part: ClassVar[Part] = "held-out"
    optional: ClassVar[bool] = True

    @classmethod
    def of(cls, asked: Asked) -> Self | None:
        """The query, if the study gives it a share of the budget; studies of findings are refused one."""
        if asked.privacy[cls.setting] == 0 or asked.model.findings:
            return None
        data = asked.settings["data"]
        return cls(data["subgroup"], groups_of(data["subgroup"], data["subgroup_values"]))

    def length(self, model: Sizes) -> int:
        """One histogram for each group."""
        return len(self.groups) * ScoreHistogram.size(model.classes)

    def sent_length(self, model: Sizes) -> int:
        """Class frequencies, then the model."""
        return model.classes + model.parameters

    def contribution(
        self, hospital: HospitalUnits, parameters: Vector, clip_norm: float, units: Indices | None
    ) -> Vector:
        """Sum the held-out units' histograms, group by group."""
        del clip_norm
        if hospital.held_out is None:
            raise FederationError(
                "no patient is held out", "the histograms need held-out units", "hold out some patients"
            )
        return hospital.held_out.histograms(parameters, len(self.groups), units)

    def sum(self, asking: Asking) -> Vector:
        """The sum over the drawn held-out units; zero if the hospital holds out none."""
        if asking.hospital.held_out is None:
            return np.zeros(asking.length)
        return super().sum(asking)

    def sent(self, state: ModelState) -> Vector:
        """Class frequencies (equal if none were released) and the model."""
        return state.judged

    def decode(self, released: NoisySum, state: ModelState) -> ModelState:
        """The model with the histograms added; together they replace that of an evaluation, if there is none."""
        parts = np.split(released.total, len(self.groups))
        found = ReleasedSubgroups(
            self.attribute,
            self.groups,
            tuple(
                ScoreHistogram.from_released(
                    part, state.model.classes, released.variance, released.sampling_rate
                )
                for part in parts
            ),
        )
        histogram = found.everyone if state.histogram is None else state.histogram
        return replace(state, subgroups=found, histogram=histogram)
