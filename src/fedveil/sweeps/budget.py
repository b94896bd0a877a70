"""A sweep over the patients of real hospitals: its cost, and the ledgers that it is charged to.

Every setting and every repeat is a study of its own, whose releases are charged before they are made, to one ledger
per hospital in the sweep's directory, with the same ledgers and sites as any other study. The declared cost is the
budget of these ledgers. It bounds all models of the sweep together, even if the sweep was interrupted or its lists
were extended in view of results.
"""

import hashlib
import itertools
import math
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fedveil.errors import BudgetExceeded, StudyError
from fedveil.federation import Agreement, BudgetSpent
from fedveil.learning import Model
from fedveil.privacy import (
    Budget,
    Guarantee,
    Ledger,
    LedgerState,
    Mechanism,
    Trust,
    Unit,
    epsilon,
    verify_ledger,
)
from fedveil.study.calibrate import make_agreement
from fedveil.study.pipeline import model_of
from fedveil.study.prepare import Prepared
from fedveil.study.results.run_directory import RunDirectory
from fedveil.study.settings.schema import Study
from fedveil.sweeps.grid import EVEN, NAMED, Grid, Measurement, Method, Setting

__all__ = ["Paid", "Payment", "Work", "plan_payment", "read_payment"]

UNDER_WAY = "under-way"
"""Folder of the settings that have begun and are not finished, each with its checkpoint."""
LONGEST = 80
"""Most characters in the name of a study."""
WEAKEST: tuple[Trust, ...] = ("server", "secure-aggregation", "site")
"""Trust levels, the weakest first."""
Work = Callable[[Prepared, Setting, RunDirectory, Mapping[str, Ledger]], Measurement]


@dataclass(frozen=True, slots=True)
class Paid:
    """What a sweep may cost each hospital's patients, and what has been charged so far.

    Attributes:
        guarantee: of all its models together: the budget, under the weakest trust level of any charge.
        spent: epsilon of what was charged, by hospital.
    """

    guarantee: Guarantee
    spent: Mapping[str, float]


def read_payment(directory: Path) -> Paid | None:
    """The state of a sweep's ledgers; None on public or simulated data, which has none.

    Raises:
        LedgerError: a ledger is damaged or was edited.
    """
    states = _states(directory)
    if not states:
        return None
    charged = {charge.trust for state in states.values() for charge in state.charges}
    trust = next((one for one in WEAKEST if one in charged), WEAKEST[-1])
    largest = max((state.budget for state in states.values()), key=lambda budget: budget.epsilon)
    guarantee = Guarantee(largest.epsilon, largest.delta, largest.unit, trust)
    return Paid(guarantee, {name: state.spent() for name, state in states.items()})


def _states(directory: Path) -> dict[str, LedgerState]:
    return {path.stem: verify_ledger(path) for path in sorted((directory / "ledgers").glob("*.jsonl"))}


@dataclass(frozen=True, slots=True)
class Payment:
    """A sweep that is charged to ledgers.

    Attributes:
        data: the hospitals' images.
        settings: what is swept.
        budget: of each hospital's ledger.
        bill: what each setting costs.
    """

    data: Prepared
    settings: tuple[Setting, ...]
    budget: Budget
    bill: "_Bill"

    def check(self, directory: Path, left: Sequence[Setting]) -> None:
        """Refuse a sweep that would cost more than was declared: past charges plus the remaining settings.

        The price of a remaining setting includes what was already charged for it: resuming it adds nothing.
        """
        states = _states(directory).values()
        known = {title for state in states for title in state.studies}
        agreement = [self._last(setting, known) for setting in left]
        titles = {one.title for one in agreement}
        planned = [release.mechanism for one in agreement for release in one.releases]
        need = 0.0
        for charges in [state.charges for state in states] or [()]:
            other = [one.mechanism.for_unit(self.budget.unit) for one in charges if one.study not in titles]
            need = max(need, epsilon(other + planned, self.budget.delta, adaptive=True))
        if need > self.budget.epsilon:
            raise StudyError(
                f"this sweep costs each hospital epsilon {_up(need):g} per {self.budget.unit} at delta "
                f"{self.budget.delta:g}, all models together, and epsilon {self.budget.epsilon:g} was declared",
                "a sweep begins only if all of it is paid for",
                f"give --pay {_up(need):g}, or sweep fewer settings",
            )

    def _last(self, setting: Setting, known: Container[str]) -> Agreement:
        """The newest attempt at a setting that was charged; the first if none was."""
        last = self.bill.agreement(setting)
        for attempt in itertools.count(2):
            if last.title not in known:
                return last
            following = self.bill.agreement(setting, attempt)
            if following.title not in known:
                return last
            last = following
        raise AssertionError("a ledger holds a finite number of studies")

    @contextmanager
    def open(self, directory: Path) -> Iterator[dict[str, Ledger]]:
        """The hospitals' ledgers, open; a budget that was changed is recorded in them."""
        begun = (directory / UNDER_WAY).exists()
        (directory / "ledgers").mkdir(exist_ok=True)
        with ExitStack() as stack:
            ledgers = {}
            for name in self.data.sites:
                path = RunDirectory(directory).ledger(name)
                first = None if begun or path.exists() else self.budget
                ledgers[name] = stack.enter_context(Ledger(path, first))
                if ledgers[name].budget != self.budget:
                    ledgers[name].amend_budget(self.budget, "the declared cost of this sweep was changed")
            (directory / UNDER_WAY).mkdir(exist_ok=True)
            yield ledgers

    def measure(self, directory: Path, left: Sequence[Setting], work: Work) -> Iterator[Measurement]:
        """Measure the remaining settings, one after another; interrupted ones continue from their checkpoint.

        The caller has to store a measurement before asking for the next: its checkpoint is then deleted.
        """
        with self.open(directory) as ledgers:
            for number, setting in enumerate(left):
                try:
                    yield self._one(directory, setting, work, ledgers)
                except BudgetExceeded as error:
                    raise StudyError(
                        f"what is paid does not cover {_label(setting)} ({error.found})",
                        f"{len(self.settings) - len(left) + number} of {len(self.settings)} settings are finished and "
                        "stored; work lost to interruptions was charged too",
                        "continue with --resume and a larger --pay",
                    ) from error
                for folder in (directory / UNDER_WAY).glob(f"{_key(setting)}-*"):
                    shutil.rmtree(folder)

    def _one(
        self, directory: Path, setting: Setting, work: Work, ledgers: Mapping[str, Ledger]
    ) -> Measurement:
        """Measure one setting. If it was killed and its target no longer covers the rest, it starts again."""
        for attempt in itertools.count(1):
            folder = directory / UNDER_WAY / f"{_key(setting)}-{attempt}"
            agreement = self.bill.agreement(setting, attempt)
            if not folder.exists() and any(
                agreement.charged_to(c) for one in ledgers.values() for c in one.state.charges
            ):
                continue  # its checkpoint is lost, but not its charges
            study = self.bill.study(setting, attempt)
            try:
                return work(replace(self.data, study=study), setting, _begun(folder, study), ledgers)
            except BudgetSpent:
                continue
        raise AssertionError("attempts end with a measurement or when the budget is spent")


class _Bill:
    """What each setting of a sweep asks of the hospitals in the data: the agreement of a study."""

    def __init__(self, data: Prepared) -> None:
        self._data = data
        self._models: dict[Method, Model] = {}

    def study(self, setting: Setting, attempt: int = 1) -> Study:
        """The study at a setting, with a name that is unique in a ledger."""
        base = self._data.study
        label = _label(setting) + (f" attempt {attempt}" if attempt > 1 else "")
        name = f"{base.study.name[: LONGEST - len(label) - 1]} {label}".strip()
        return setting.study(base).with_changes({"study": {"name": name}})

    def agreement(self, setting: Setting, attempt: int = 1) -> Agreement:
        """What the hospitals are asked to approve."""
        study = self.study(setting, attempt)
        if setting.method not in self._models:
            self._models[setting.method] = model_of(study, self._data.dataset)
        return make_agreement(study, sites=tuple(self._data.sites), model=self._models[setting.method])

    def price(self, settings: Iterable[Setting]) -> dict[Unit, float]:
        """Epsilon of all models together, for each privacy unit."""
        by: dict[Unit, list[Mechanism]] = {}
        for setting in settings:
            by.setdefault(setting.unit, []).extend(one.mechanism for one in self.agreement(setting).releases)
        delta = self._data.study.privacy.delta
        return {unit: epsilon(mechanisms, delta, adaptive=True) for unit, mechanisms in sorted(by.items())}


def plan_payment(data: Prepared, grid: Grid, paid: float | None, directory: Path) -> Payment | None:
    """The payment for a sweep over this data; None on public or simulated data, which costs nothing.

    Args:
        data: the study's data.
        grid: what is swept.
        paid: epsilon that the whole sweep may cost each hospital's patients; None for the value recorded in its
            directory.
        directory: of the sweep.

    Raises:
        StudyError: the data names real hospitals and no cost was declared, or the grid cannot be paid for.
    """
    if data.simulated:
        if paid is not None:
            raise StudyError(
                f"{data.dataset.name} names no hospitals, and --pay is given",
                "simulated hospitals have no budget",
                "drop --pay, or add a site column to the manifest",
            )
        return None
    bill = _Bill(data)
    settings = tuple(dict.fromkeys(replace(s, sites=len(data.sites), alpha=NAMED) for s in grid.settings()))
    recorded = [state.budget for state in _states(directory).values()]
    if paid is None and recorded:
        paid = max(budget.epsilon for budget in recorded)
    if paid is None:
        raise _unpaid(data, settings, bill)
    _check_grid(data, grid)
    if recorded and recorded[0].unit != grid.unit[0]:
        raise StudyError(
            f"this sweep's ledgers protect per {recorded[0].unit}, and the grid asks per {grid.unit[0]}",
            "a ledger has one unit",
            f"sweep per {recorded[0].unit}; other ledgers for the same patients would not count what these spent",
        )
    if not 0 < paid < math.inf:
        raise StudyError(
            f"epsilon {paid:g} is paid",
            "it must be a positive number",
            "give the epsilon that the sweep may cost",
        )
    return Payment(data, settings, Budget(paid, data.study.privacy.delta, grid.unit[0]), bill)


def _unpaid(data: Prepared, settings: Sequence[Setting], bill: _Bill) -> StudyError:
    """Every setting is a separate release: on real hospitals' patients all of them have to be paid for."""
    if any(setting.trust == "none" for setting in settings):
        cost, remedy = (
            "an unbounded epsilon, because it also trains without privacy",
            "remove none from --epsilon",
        )
    else:
        prices = bill.price(settings)
        cost = " and ".join(f"epsilon {_up(price):g} per {unit}" for unit, price in prices.items())
        remedy = (
            f"pay for it with --pay {_up(max(prices.values())):g}" if len(prices) == 1 else "sweep one unit"
        )
    return StudyError(
        f"{data.dataset.name} names {len(data.sites)} real hospitals, and this sweep would cost their patients {cost} "
        f"(delta {data.study.privacy.delta:g}, {len(settings)} models together)",
        "on real patients the whole sweep has to be paid for",
        f'sweep with data.source = "phantom" or a public set, choose there, and pay for one run; or {remedy}',
    )


def _check_grid(data: Prepared, grid: Grid) -> None:
    """Refuse what named hospitals cannot do or no ledger can cover."""
    own, count = data.study.data.sites, len(data.sites)
    alpha = EVEN if own.scheme == "iid" else own.alpha
    problems = (
        ("none" in grid.trust or math.inf in grid.epsilon, "it also trains without privacy", "epsilon none"),
        (grid.baselines, "it trains the baselines, on pooled images and without privacy", "--baselines"),
        (grid.patients != (None,), "it draws patients, which no ledger charges as sampling", "--patients"),
        (
            grid.sites not in ((count,), (own.count,)),
            f"it sweeps the number of hospitals, and there are {count}",
            "--sites",
        ),
        (grid.alpha != (alpha,), "it sweeps the similarity of hospitals, and these are given", "--alpha"),
    )
    for wrong, found, option in problems:
        if wrong:
            raise StudyError(
                f"{data.dataset.name} names {count} real hospitals; {found}",
                "real patients' images are used only at their hospital, and only for charged training",
                f"drop {option}",
            )
    if len(set(grid.unit)) > 1:
        raise StudyError(
            f"the sweep protects {' and '.join(grid.unit)}",
            "it is charged to one ledger per hospital, which has one unit",
            "sweep one unit",
        )


def _label(setting: Setting) -> str:
    return f"epsilon {setting.epsilon:g} {setting.trust} {setting.method} repeat {setting.seed + 1}"


def _key(setting: Setting) -> str:
    return hashlib.sha256(repr(setting).encode()).hexdigest()[:16]


def _up(value: float) -> float:
    """The number rounded up to two decimals."""
    return math.ceil(100 * value) / 100


def _begun(path: Path, study: Study) -> RunDirectory:
    """A setting's folder, new or as an earlier process left it."""
    if (path / "study.toml").is_file():
        return RunDirectory(path)
    shutil.rmtree(path, ignore_errors=True)  # killed before anything was written to it
    return RunDirectory.create(path, study, simulated=False)
