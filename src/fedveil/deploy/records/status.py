"""The state of a site for an administrator and their monitoring: nothing about patients, nothing that costs budget."""

import math
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fedveil.deploy.records.refusals import read_refusals
from fedveil.deploy.site.approvals import Listed, Studies
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.models import Models
from fedveil.deploy.site.review import epsilon_with
from fedveil.privacy import verify_ledger

__all__ = ["SiteStatus", "prometheus", "site_state"]

_DAY = timedelta(days=1)
_LITTLE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteStatus:
    """A site at one moment.

    Attributes:
        site: its name.
        listening: whether the site service answers at its address.
        epsilon, delta: the budget; ``spent`` and ``reserved`` of epsilon by charges and by approved studies.
        studies: number of studies by state: pending, approved, declined, withdrawn, finished.
        charges: lines of the ledger that charge something.
        last_charge: its time; empty if there is none.
        refusals_last_day: refused messages of the last 24 hours.
        identity_key_days: age of the identity key.
        problems: what keeps the site from working: exit code 2.
        warnings: what a person should look at: exit code 1.
    """

    site: str
    listening: bool
    epsilon: float
    delta: float
    spent: float
    reserved: float
    studies: Mapping[str, int]
    charges: int
    last_charge: str
    refusals_last_day: int
    identity_key_days: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 if all is well, 1 with warnings, 2 with problems: as monitoring programs have it."""
        return 2 if self.problems else 1 if self.warnings else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an unlimited budget is None."""
        values = asdict(self)
        return {
            key: None if isinstance(one, float) and math.isinf(one) else one for key, one in values.items()
        }


def site_state(config: SiteConfig) -> SiteStatus:
    """Read the state of a site; takes no lock and charges nothing.

    Raises:
        LedgerError: the ledger is damaged.
    """
    state = verify_ledger(config.folder / "ledger.jsonl")
    models, found, problems = Models(config.folder / "models"), [], []
    for digest, one in Studies(config.folder / "studies").survey():
        if isinstance(one, Listed):
            found.append(("finished" if models.of(digest).exists() else one.state, one))
        else:
            problems.append(f"study {digest[:12]}: {one}")
    listening = _listens(config)
    if not listening:
        problems.append("the site service does not answer: start it")
    spent = state.spent()
    running = [one.agreement for kind, one in found if kind == "approved"]
    left = state.budget.epsilon - epsilon_with(state, running)
    counts = Counter(dict.fromkeys(("pending", "approved", "declined", "withdrawn", "finished"), 0))
    counts.update(kind for kind, _ in found)
    warnings = [
        f"study {one.agreement.name} waits for a decision" for kind, one in found if kind == "pending"
    ]
    if left < _LITTLE * state.budget.epsilon:
        warnings.append(f"epsilon {max(0.0, left):.4g} of {state.budget.epsilon:.4g} is left")
    if conflict := config.budget_conflict(state.budget):
        warnings.append(conflict)
    key = datetime.fromtimestamp((config.folder / "identity.key").stat().st_mtime, UTC)
    return SiteStatus(
        site=config.site.name,
        listening=listening,
        epsilon=state.budget.epsilon,
        delta=state.budget.delta,
        spent=spent,
        reserved=max(0.0, state.budget.epsilon - spent - left) if math.isfinite(left) else 0.0,
        studies=dict(counts),
        charges=len(state.charges),
        last_charge=state.charges[-1].time if state.charges else "",
        refusals_last_day=_recent(config.folder),
        identity_key_days=(datetime.now(UTC) - key).days,
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def _listens(config: SiteConfig) -> bool:
    """Whether something accepts connections at the service's address."""
    where = config.address().where
    kind = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
    with socket.socket(kind) as line:
        line.settimeout(2)
        try:
            line.connect(where)
        except OSError:
            return False
    return True


def _recent(folder: Path) -> int:
    since = datetime.now(UTC) - _DAY
    found = 0
    for time, _ in read_refusals(folder):
        try:
            found += datetime.fromisoformat(time) > since
        except (ValueError, TypeError):
            continue
    return found


_METRICS = {
    "epsilon": ("fedveil_budget_epsilon", "Budget of all studies together."),
    "spent": ("fedveil_spent_epsilon", "Epsilon of all charges."),
    "reserved": ("fedveil_reserved_epsilon", "Epsilon that approved studies may still spend."),
    "charges": ("fedveil_charges", "Charges in the ledger."),
    "refusals_last_day": ("fedveil_refusals_last_day", "Refused messages of the last 24 hours."),
    "identity_key_days": ("fedveil_identity_key_days", "Age of the identity key."),
    "listening": ("fedveil_site_listening", "Whether the site service answers."),
}


def prometheus(status: SiteStatus) -> str:
    """The same as metrics in Prometheus' text format, for a collector that reads files."""
    lines = []
    for field, (name, words) in _METRICS.items():
        value = float(getattr(status, field))
        text = "+Inf" if math.isinf(value) else f"{value:g}"
        lines += [f"# HELP {name} {words}", f"# TYPE {name} gauge", f'{name}{{site="{status.site}"}} {text}']
    name = "fedveil_studies"
    lines += [f"# HELP {name} Studies by state.", f"# TYPE {name} gauge"]
    lines += [
        f'{name}{{site="{status.site}",state="{kind}"}} {count}' for kind, count in status.studies.items()
    ]
    return "\n".join(lines) + "\n"
