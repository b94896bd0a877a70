"""Cohort counts: units per class, and per age band and sex; a hospital may release them before any study."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from fedveil.data import Cohort
from fedveil.data.annotations.groups import GROUPS, grouped
from fedveil.errors import FederationError, InvalidValue
from fedveil.federation.queries.query import Asked, HospitalUnits, Indices, NoisySum, Query, Vector
from fedveil.learning import Sizes
from fedveil.learning.unit_weights import image_shares
from fedveil.privacy import Unit

__all__ = ["CohortCountsQuery"]


@final
@dataclass(frozen=True)
class CohortCountsQuery(Query):
    """The numbers of a hospital's units per class, and per age band and sex if its data has such columns.

    **Bound: 1.** An image adds one onehot vector for its class and one for each of b - 1 attributes, all divided by
    sqrt(b): norm exactly 1 for any values, since a value in no group counts as "other or unknown".
    A unit adds the average over its images, of norm at most 1 by convexity. Classes and groups are fixed beforehand
    and public: they do not depend on the data.

    It is not part of studies. A hospital releases it on its own, with all of the noise; see `fedveil.federation.alone`.

    Attributes:
        classes: their names, public.
        attributes: the counted attributes of `GROUPS`; columns of the data, public.
        unit: whom one contribution belongs to: a patient or an image. For a whole site, fractions are counted.
    """

    classes: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    unit: Unit = "patient"

    name: ClassVar[str] = "cohort-counts"
    title: ClassVar[str] = "cohort counts"
    setting: ClassVar[str] = ""
    adds: ClassVar[str] = "its class, age band and sex, norm 1"
    purpose: ClassVar[str] = "a hospital's description of itself before any study"
    at_site: ClassVar[bool] = True

    @classmethod
    def of(cls, asked: Asked) -> None:
        """None: it is not part of studies."""

    @classmethod
    def over(cls, records: Cohort, unit: Unit) -> "CohortCountsQuery":
        """The query for data with these classes and columns.

        Raises:
            InvalidValue: images have several findings each.
        """
        if records.labels.ndim != 1:
            raise InvalidValue(
                f"{records.name} has several findings per image",
                "a description counts each image in one class",
                "describe the cohort by classes that exclude each other",
            )
        found = tuple(name for name in GROUPS if name in records.attributes)
        return cls(records.classes, found, unit)

    def share(self, asked: Asked) -> float:
        """No share of a study's budget."""
        del asked
        return 0.0

    @property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """The counted groups in order, with their names."""
        return {"class": self.classes} | {name: GROUPS[name] for name in self.attributes}

    @property
    def size(self) -> int:
        """Length of the released vector."""
        return sum(len(names) for names in self.blocks.values())

    def length(self, model: Sizes) -> int:
        """The length of all blocks; no model is needed."""
        del model
        return self.size

    def sent_length(self, model: Sizes) -> int:
        """0: nothing is sent."""
        del model
        return 0

    def bound(self, clip_norm: float) -> float:
        """1, by construction: see the class."""
        del clip_norm
        return 1.0

    def contribution(
        self, hospital: HospitalUnits, parameters: Vector, clip_norm: float, units: Indices | None
    ) -> Vector:
        """Sum the units' onehot vectors."""
        del parameters, clip_norm
        records = hospital.records
        if records is None:
            raise FederationError("there are no records", "labels and attributes are counted", "give them")
        groups = {
            "patient": records.patients,
            "image": np.arange(len(records.labels)),
            "site": np.zeros_like(records.labels),
        }
        weights = image_shares(groups[self.unit], units)
        counts = [
            np.bincount(codes, weights, len(names))
            for codes, names in zip(self._codes(records), self.blocks.values(), strict=True)
        ]
        total: Vector = np.concatenate(counts) / math.sqrt(len(self.blocks))
        return total

    def _codes(self, records: Cohort) -> Iterator[Indices]:
        """The group of each image, block by block."""
        yield records.labels
        for name in self.attributes:
            yield grouped(name, records.attributes[name])[0]

    def counts(self, released: NoisySum) -> dict[str, dict[str, float]]:
        """The noisy counts by block and name; they may be negative, because clipping them would bias their sums."""
        scale, start, found = math.sqrt(len(self.blocks)), 0, {}
        for block, names in self.blocks.items():
            values = released.total[start : start + len(names)] * scale
            found[block] = dict(zip(names, values.tolist(), strict=True))
            start += len(names)
        return found

    def std(self, released: NoisySum) -> float:
        """Standard deviation of the noise in each count."""
        return math.sqrt(released.variance * len(self.blocks))
