"""Accuracy by subgroup of private patients, and each group's gap to everybody else, from one noisy release.

The release holds one `Histogram` per subgroup, with independent noise. A group is compared with the sum of the
others: with values A and B and standard deviations a and b, which include the noise and the choice of units, the gap is
``A - B`` with the interval ``A - B -+ 1.96 sqrt(a^2 + b^2)``. A group that noise hides has no value.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedveil.learning.evaluation.noisy_ratios import NORMAL, Estimate
from fedveil.learning.evaluation.score_histogram import Histogram

__all__ = ["ReleasedSubgroups"]


@dataclass(frozen=True, slots=True, eq=False)
class ReleasedSubgroups:
    """The release with its noise, hence public.

    Attributes:
        attribute: its name.
        groups: their names; the last is everybody else.
        histograms: of each group.
    """

    attribute: str
    groups: tuple[str, ...]
    histograms: tuple[Histogram, ...]

    @property
    def everyone(self) -> Histogram:
        """All groups together."""
        return self.histograms[0].of_all(self.histograms)

    def metrics(self) -> list[dict[str, Any]]:
        """One entry per group, as `result.json` holds them; plain values."""
        found = []
        for place, (group, own) in enumerate(zip(self.groups, self.histograms, strict=True)):
            rest = own.of_all(self.histograms[:place] + self.histograms[place + 1 :])
            found.append(
                {"attribute": self.attribute, "group": group, "units": own.units().value}
                | _compared("auroc", own.auroc(), rest.auroc())
                | _compared("balanced_accuracy", own.balanced_accuracy(), rest.balanced_accuracy())
            )
        return found


def _compared(name: str, own: Estimate, rest: Estimate) -> dict[str, Any]:
    """A group's value and its gap to the others, NaN where noise hides either."""
    gap, reach = own.value - rest.value, NORMAL * math.hypot(own.std, rest.std)
    low, high = np.clip([gap - reach, gap + reach], -1.0, 1.0).tolist()
    return {
        name: own.clipped,
        f"{name}_interval": own.interval(),
        f"{name}_gap": float(np.clip(gap, -1.0, 1.0)),
        f"{name}_gap_interval": (low, high),
    }
