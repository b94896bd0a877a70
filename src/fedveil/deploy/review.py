"""What a study would cost one hospital, for the person who has to approve it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedveil.deploy.config import SiteConfig
from fedveil.deploy.studies import Listed
from fedveil.errors import FedveilError, InvalidValue
from fedveil.federation import KEPT, Terms
from fedveil.federation.secure import session_of
from fedveil.privacy import Guarantee, LedgerState, Mechanism, epsilon, operational_risk, verify_ledger

__all__ = ["Review", "review"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """The cost of a study at one hospital, in the hospital's own budget.

    Attributes:
        listed: the study.
        state: the hospital's ledger as it stands.
        guarantee: what the whole study earns, by the accountant; None where it has no privacy.
        alone: epsilon of this hospital's own noise if everyone else colludes.
        after: epsilon of everything in the ledger and the whole study together, at the budget's delta; what was charged
            for the study already counts once.
        objection: why the hospital's policy refuses it; None if it does not.
        own_model: what a model of the hospital's own takes of the cost; None where the study provides for none.
    """

    listed: Listed
    state: LedgerState
    guarantee: Guarantee | None
    alone: float
    after: float
    objection: str | None
    own_model: str | None = None

    @property
    def sentences(self) -> list[str]:
        """The review as a person reads it."""
        terms, budget = self.listed.terms, self.state.budget
        needed = next(count for count in range(1, len(terms.sites) + 1) if terms.enough(count))
        if terms.trust == "secure-aggregation":  # beyond 64 sites a sparse session needs more
            needed = max(needed, session_of(terms, terms.sites, 0, 1).min_survivors)
        rounds = " and ".join(
            f"{r.mechanism.steps} x {r.name} ({r.dimension:,} numbers)" for r in terms.releases
        )
        lines = [
            f"study      {terms.name}, digest {self.listed.digest}",
            f"hospitals  {', '.join(terms.sites)}; a round needs {needed}",
            f"releases   {rounds}",
        ]
        if self.guarantee is None:
            lines.append("cost       no privacy: nothing bounds what is revealed about a patient")
        else:
            lines += [
                f"cost       {self.guarantee}",
                f"risk       {operational_risk(self.guarantee, self._mechanisms)}",
                f"alone      epsilon {self.alone:.4g} if everyone else colludes",
                f"budget     epsilon {self.state.spent():.4g} of {budget.epsilon:.4g} is spent; "
                f"with this study {self.after:.4g}",
            ]
        if self.own_model is not None:
            lines.append(f"own model  {self.own_model}")
        if self.objection:
            lines.append(f"policy     {self.objection}")
        return lines

    @property
    def _mechanisms(self) -> list[Mechanism]:
        return [release.mechanism for release in self.listed.terms.releases]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "digest": self.listed.digest,
            "study": self.listed.terms.name,
            "approved": self.listed.approved,
            "guarantee": self.guarantee.to_dict() if self.guarantee else None,
            "epsilon_alone": self.alone if self.guarantee else None,
            "epsilon_spent": self.state.spent(),
            "epsilon_after": self.after if self.guarantee else None,
            "objection": self.objection,
        }


def review(config: SiteConfig, listed: Listed) -> Review:
    """Price a study against the hospital's ledger and policy; charges nothing and takes no lock."""
    terms = listed.terms
    state = verify_ledger(config.folder / "ledger.jsonl")
    mechanisms = [release.mechanism for release in terms.releases]
    objection = None
    try:
        config.check(terms)
        config.check_delta(state.budget.delta)
    except FedveilError as error:
        objection = str(error)
    if terms.trust == "none":
        return Review(
            listed=listed,
            state=state,
            guarantee=None,
            alone=float("inf"),
            after=float("inf"),
            objection=objection,
        )
    target = terms.target
    guarantee = Guarantee(epsilon(mechanisms, target.delta), target.delta, target.unit, target.trust)
    after = max(state.spent(), _after(state, terms, mechanisms))
    if objection is None and after > state.budget.epsilon * (1 + 1e-9):
        objection = f"the budget of epsilon {state.budget.epsilon:.4g} does not pay for it"
    return Review(
        listed=listed,
        state=state,
        guarantee=guarantee,
        alone=terms.epsilon_alone(),
        after=after,
        objection=objection,
        own_model=_own_model(config, terms),
    )


def _after(state: LedgerState, terms: Terms, mechanisms: Sequence[Mechanism]) -> float:
    """Epsilon of all other studies' charges and this whole study, each as it protects the ledger's unit.

    Infinite where this study does not protect that unit at all, which the policy's objection explains.
    """
    others = [charge.mechanism for charge in state.charges if charge.study != terms.title]
    try:
        priced = [one.for_unit(state.budget.unit) for one in (*others, *mechanisms)]
    except InvalidValue:
        return math.inf
    return epsilon(priced, state.budget.delta, adaptive=True)


def _own_model(config: SiteConfig, terms: Terms) -> str | None:
    """What the hospital's own model costs, or that its policy makes none."""
    own = [release.mechanism for release in terms.releases if release.name in KEPT]
    if not own:
        return None
    if not config.policy.own_models:
        return "none is made or charged here, by this site's policy"
    cost = epsilon(own, terms.target.delta)
    return f"made here from the finished one, and kept here; by itself it would cost epsilon {cost:.4g}"
