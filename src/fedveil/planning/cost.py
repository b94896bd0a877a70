"""What a study would cost, computed before anything runs or is charged."""

import math
from dataclasses import dataclass
from typing import Any

from fedveil.data import Dataset
from fedveil.federation import Agreement, Release
from fedveil.planning.forecast import Outlook, make_outlook
from fedveil.privacy import Guarantee, Risk, operational_risk
from fedveil.study.calibrate import make_agreement
from fedveil.study.pipeline import model_of
from fedveil.study.prepare import Prepared, prepare
from fedveil.study.settings.schema import Study

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A study's cost.

    Attributes:
        prepared: the data as it would be split among the sites.
        agreement: what the sites would be asked to approve.
        guarantee: of all releases together, by the accountant; None without privacy.
        epsilon_alone: epsilon from a site's own noise, if everyone else colludes.
        risk: bounds on any attacker's success; None without privacy.
        outlook: the expected accuracy; None if nothing is known.
    """

    prepared: Prepared
    agreement: Agreement
    guarantee: Guarantee | None
    epsilon_alone: float
    risk: Risk | None
    outlook: Outlook | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None stands for infinity."""
        return {
            "study": self.agreement.name,
            "guarantee": self.guarantee.to_dict() if self.guarantee else None,
            "sentence": str(self.guarantee or self.agreement.target),
            "epsilon_alone": self.epsilon_alone
            if self.guarantee and self.epsilon_alone < float("inf")
            else None,
            "risk": self.risk.to_dict() | {"sentence": str(self.risk)} if self.risk else None,
            "releases": [
                {
                    "what": release.name,
                    "mechanism": release.mechanism.to_dict(),
                    "dimension": release.dimension,
                    "site_noise_std": self.agreement.noise_std(release),
                }
                for release in self.agreement.releases
            ],
            "sites": [
                {"name": name, "patients": self.prepared.patients[name], "images": len(rows)}
                for name, rows in self.prepared.sites.items()
            ]
            or [{"name": name, "patients": None, "images": None} for name in self.agreement.sites],
            "min_sites": self.agreement.min_sites,
            "min_honest": self.agreement.honest if self.agreement.trust == "secure-aggregation" else None,
            "outlook": self.outlook.to_dict() if self.outlook else None,
            "notes": [
                *self.prepared.notes,
                *self._calibrated(),
                *(self.outlook.notes if self.outlook else []),
            ],
        }

    def _calibrated(self) -> list[str]:
        """What the numbers of a calibrated study are."""
        calibration = self.agreement.calibration
        if calibration is None:
            return []
        grid = ", ".join(f"{level.epsilon:g}" for level in calibration.levels)
        return [
            f"Epsilon is calibrated: the pilot's noisy sums pick one of {grid}. Noise, cost and AUROC are those "
            "of the largest, which is the guarantee; less is charged if a smaller one is picked."
        ]

    def explain(self) -> list[str]:
        """The arithmetic of the noise, line by line: each release's part of the budget, and its noise."""
        if self.guarantee is None:
            return ["without privacy no noise is added, and nothing is spent"]
        agreement, n = self.agreement, len(self.agreement.sites)
        lines = [self._explain(release) for release in agreement.releases]
        mechanisms = agreement.mechanisms
        if any(one.sampling_rate < 1 for one in mechanisms):
            alike = len({(one.noise_multiplier, one.sampling_rate) for one in mechanisms}) == 1
            how = "privacy loss distribution" if alike else "Renyi divergences, because the steps differ"
            whole = f"a composition of sampled steps, priced by its {how},"
        else:
            mu = math.sqrt(sum(one.steps / one.noise_multiplier**2 for one in mechanisms))
            rounded = any(one.epsilon_slack > 0 for one in mechanisms)
            beside = ", with noise in whole numbers," * rounded
            whole = f"a Gaussian mechanism with mu = sqrt(sum of mu^2) = {mu:.4f}{beside}"
        lines.append(
            f"together: {whole} costs epsilon {self.guarantee.epsilon:.6f} at delta {agreement.target.delta:g}"
        )
        match agreement.trust:
            case "site":
                lines.append(
                    f"trust site: each of {n} hospitals adds all the noise; a sum has {n} times its variance"
                )
            case "secure-aggregation":
                lines.append(
                    f"trust secure-aggregation: any {agreement.honest} of {n} hospitals add enough noise, so each "
                    "adds "
                    f"1 / sqrt({agreement.honest}) of it; a sum of all holds {n} / {agreement.honest} of its variance"
                )
            case _:
                lines.append("trust server: the server adds the noise, hospitals add none")
        return lines + (self.outlook.explain() if self.outlook else [])

    def _explain(self, release: Release) -> str:
        one, z = release.mechanism, release.mechanism.noise_multiplier
        steps = f"{one.steps} step{'s' * (one.steps > 1)}"
        if one.sampling_rate < 1:
            cost = f"{steps}, where a unit takes part with probability {one.sampling_rate:g}"
        else:
            cost = f"mu = sqrt({steps}) / {z:.4g} = {math.sqrt(one.steps) / z:.4f}"
        return (
            f"{release.query.title}: noise multiplier {z:.4g}; {cost}; clip norm "
            f"{one.clip_norm:g} makes noise of {one.noise_std:.4g}, "
            f"a hospital adds {self.agreement.noise_std(release):.4g}"
        )


def make_plan(study: Study, dataset: Dataset | None = None) -> Plan:
    """Read the data, calibrate the noise and price the whole study; nothing is trained, nothing is charged.

    Args:
        study: the resolved study.
        dataset: data in memory; by default the study's source is read.
    """
    prepared = prepare(study, dataset)
    study = prepared.study
    agreement = make_agreement(study, sites=tuple(prepared.sites), model=model_of(study, prepared.dataset))
    guarantee = agreement.planned
    if guarantee is None:
        return Plan(
            prepared=prepared, agreement=agreement, guarantee=None, epsilon_alone=float("inf"), risk=None
        )
    return Plan(
        prepared=prepared,
        agreement=agreement,
        guarantee=guarantee,
        epsilon_alone=agreement.epsilon_alone(),
        risk=operational_risk(guarantee, agreement.mechanisms),
        outlook=make_outlook(prepared, agreement),
    )
