"""A study's cost for one hospital, for the person who has to approve it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedveil.deploy.records.facts import Fact, facts
from fedveil.deploy.site.approvals import Listed
from fedveil.deploy.site.config import SiteConfig
from fedveil.errors import FedveilError, InvalidValue
from fedveil.federation import Agreement
from fedveil.federation.secure_rounds import session_of
from fedveil.privacy import Guarantee, LedgerState, epsilon, operational_risk, verify_ledger
from fedveil.study import Study

__all__ = ["Review", "epsilon_with", "review"]


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
        facts: who asks, for what, which model is trained how, who receives it.
    """

    listed: Listed
    state: LedgerState
    guarantee: Guarantee | None
    alone: float
    after: float
    objection: str | None
    own_model: str | None = None
    facts: tuple[Fact, ...] = ()

    @property
    def sentences(self) -> list[str]:
        """The review as text."""
        return [f"{label:<12} {text}" for label, text in self.rows]

    @property
    def rows(self) -> list[Fact]:
        """The review by label: what the study is, what it releases, what it costs here."""
        agreement, unit = self.listed.agreement, self.listed.agreement.target.unit
        releases = [
            f"{r.mechanism.steps} x {r.query.title} ({r.dimension:,} numbers); a {unit} adds {r.query.adds}"
            for r in agreement.releases
        ]
        return [
            ("study", f"{agreement.name}, digest {self.listed.digest}"),
            *self.facts,
            ("hospitals", f"{', '.join(agreement.sites)}; a round needs {_needed(agreement)}"),
            *_start(self.listed.offer.study),
            *(("" if number else "releases", one) for number, one in enumerate(releases)),
            *_level(agreement),
            *self.costs,
        ]

    @property
    def costs(self) -> list[Fact]:
        """What the study costs here, by label."""
        agreement, budget = self.listed.agreement, self.state.budget
        if self.guarantee is None:
            rows = [("cost", "no privacy: nothing bounds what is revealed about a patient")]
        else:
            spent = self.state.spent()
            rows = [
                ("cost", str(self.guarantee)),
                ("risk", str(operational_risk(self.guarantee, agreement.mechanisms))),
                ("alone", f"epsilon {self.alone:.4g} if everyone else colludes"),
                (
                    "budget",
                    f"epsilon {spent:.4g} of {budget.epsilon:.4g} is spent; with this study {self.after:.4g}",
                ),
            ]
        if self.own_model is not None:
            rows.append(("own model", self.own_model))
        if self.objection:
            rows.append(("policy", self.objection))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "digest": self.listed.digest,
            "study": self.listed.agreement.name,
            "approved": self.listed.approved,
            "state": self.listed.state,
            "facts": dict(self.facts),
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
            facts=tuple(facts(config, listed)),
        )
    after = max(state.spent(), epsilon_with(state, [agreement]))
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
        facts=tuple(facts(config, listed)),
    )


def _start(study: Study) -> list[Fact]:
    """The public model that the coordinator pulls training towards, by its hash."""
    found = study.model.start_sha256
    return (
        [("start", f"a public model at the coordinator, SHA-256 {found}; nothing here uses it")]
        if found
        else []
    )


def _level(agreement: Agreement) -> list[Fact]:
    """What a calibrated study leaves open."""
    if agreement.calibration is None:
        return []
    grid = ", ".join(f"{level.epsilon:g}" for level in agreement.calibration.levels)
    return [
        (
            "level",
            f"calibrated: a fixed rule picks one epsilon of {grid} from the pilot's noisy sums. "
            "The releases and the cost here are those of the dearest; the ledger is charged what is used",
        )
    ]


def _needed(agreement: Agreement) -> int:
    """The number of hospitals that a round needs."""
    needed = next(count for count in range(1, len(agreement.sites) + 1) if agreement.enough(count))
    if agreement.trust == "secure-aggregation":  # with more than 64 sites a sparse session needs more
        needed = max(needed, session_of(agreement, agreement.sites, 0, 1).min_survivors)
    return needed


def epsilon_with(state: LedgerState, agreements: Sequence[Agreement]) -> float:
    """Epsilon of these whole studies and all charges of other ones, each for the ledger's unit.

    Infinite if a study does not protect that unit at all, which the policy's objection explains.
    """
    titles = {agreement.title for agreement in agreements}
    others = [charge.mechanism for charge in state.charges if charge.study not in titles]
    whole = [mechanism for agreement in agreements for mechanism in agreement.mechanisms]
    try:
        priced = [one.for_unit(state.budget.unit) for one in (*others, *whole)]
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
