"""What the desk's pages show, read from the site's folder; the same facts as the commands print."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedveil.deploy.identity import fingerprint
from fedveil.deploy.records.facts import Fact, changes
from fedveil.deploy.records.refusals import read_refusals
from fedveil.deploy.site.approvals import Listed, Studies
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.keys import Peers
from fedveil.deploy.site.models import Models
from fedveil.deploy.site.review import Review, epsilon_with, review
from fedveil.errors import FedveilError
from fedveil.privacy import Decision, LedgerState, verify_ledger

__all__ = ["Overview", "StudyPage", "overview", "study_page"]

_WIDTH = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """One study's charges: a row of the timeline."""

    study: str
    first: str
    last: str
    charges: int
    epsilon: float
    total: float
    x: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The first page.

    Attributes:
        config: the hospital's settings.
        state: its ledger.
        spent, reserved: epsilon of all charges, and what approved studies may still add to it.
        timeline: charges by study, oldest first.
        studies: every readable study on offer, newest first.
        problems: files that cannot be used, and settings that disagree.
        models: finished models and what they do here, by study.
        decisions: all decisions, oldest first: of the ledger, then those that the service has not copied there yet.
        refusals: the newest refused messages.
    """

    config: SiteConfig
    state: LedgerState
    spent: float
    reserved: float
    timeline: tuple[Spent, ...]
    studies: tuple[Listed, ...]
    problems: tuple[str, ...]
    models: tuple[tuple[Listed, Path, dict[str, Any] | None], ...]
    decisions: tuple[Decision, ...]
    refusals: tuple[Fact, ...]

    @property
    def bars(self) -> tuple[float, float]:
        """The widths of the gauge's two parts, out of 600: spent, reserved."""
        first = _share(self.spent, self.state.budget.epsilon) * _WIDTH
        return first, min(_share(self.reserved, self.state.budget.epsilon) * _WIDTH, _WIDTH - first)

    @property
    def left(self) -> float:
        """Epsilon that neither was spent nor is reserved."""
        return max(0.0, self.state.budget.epsilon - self.spent - self.reserved)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPage:
    """The page of one study.

    Attributes:
        found: its review.
        changed: a similar study, and the settings that differ: name, there, here.
        keys: fingerprint of every other hospital, and whether it is confirmed here.
        unconfirmed: the hospitals whose fingerprint has to be given to approve.
    """

    found: Review
    changed: tuple[Listed, list[tuple[str, str, str]]] | None
    keys: tuple[tuple[str, str, bool], ...]
    unconfirmed: tuple[str, ...]


def overview(config: SiteConfig) -> Overview:
    """Everything that the first page shows.

    Raises:
        LedgerError: the ledger is damaged.
    """
    state = verify_ledger(config.folder / "ledger.jsonl")
    listed, problems, studies = [], [], Studies(config.folder / "studies")
    for digest, one in studies.survey():
        if isinstance(one, FedveilError):
            problems.append(f"study {digest[:12]}: {one}")
        else:
            listed.append(one)
    if conflict := config.budget_conflict(state.budget):
        problems.append(conflict)
    models = Models(config.folder / "models")
    running = [one for one in listed if one.state == "approved" and not models.of(one.digest).exists()]
    spent = state.spent()
    reserved = max(0.0, epsilon_with(state, [one.agreement for one in running]) - spent)
    return Overview(
        config=config,
        state=state,
        spent=spent,
        reserved=reserved,
        timeline=tuple(_timeline(state)),
        studies=tuple(reversed(listed)),
        problems=tuple(problems),
        models=tuple(
            (one, kept.folder, _evaluation(kept.folder))
            for one in listed
            if (kept := models.of(one.digest)).exists()
        ),
        decisions=(*state.decisions, *(one for one in studies.decisions.all() if one not in state.decisions)),
        refusals=tuple(read_refusals(config.folder)),
    )


def _timeline(state: LedgerState) -> list[Spent]:
    found: list[Spent] = []
    for number, study in enumerate(state.studies, 1):
        times = [charge.time for charge in state.charges if charge.study == study]
        total = state.spent(*state.studies[:number])
        found.append(
            Spent(
                study=study.rpartition(" ")[0] or study,
                first=times[0][:10],
                last=times[-1][:10],
                charges=len(times),
                epsilon=state.spent(study),
                total=total,
                x=(number - 1) * _WIDTH / len(state.studies),
                height=_share(total, state.budget.epsilon) * 100,
            )
        )
    return found


def _share(part: float, whole: float) -> float:
    """A part of the budget, from 0 to 1; 0 of one without a limit."""
    return 0.0 if math.isinf(whole) else min(1.0, part / whole)


def _evaluation(folder: Path) -> dict[str, Any] | None:
    """How good a finished model is on this hospital's held-out patients; None until that is known."""
    try:
        values = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def study_page(config: SiteConfig, digest: str) -> StudyPage:
    """Everything that the page of one study shows.

    Raises:
        FedveilError: the study was not offered, or its file cannot be used.
    """
    studies = Studies(config.folder / "studies")
    listed = studies.read(digest)
    known = Peers(config.folder / "peers").known()
    own, offered = config.site.name, listed.offer.keys
    keys = [
        (
            site,
            fingerprint(offered.get(site) or known[site]),
            known.get(site) == offered.get(site, known.get(site)),
        )
        for site in listed.offer.sites
        if site != own and (site in offered or site in known)
    ]
    return StudyPage(
        found=review(config, listed),
        changed=changes(listed, studies.all()),
        keys=tuple(keys),
        unconfirmed=_unconfirmed(keys, masked=listed.agreement.trust == "secure-aggregation"),
    )


def _unconfirmed(keys: Sequence[tuple[str, str, bool]], *, masked: bool) -> tuple[str, ...]:
    return tuple(site for site, _, confirmed in keys if masked and not confirmed)
