"""The content of a ledger: the site's budget and its charges, and their cost.

No price is stored: epsilon is always recomputed from the mechanisms. Line 0 opens a ledger with its budget, and only
a further budget line changes it.

Charges of one ledger compose, over rounds, studies and restarts. Ledgers of different sites need not be added up if
no patient is in two of them: each patient is protected by the ledger of the one site that holds their images
(parallel composition).
"""

import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, get_args

from fedveil.errors import InvalidValue, LedgerError
from fedveil.privacy.accounting.composition import epsilon
from fedveil.privacy.guarantee import Trust, Unit, check_choice, check_delta, check_number
from fedveil.privacy.ledger.chain import Entry, Head, check_receipt, read_chain
from fedveil.privacy.ledger.decisions import Decision, decided_in
from fedveil.privacy.mechanism import Mechanism

__all__ = [
    "Budget",
    "Charge",
    "LedgerState",
    "budget_line",
    "charge_line",
    "decode",
    "decode_charge",
    "read_ledger",
    "verify_ledger",
]

_VERSION = 1
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Budget:
    """The limit on what a site ever reveals about one unit: (epsilon, delta) over all its charges.

    An infinite epsilon records charges and refuses none, for baselines without privacy.
    """

    epsilon: float
    delta: float
    unit: Unit = "patient"

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, get_args(Unit))
        object.__setattr__(self, "epsilon", check_number("epsilon", self.epsilon))
        object.__setattr__(self, "delta", check_delta(self.delta))
        if not self.epsilon > 0:
            raise InvalidValue(
                f"the budget's epsilon is {self.epsilon:g}",
                "it must be greater than 0",
                "1 is strict, 8 is loose",
            )

    def __str__(self) -> str:
        return f"epsilon {self.epsilon:.4g} at delta {self.delta:.4g} per {self.unit}"

    def to_dict(self) -> dict[str, Any]:
        """The budget for JSON, which has no infinity."""
        return {
            "epsilon": "inf" if math.isinf(self.epsilon) else self.epsilon,
            "delta": self.delta,
            "unit": self.unit,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        epsilon = math.inf if values["epsilon"] == "inf" else values["epsilon"]
        return cls(epsilon, values["delta"], values["unit"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One line of a ledger: what was released, when and for which purpose.

    ``mechanism`` is the release under ``trust``; ``alone`` is the site's own noise if everyone else colludes, None
    if there is none.
    """

    seq: int
    time: str
    study: str
    round: int | None
    label: str
    trust: Trust
    mechanism: Mechanism
    alone: Mechanism | None
    previous: str
    hash: str


@dataclass(frozen=True, slots=True)
class LedgerState:
    """A ledger as read: every method is a pure function of it."""

    budget: Budget
    charges: tuple[Charge, ...]
    head: Head
    torn: int = 0
    decisions: tuple[Decision, ...] = ()

    @property
    def studies(self) -> tuple[str, ...]:
        """The names of all studies that were charged, in order of their first charge."""
        return tuple(dict.fromkeys(charge.study for charge in self.charges))

    def spent(self, *studies: str, delta: float | None = None) -> float:
        """Epsilon of all charges together, or of some studies', at the budget's delta if none is given."""
        return self._price([charge.mechanism for charge in self._of(studies)], delta)

    def spent_alone(self, *studies: str, delta: float | None = None) -> float:
        """The same if everyone except the site colludes: the guarantee of the site's own noise."""
        alone = [charge.alone for charge in self._of(studies)]
        known = [mechanism for mechanism in alone if mechanism is not None]
        return self._price(known, delta) if len(known) == len(alone) else math.inf

    @property
    def delta(self) -> float:
        """The delta of the budget's epsilon: its own, or twice that if several studies share it and one samples.

        One study's cost is filtered as a whole, see `fedveil.federation.Agreement.affords`. Whether a hospital
        admits another study, which may create a mixture, can depend on the first one's releases: sequences of events
        in which it does not have delta, and those in which it does, priced by `filter_epsilon`, have it again. Both
        count, whichever occurred.
        """
        samples = any(charge.mechanism.sampling_rate < 1 for charge in self.charges)
        return self.budget.delta * (2 if samples and len(self.studies) > 1 else 1)

    def _of(self, studies: tuple[str, ...]) -> list[Charge]:
        return [charge for charge in self.charges if not studies or charge.study in studies]

    def _price(self, mechanisms: Iterable[Mechanism], delta: float | None) -> float:
        released = [one.for_unit(self.budget.unit) for one in mechanisms]
        return epsilon(released, self.budget.delta if delta is None else delta, adaptive=True)


def verify_ledger(path: Path | str, receipt: Head | None = None) -> LedgerState:
    """Check every line, the head, and (if given) that the ledger still holds what `receipt` names.

    Takes no lock and changes nothing. Raises LedgerError if anything is wrong.
    """
    path = Path(path)
    contents = read_chain(path)
    if receipt is not None:
        check_receipt(path, contents, receipt)
    budget, charges = decode(path, contents.entries)
    return LedgerState(budget, tuple(charges), contents.head, contents.torn, decided_in(contents.entries))


def read_ledger(path: Path | str) -> list[Charge]:
    """All charges of a ledger, checked as by `verify_ledger`."""
    return list(verify_ledger(path).charges)


def budget_line(budget: Budget, reason: str, decision: Decision | None = None) -> dict[str, Any]:
    """The content of a budget line; the decision names who changed the budget."""
    _check_name("reason", reason, least=1)
    decided = {} if decision is None else {"decision": decision.to_dict()}
    return {
        **decided,
        "kind": "budget",
        "version": _VERSION,
        "ledger": secrets.token_hex(8),
        "time": _now(),
        "budget": budget.to_dict(),
        "reason": reason,
    }


def charge_line(
    study: str,
    round_number: int | None,
    label: str,
    trust: Trust,
    mechanism: Mechanism,
    alone: Mechanism | None,
) -> dict[str, Any]:
    """The content of a charge line; raises InvalidValue if it cannot be represented."""
    check_choice("trust", trust, get_args(Trust))
    _check_name("study", study, least=1)
    _check_name("label", label, least=0)
    if round_number is not None and (isinstance(round_number, bool) or round_number < 0):
        raise InvalidValue(f"round is {round_number}", "it must be at least 0", "count rounds from 1")
    return {
        "kind": "charge",
        "time": _now(),
        "study": study,
        "round": None if round_number is None else int(round_number),
        "label": label,
        "trust": trust,
        "mechanism": mechanism.to_dict(),
        "alone": None if alone is None else alone.to_dict(),
    }


def decode(path: Path, entries: Iterable[Entry]) -> tuple[Budget, list[Charge]]:
    """The budget after all `entries`, and their charges; LedgerError on any other line."""
    budget: Budget | None = None
    charges: list[Charge] = []
    for entry in entries:
        try:
            if entry.body["kind"] == "charge" and budget is not None:
                charges.append(decode_charge(entry))
                charges[-1].mechanism.for_unit(budget.unit)
            elif entry.body["kind"] == "budget" and entry.body["version"] == _VERSION:
                budget = Budget.from_dict(entry.body["budget"])
                decided_in([entry])
            elif entry.body["kind"] == "decision" and budget is not None:
                decided_in([entry])
            else:
                raise KeyError("kind")
        except (KeyError, TypeError, InvalidValue) as error:
            raise LedgerError(
                f"line {entry.seq + 1} of {path} is neither a budget nor a charge or decision that this version knows",
                "a ledger may be used only if every line is understood",
                "use the version of fedveil that wrote it, or a newer one",
            ) from error
    if budget is None:
        raise LedgerError(f"{path} has no budget", "line 1 of a ledger must be its budget", "check the path")
    return budget, charges


def decode_charge(entry: Entry) -> Charge:
    """The charge in a line; raises KeyError, TypeError or InvalidValue if there is none."""
    body = entry.body
    alone = body["alone"]
    return Charge(
        seq=entry.seq,
        time=body["time"],
        study=body["study"],
        round=body["round"],
        label=body["label"],
        trust=body["trust"],
        mechanism=Mechanism.from_dict(body["mechanism"]),
        alone=None if alone is None else Mechanism.from_dict(alone),
        previous=entry.previous,
        hash=entry.hash,
    )


def _check_name(what: str, name: str, least: int) -> None:
    if not isinstance(name, str) or not least <= len(name) <= _LONGEST_NAME:
        raise InvalidValue(
            f"the {what} is {str(name)[:60]!r}",
            f"it must be a text of {least} to {_LONGEST_NAME} characters",
            "use a name that tells a reader of the ledger what was released",
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
