"""A hospital's description of its own cohort before any study: noisy counts, charged to its budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedveil.data import Cohort
from fedveil.deploy.identity import Identity
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.runtime import Cohorts
from fedveil.errors import InvalidValue
from fedveil.federation import HospitalUnits
from fedveil.federation.alone import release_alone
from fedveil.federation.queries import CohortCountsQuery
from fedveil.io import write_json
from fedveil.privacy import Guarantee, Ledger

__all__ = ["Description", "describe", "own_records"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Noisy counts, which may be published.

    Attributes:
        site: the hospital.
        guarantee: of this release alone.
        counts: by attribute and group name.
        std: standard deviation of the noise in each count.
    """

    site: str
    guarantee: Guarantee
    counts: dict[str, dict[str, float]]
    std: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "site": self.site,
            "guarantee": self.guarantee.to_dict(),
            "counts": self.counts,
            "noise_std": self.std,
        }


def own_records(config: SiteConfig, identity: Identity, classes: Sequence[str]) -> Cohort:
    """Labels and patients of all of the hospital's images, including test images.

    Raises:
        DataError: the images cannot be used, or a label is not among the classes.
    """
    if config.budget.unit == "site":
        raise InvalidValue(
            "this site's budget protects the site as a whole",
            "counts of one protected site would be pure noise",
            "describe a cohort from a site folder whose budget.unit is patient or image",
        )
    cohorts = Cohorts(config, identity)
    dataset = cohorts.dataset(classes=tuple(classes))
    return dataset.cohort(config.site.name, cohorts.own(dataset, np.arange(len(dataset))))


def describe(config: SiteConfig, ledger: Ledger, records: Cohort, epsilon: float) -> Description:
    """Charge the hospital's ledger and release noisy counts of its cohort; they are stored in ``description.json``.

    Args:
        config: the hospital's settings.
        ledger: its open ledger.
        records: its cohort.
        epsilon: cost of this release.

    Raises:
        BudgetExceeded: the ledger has no room. Nothing was charged.
    """
    query = CohortCountsQuery.over(records, ledger.budget.unit)
    released = release_alone(
        query,
        HospitalUnits(records=records),
        ledger,
        site=config.site.name,
        length=query.size,
        epsilon=epsilon,
    )
    budget = ledger.budget
    found = Description(
        site=config.site.name,
        guarantee=Guarantee(epsilon, budget.delta, budget.unit, "site"),
        counts=query.counts(released),
        std=query.std(released),
    )
    write_json(config.folder / "description.json", found.to_dict())
    return found
