"""What the planner recommends, and the arithmetic behind it."""

import math
from dataclasses import dataclass

from fedveil.federation import Agreement
from fedveil.planning.laws import Reference
from fedveil.planning.request import Configuration, PlanRequest, Sampling
from fedveil.privacy import Mechanism
from fedveil.study.recipes import Metric
from fedveil.study.settings.schema import Study
from fedveil.study.settings.toml import toml_value

__all__ = ["Candidate", "Change", "CurvePoint", "Prediction", "Recommendation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The mean over runs, and the interval in which 95 % of them are expected."""

    expected: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One epsilon of a curve.

    Attributes:
        epsilon: the target.
        predicted: accuracy by the metric that settings are compared by.
        true_positive_rate: bound on the share of members that an attack finds at 1 % false alarms.
    """

    epsilon: float
    predicted: Prediction
    true_positive_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One configuration at the epsilon that it needs, or at the limit if a target cannot be reached."""

    configuration: Configuration
    epsilon: float
    ratio: float
    predicted: dict[Metric, Prediction]
    reaches: bool

    def value(self, metric: Metric) -> float:
        """The expected accuracy by this metric."""
        return self.predicted[metric].expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change that would help, and the resulting accuracy by the metric that settings are compared by."""

    what: str
    expected: float
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The recommended setting, and everything that it was derived from.

    Attributes:
        plan_request: what was asked for.
        laws: those that predict the chosen configuration's accuracy, for each metric.
        candidates: every accepted configuration.
        chosen: the recommended one, or the best one if all miss a target.
        no: why the answer is no; empty if it is yes.
        agreement: what the hospitals of that run would be asked to approve.
        samplings: the sampling rates that were compared; empty where the law fixes it.
        curve: accuracy and risk against epsilon, of the chosen configuration; the chosen epsilon is one of the points.
        bare: the accuracy expected without privacy, by the best accepted recipe.
        changes: helpful changes, cheapest first.
        advice: the cheapest change that helps at least half as much as the best; None if none helps noticeably.
    """

    plan_request: PlanRequest
    laws: dict[Metric, Reference]
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    no: str
    agreement: Agreement
    samplings: tuple[Sampling, ...]
    curve: tuple[CurvePoint, ...]
    bare: dict[Metric, float]
    changes: tuple[Change, ...]
    advice: Change | None

    @property
    def mechanism(self) -> Mechanism:
        """The sums that the model is made from: steps of training, or one of statistics."""
        return self.agreement.main.mechanism

    @property
    def site_noise(self) -> float:
        """Standard deviation of the noise that one hospital adds to such a sum, or to a local step."""
        return self.agreement.noise_std(self.agreement.main)

    @property
    def reference(self) -> Reference:
        """The law of the metric that settings are compared by."""
        return self.laws[self.plan_request.ranked]

    @property
    def rounds(self) -> int:
        """Rounds of training; 1 if the model is made from statistics."""
        return self.agreement.main.rounds

    @property
    def note(self) -> str:
        """The limits of the prediction."""
        law, changed = self.reference, self.plan_request.changed(self.chosen.configuration)
        beyond = (
            ""
            if law.covers(self.plan_request.patients, self.chosen.ratio)
            else " This setting lies outside the range of the fit, so the prediction is a rough estimate."
        )
        other = (
            f" The study sets {', '.join(changed)}: those runs may have had other values." if changed else ""
        )
        return (
            f"predicted from {law.runs} runs on {law.name}; results differ for images and classes that are harder or "
            f"easier than those.{beyond}{other}"
        )

    def study_lines(self) -> str:
        """The lines of a study file that choose this setting."""
        tables, size = (
            self.plan_request.settings(self.chosen.configuration, self.chosen.epsilon),
            self.reference.image_size,
        )
        data: dict[str, object] = {} if size == Study().data.image_size else {"image_size": size}
        if data:
            tables = {"data": data} | tables
        return "\n".join(
            line
            for table, keys in tables.items()
            for line in (f"[{table}]", *(f"{key} = {toml_value(value)}" for key, value in keys.items()))
        )

    def explain(self) -> list[str]:
        """The arithmetic, line by line."""
        patients, ratio = self.plan_request.patients, self.chosen.ratio
        predicted = [line for law in self.laws.values() for line in law.explain(patients, ratio)]
        return [*self._explain_noise(), *self._explain_ratio(), *self._explain_sampling(), *predicted]

    def _explain_noise(self) -> list[str]:
        """From epsilon to the noise of one step."""
        plan_request, one, configuration, mechanism = (
            self.plan_request,
            self.chosen,
            self.chosen.configuration,
            self.mechanism,
        )
        mu, left = plan_request.mu(configuration, one.epsilon), plan_request.left(configuration, one.epsilon)
        kind = "step" if self.agreement.main.noise_inside else "round"
        steps = f"{mechanism.steps} {kind}{'s' * (mechanism.steps > 1)}"
        sampled = (
            f" on a share {mechanism.sampling_rate:g} of the units" if mechanism.sampling_rate < 1 else ""
        )
        extra = plan_request.steps_beside(configuration, one.epsilon)
        single = f" and {extra} equal ones for the other releases" if extra else ""
        return [
            f"epsilon {one.epsilon:.3g} at delta {plan_request.study.privacy.delta:g} is a Gaussian mechanism with "
            f"mu = {mu:.4f}",
            f"{configuration.recipe} receives {left:.0%} of mu squared: mu = {mu * math.sqrt(left):.4f}; over "
            f"{steps}{sampled}{single} that is a noise multiplier of {mechanism.noise_multiplier:.2f}",
        ]

    def _explain_ratio(self) -> list[str]:
        """From noise to nu."""
        plan_request, one, configuration, mechanism = (
            self.plan_request,
            self.chosen,
            self.chosen.configuration,
            self.mechanism,
        )
        n, units = len(plan_request.cohorts), plan_request.count(configuration.unit)
        factor = self.agreement.noise_of(self.agreement.main).factor(n)
        factors = {
            "site": f"sqrt({n})",
            "secure-aggregation": f"sqrt({n} / {self.agreement.honest})",
            "server": "1",
        }
        enlarged = (
            f"each of {n} hospitals adds all noise to its local steps, at every trust level: f = sqrt({n})"
            if self.agreement.main.noise_inside
            else f"trust {configuration.trust} enlarges noise by f = {factors[configuration.trust]}"
        )
        mu = math.sqrt(mechanism.steps) / mechanism.noise_multiplier
        ratio = (
            f"nu = N mu / f = {units:,.0f} x {mu:.4f} / {factor:.3f}"
            if mechanism.sampling_rate == 1
            else f"nu = q N sqrt(T) / (z f) = {mechanism.sampling_rate:g} x {units:,.0f} x sqrt({mechanism.steps}) / "
            f"({mechanism.noise_multiplier:.2f} x {factor:.3f})"
        )
        return [f"{enlarged} = {factor:.3f}", f"{ratio} = {one.ratio:.1f}"]

    def _explain_sampling(self) -> list[str]:
        """The ratios at other sampling rates."""
        if self.chosen.configuration.recipe.method == "one-shot":
            return []
        if not self.samplings:
            share = _share(self.mechanism.sampling_rate)
            return [
                f"sampling is as in the measured runs: {share} of the units in each of {self.rounds} rounds"
            ]
        compared = "; ".join(f"{_share(one.rate)} in {one.rounds}: {one.ratio:.1f}" for one in self.samplings)
        return [
            f"nu by share of the {self.chosen.configuration.unit}s in a round and number of rounds: {compared}"
        ]


def _share(rate: float) -> str:
    return "all" if rate == 1 else f"{rate:g}"
