"""A site's open ledger: durable charges first, then releases; and no charge that its budget does not cover.

A charge is on disk before its computation begins. The content of a ledger and its cost are in
`fedveil.privacy.ledger.charges`; how its file survives kills and reveals edits is in `fedveil.privacy.ledger.chain`.
"""

import math
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from fedveil.errors import BudgetExceeded, InvalidValue, LedgerError
from fedveil.privacy.accounting.composition import Step, epsilon, price, tally, within
from fedveil.privacy.guarantee import Trust, check_delta
from fedveil.privacy.ledger.chain import Chain, Head
from fedveil.privacy.ledger.charges import (
    Budget,
    Charge,
    LedgerState,
    budget_line,
    charge_line,
    decode,
    decode_charge,
)
from fedveil.privacy.ledger.decisions import Decision, decided_in, decision_line
from fedveil.privacy.mechanism import Mechanism

__all__ = ["Ledger"]


class Ledger:
    """A site's open ledger: the only way to charge it. One process at a time; close it, or use ``with``.

    `budget` opens a new ledger; for an existing one it must be the recorded budget, or None to use that. Raises
    LedgerError if the file is locked, damaged, rolled back, or has another budget.
    """

    def __init__(self, path: Path | str, budget: Budget | None = None) -> None:
        self.path = Path(path)
        first = None if budget is None else budget_line(budget, "opened")
        self._chain = Chain(self.path, first)
        self._lock = threading.RLock()
        try:
            self._load()
            if budget is not None and budget != self._budget:
                raise LedgerError(
                    f"{self.path} has a budget of {self._budget}, not of {budget}",
                    "a budget may be changed only by a recorded decision of the site",
                    "give the recorded budget, or amend it with a reason",
                )
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        self._budget, self._charges = decode(self.path, self._chain.entries)
        self._spent = tally(charge.mechanism.for_unit(self._budget.unit) for charge in self._charges)
        self._cleared: Counter[Step] = Counter()

    @property
    def budget(self) -> Budget:
        """The current budget."""
        return self._budget

    @property
    def head(self) -> Head:
        """Place and hash of the newest line: store it as a receipt, see `verify_ledger`."""
        return self._chain.head

    @property
    def state(self) -> LedgerState:
        """A snapshot of everything in the ledger."""
        with self._lock:
            decisions = decided_in(self._chain.entries)
            return LedgerState(self._budget, tuple(self._charges), self.head, decisions=decisions)

    def spent(self, delta: float | None = None) -> float:
        """Epsilon of all charges so far, at the budget's delta if none is given."""
        at = self._budget.delta if delta is None else check_delta(delta)
        return price(self._spent, at, adaptive=True)

    def spent_on(self, study: str, delta: float | None = None) -> float:
        """Epsilon of the charges of one study alone."""
        return self.state.spent(study, delta=delta)

    def epsilon_if(self, *mechanisms: Mechanism) -> float:
        """Epsilon of all charges so far and `mechanisms` together, at the budget's delta."""
        return price(self._with(mechanisms), self._budget.delta, adaptive=True)

    def admit(self, *mechanisms: Mechanism) -> None:
        """Raise BudgetExceeded unless all of `mechanisms` fit into the rest of the budget; charges nothing.

        Check everything that a study will charge before it starts: then it does not start in vain, and its charges,
        as parts of what is known to fit, are not priced again individually.
        """
        with self._lock:
            self._clear(self._with(mechanisms), mechanisms)

    def reserve(
        self,
        mechanism: Mechanism,
        *,
        study: str,
        trust: Trust,
        round: int | None = None,  # noqa: A002
        label: str = "",
        alone: Mechanism | None = None,
    ) -> Charge:
        """Charge `mechanism`; when this returns, the charge is on disk, and the release may be computed.

        Raises BudgetExceeded (nothing is written) if the charges would exceed the budget; InvalidValue if the
        mechanism does not protect the ledger's unit; LedgerError if the disk is full or fails.
        """
        if alone is None and trust == "site":
            alone = mechanism
        if alone is not None:
            alone.for_unit(self._budget.unit)
        line = charge_line(study, round, label, trust, mechanism, alone)
        with self._lock:
            total = self._with([mechanism])
            self._clear(total, [mechanism], without_noise=trust == "none")
            try:
                charge = decode_charge(self._chain.append(line))
                self._charges.append(charge)
                self._spent = total
            except BaseException:
                self._load()  # after any interruption, the file's content is what was charged
                raise
            return charge

    def note(self, decision: Decision, source: str) -> None:
        """Record a person's decision, durably; ``source`` identifies it, and is recorded once only."""
        with self._lock:
            if source not in self.noted():
                self._chain.append(decision_line(decision, source))

    def noted(self) -> frozenset[str]:
        """The sources of all recorded decisions."""
        with self._lock:
            return frozenset(
                entry.body["source"] for entry in self._chain.entries if entry.body["kind"] == "decision"
            )

    def amend_budget(self, budget: Budget, reason: str, decision: Decision | None = None) -> None:
        """Record a new budget, the reason and who decided. What was spent stays spent; the unit cannot change."""
        if budget.unit != self._budget.unit:
            raise InvalidValue(
                f"the new budget is per {budget.unit}, the ledger per {self._budget.unit}",
                "charges were priced for one unit",
                "keep the unit",
            )
        with self._lock:
            try:
                self._chain.append(budget_line(budget, reason, decision))
            finally:
                self._load()

    def close(self) -> None:
        """Release the lock."""
        self._chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _with(self, mechanisms: Iterable[Mechanism]) -> Counter[Step]:
        return self._spent + tally(mechanism.for_unit(self._budget.unit) for mechanism in mechanisms)

    def _clear(
        self, total: Counter[Step], asked: Iterable[Mechanism], *, without_noise: bool = False
    ) -> None:
        """Return if `total` is within the budget, else raise.

        Part of a composition within the budget is also within it, since more steps never protect better; so the last
        fitting composition is stored, and most charges are checked by counting.
        """
        budget = self._budget
        if math.isinf(budget.epsilon) or (total <= self._cleared and not without_noise):
            return
        if not without_noise and within(total, budget.epsilon, budget.delta):
            self._cleared = total
            return
        unit, spent = budget.unit, self.spent()
        alone = math.inf if without_noise else epsilon((one.for_unit(unit) for one in asked), budget.delta)
        raise BudgetExceeded(
            f"epsilon {alone:.4g} is requested from {self.path}, of which {spent:.4g} of {budget.epsilon:.4g} is spent "
            f"and {round(max(0.0, budget.epsilon - spent), 9):.4g} left",
            f"all charges together may not exceed {budget}",
            "use fewer rounds or more noise, or have the site amend its budget",
        )
