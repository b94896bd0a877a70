"""The limits on what a hospital admits."""

from dataclasses import dataclass

from fedveil.errors import Refused
from fedveil.federation.agreement import Agreement
from fedveil.privacy import Trust, check_delta

__all__ = ["Policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The limits that a hospital sets on studies. Its budget is in its ledger.

    Attributes:
        trusts: the accepted trust levels; ``"none"`` releases un-noised sums and is never a default.
        min_sites: smallest number of participants of a round that it joins.
        max_dimension: length of the longest vector that it releases.
        max_units: public upper bound on the site's units, ever; None if not stated.
    """

    trusts: frozenset[Trust] = frozenset({"site", "secure-aggregation"})
    min_sites: int = 1
    max_dimension: int = 50_000_000
    max_units: int | None = None

    def check(self, agreement: Agreement) -> None:
        """Raise `Refused` if the hospital's policy does not admit the agreement."""
        if agreement.trust not in self.trusts:
            raise Refused(
                f'the study asks for trust "{agreement.trust}"',
                f"this site's policy accepts only {', '.join(sorted(self.trusts))}",
                "change the study's privacy.trust, or the site's policy",
            )
        if agreement.min_sites < self.min_sites:
            raise Refused(
                f"the study allows rounds of {agreement.min_sites} sites",
                f"this site's policy requires {self.min_sites} or more",
                "increase federation.min_sites in the study",
            )
        self._check_units(agreement)
        largest = max(release.dimension for release in agreement.possible)
        if largest > self.max_dimension:
            raise Refused(
                f"the study releases vectors of length {largest:,}",
                f"this site's policy allows {self.max_dimension:,} at most",
                "choose a smaller model, or increase the site's limit",
            )

    def _check_units(self, agreement: Agreement) -> None:
        """Refuse by the public bound on units whatever would depend on their actual number."""
        if self.max_units is None or agreement.trust == "none" or agreement.target.unit == "site":
            return
        check_delta(agreement.target.delta, self.max_units)
        room = [one.integer.units for one in agreement.possible if one.integer and not one.noise_inside]
        if room and min(room) < self.max_units:
            raise Refused(
                f"the study leaves room for {min(room):,} units per site",
                f"this site may hold {self.max_units:,}",
                "increase federation.max_units in the study, or reduce the site's own bound",
            )
