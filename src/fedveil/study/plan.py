"""What a study would cost, worked out before anything runs or is charged."""

from dataclasses import dataclass
from typing import Any

from fedveil.federation import Terms
from fedveil.privacy import Guarantee, Risk, epsilon, operational_risk
from fedveil.study import phases
from fedveil.study.outlook import Outlook, make_outlook
from fedveil.study.prepare import Prepared, prepare
from fedveil.study.settings import Study
from fedveil.study.task import model_of
from fedveil.study.terms import make_terms

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A study's cost.

    Attributes:
        prepared: the data as it would be dealt out.
        terms: what the sites would be asked to admit.
        guarantee: what the releases together earn, by the accountant; None without privacy.
        epsilon_alone: what a site's own noise earns if everyone else colludes.
        risk: what an attacker could do at most; None without privacy.
        outlook: what accuracy to hope for; None where nothing is known.
    """

    prepared: Prepared
    terms: Terms
    guarantee: Guarantee | None
    epsilon_alone: float
    risk: Risk | None
    outlook: Outlook | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None stands for infinite."""
        return {
            "study": self.terms.name,
            "guarantee": self.guarantee.to_dict() if self.guarantee else None,
            "sentence": str(self.guarantee or self.terms.target),
            "epsilon_alone": self.epsilon_alone
            if self.guarantee and self.epsilon_alone < float("inf")
            else None,
            "risk": self.risk.to_dict() | {"sentence": str(self.risk)} if self.risk else None,
            "releases": [
                {
                    "what": release.name,
                    "mechanism": release.mechanism.to_dict(),
                    "dimension": release.dimension,
                    "site_noise_std": self.terms.noise_std(release),
                }
                for release in self.terms.releases
            ],
            "sites": [
                {"name": name, "patients": self.prepared.patients[name], "images": len(rows)}
                for name, rows in self.prepared.sites.items()
            ],
            "min_sites": self.terms.min_sites,
            "min_honest": self.terms.honest if self.terms.trust == "secure-aggregation" else None,
            "outlook": self.outlook.to_dict() if self.outlook else None,
            "notes": [
                *self.prepared.notes,
                *(self.outlook.notes if self.outlook else []),
                *phases.notes(self.terms, sum(self.prepared.units.values())),
            ],
        }


def make_plan(study: Study) -> Plan:
    """Read the data, calibrate the noise and price the whole study; nothing is trained, nothing is charged."""
    prepared = prepare(study)
    terms = make_terms(study, sites=tuple(prepared.sites), model=model_of(study, prepared.dataset))
    target = terms.target
    if target.trust == "none":
        return Plan(prepared=prepared, terms=terms, guarantee=None, epsilon_alone=float("inf"), risk=None)
    mechanisms = [release.mechanism for release in terms.releases]
    guarantee = Guarantee(epsilon(mechanisms, target.delta), target.delta, target.unit, target.trust)
    return Plan(
        prepared=prepared,
        terms=terms,
        guarantee=guarantee,
        epsilon_alone=terms.epsilon_alone(),
        risk=operational_risk(guarantee, mechanisms),
        outlook=make_outlook(prepared, terms),
    )
