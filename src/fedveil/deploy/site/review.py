"""A study's cost for one hospital, for the person who has to approve it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedveil.deploy.site.approvals import Listed
from fedveil.deploy.site.config import SiteConfig
from fedveil.errors import FedveilError, InvalidValue
from fedveil.federation import Agreement
from fedveil.federation.secure_rounds import session_of
from fedveil.learning.encoders.external import Store
from fedveil.privacy import Guarantee, LedgerState, Mechanism, epsilon, operational_risk, verify_ledger
from fedveil.study import Study

__all__ = ["Review", "review"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """The cost of a study at one hospital, in the hospital's own budget.

    Attributes:
        listed: the study.
        state: the hospital's current ledger.
        guarantee: of the whole study, by the accountant; None without privacy.
        alone: epsilon of this hospital's own noise if everyone else colludes.
        after: epsilon of everything in the ledger and the whole study together, at the budget's delta; charges
            already made for the study count once.
        objection: why the hospital's policy refuses it; None if it does not.
        own_model: the part of the cost for the hospital's own model; None if the study includes none.
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
        """The review as text."""
        agreement, budget = self.listed.agreement, self.state.budget
        needed = next(count for count in range(1, len(agreement.sites) + 1) if agreement.enough(count))
        unit = agreement.target.unit
        releases = [
            f"{r.mechanism.steps} x {r.query.title} ({r.dimension:,} numbers); a {unit} adds {r.query.adds}"
            for r in agreement.releases
        ]
        if agreement.trust == "secure-aggregation":  # with more than 64 sites a sparse session needs more
            needed = max(needed, session_of(agreement, agreement.sites, 0, 1).min_survivors)
        lines = [
            f"study      {agreement.name}, digest {self.listed.digest}",
            f"hospitals  {', '.join(agreement.sites)}; a round needs {needed}",
            *_encoder(self.listed.offer.study),
            *(f"{'' if number else 'releases':<10} {one}" for number, one in enumerate(releases)),
        ]
        if agreement.calibration is not None:
            grid = ", ".join(f"{level.epsilon:g}" for level in agreement.calibration.levels)
            lines.append(
                f"level      calibrated: a fixed rule picks one epsilon of {grid} from the pilot's noisy sums. "
                "The releases and the cost here are those of the dearest; the ledger is charged what is used"
            )
        if self.guarantee is None:
            lines.append("cost       no privacy: nothing bounds what is revealed about a patient")
        else:
            lines += [
                f"cost       {self.guarantee}",
                f"risk       {operational_risk(self.guarantee, agreement.mechanisms)}",
                f"alone      epsilon {self.alone:.4g} if everyone else colludes",
                f"budget     epsilon {self.state.spent():.4g} of {budget.epsilon:.4g} is spent; "
                f"with this study {self.after:.4g}",
            ]
        if self.own_model is not None:
            lines.append(f"own model  {self.own_model}")
        if self.objection:
            lines.append(f"policy     {self.objection}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "digest": self.listed.digest,
            "study": self.listed.agreement.name,
            "approved": self.listed.approved,
            "guarantee": self.guarantee.to_dict() if self.guarantee else None,
            "epsilon_alone": self.alone if self.guarantee else None,
            "epsilon_spent": self.state.spent(),
            "epsilon_after": self.after if self.guarantee else None,
            "objection": self.objection,
        }


def review(config: SiteConfig, listed: Listed) -> Review:
    """Price a study against the hospital's ledger and policy; charges nothing and takes no lock."""
    agreement = listed.agreement
    state = verify_ledger(config.folder / "ledger.jsonl")
    objection = None
    try:
        config.check(agreement)
        config.check_delta(state.budget.delta)
    except FedveilError as error:
        objection = str(error)
    guarantee = agreement.planned
    if guarantee is None:
        return Review(
            listed=listed,
            state=state,
            guarantee=None,
            alone=float("inf"),
            after=float("inf"),
            objection=objection,
        )
    after = max(state.spent(), _after(state, agreement, agreement.mechanisms))
    if objection is None and after > state.budget.epsilon * (1 + 1e-9):
        objection = f"the budget of epsilon {state.budget.epsilon:.4g} does not pay for it"
    return Review(
        listed=listed,
        state=state,
        guarantee=guarantee,
        alone=agreement.epsilon_alone(),
        after=after,
        objection=objection,
        own_model=_own_model(config, agreement),
    )


def _encoder(study: Study) -> list[str]:
    """The encoder that is not built in, by its whole hash."""
    spec = study.model.encoder.spec(study.model.features)
    if spec is None:
        return []
    graph = f", graph {spec.graph}" if spec.graph else ""
    here = "registered here" if Store().has(spec.sha256) else "NOT registered here: fedveil encoder add FILE"
    return [f"encoder    {spec.features}, SHA-256 {spec.sha256}{graph}; {here}"]


def _after(state: LedgerState, agreement: Agreement, mechanisms: Sequence[Mechanism]) -> float:
    """Epsilon of all other studies' charges and this whole study, each for the ledger's unit.

    Infinite if this study does not protect that unit at all, which the policy's objection explains.
    """
    others = [charge.mechanism for charge in state.charges if charge.study != agreement.title]
    try:
        priced = [one.for_unit(state.budget.unit) for one in (*others, *mechanisms)]
    except InvalidValue:
        return math.inf
    return epsilon(priced, state.budget.delta, adaptive=True)


def _own_model(config: SiteConfig, agreement: Agreement) -> str | None:
    """The cost of the hospital's own model, or that its policy makes none."""
    own = [release.mechanism for release in agreement.releases if release.query.at_site]
    if not own:
        return None
    if not config.policy.own_models:
        return "none is made or charged here because of this site's policy"
    cost = agreement.price(own)
    return f"made here from the finished one, and stored here; alone it would cost epsilon {cost:.4g}"
