"""The ledger: what it charges, what it refuses, and that nothing is ever forgotten."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.errors import BudgetExceeded, InvalidValue, LedgerError
from fedveil.privacy import (
    Budget,
    Guarantee,
    Ledger,
    Mechanism,
    calibrate,
    epsilon,
    read_ledger,
    verify_ledger,
)
from fedveil.privacy.accounting import composition as accounting
from fedveil.privacy.ledger import chain as chain_module

BUDGET = Budget(1.0, 1e-5)
WHOLE = calibrate(Guarantee(1.0, 1e-5, "patient", "site"), steps=40)
ROUND = WHOLE.with_steps(1)


def charge(ledger: Ledger, mechanism: Mechanism = ROUND, **others: object) -> None:
    ledger.reserve(mechanism, **({"study": "a", "trust": "site"} | others))  # type: ignore[arg-type]


def test_epsilon_composes_over_rounds(tmp_path: Path) -> None:
    """Over rounds, studies and restarts: what is spent is the price of everything together."""
    path = tmp_path / "site.jsonl"
    done = []
    for study in ("a", "b"):
        for start in (1, 11):
            with Ledger(path, BUDGET) as ledger:
                for number in range(start, start + 10):
                    charge(ledger, study=study, round=number)
                    done.append(ROUND)
                    assert ledger.spent() == epsilon(done, 1e-5)
    with Ledger(path) as ledger:
        assert ledger.spent() == epsilon([WHOLE], 1e-5)
        assert ledger.spent() > 5 * epsilon([ROUND], 1e-5)
        assert ledger.spent_on("a") == ledger.spent_on("b") == epsilon([WHOLE.with_steps(20)], 1e-5)
        assert ledger.spent(1e-6) == epsilon([WHOLE], 1e-6)
        with pytest.raises(BudgetExceeded):
            charge(ledger)


def test_a_refusal_says_asked_spent_left_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "site.jsonl"
    with Ledger(path, BUDGET) as ledger:
        charge(ledger, WHOLE.with_steps(10))
        before = path.read_bytes()
        head = ledger.head
        with pytest.raises(BudgetExceeded) as refusal:
            charge(ledger, WHOLE.with_steps(31))
        asked, spent = epsilon([WHOLE.with_steps(31)], 1e-5), epsilon([WHOLE.with_steps(10)], 1e-5)
        for number in (asked, spent, 1 - spent):
            assert f"{number:.4g}" in str(refusal.value)
        assert path.read_bytes() == before
        assert ledger.head == head
        charge(ledger, WHOLE.with_steps(30))
        assert ledger.spent() <= 1.0


def test_charges_are_recorded_whole(tmp_path: Path) -> None:
    path = tmp_path / "site.jsonl"
    alone = Mechanism(ROUND.noise_multiplier / math.sqrt(5), 1.0, 1)
    with Ledger(path, BUDGET) as ledger:
        written = ledger.reserve(
            ROUND, study="pneumonia", trust="secure-aggregation", round=3, label="gradient", alone=alone
        )
        assert ledger.state.charges == (written,)
    (read,) = read_ledger(path)
    assert read == written
    assert (read.study, read.round, read.label, read.trust) == (
        "pneumonia",
        3,
        "gradient",
        "secure-aggregation",
    )
    assert (read.mechanism, read.alone) == (ROUND, alone)
    assert read.time.endswith("+00:00")
    line = json.loads(path.read_text().splitlines()[1])
    assert "epsilon" not in line
    assert line["mechanism"]["kind"] == "gaussian"


def test_what_a_sites_own_noise_gives(tmp_path: Path) -> None:
    share = Mechanism(ROUND.noise_multiplier / 2, 1.0, 1)
    with Ledger(tmp_path / "site.jsonl", BUDGET) as ledger:
        charge(ledger, study="a", trust="secure-aggregation", alone=share)
        charge(ledger, study="a", trust="site")
        charge(ledger, study="b", trust="server")
        state = ledger.state
    assert state.studies == ("a", "b")
    assert state.spent_alone("a") == epsilon([share, ROUND], 1e-5)
    assert state.spent_alone("b") == state.spent_alone() == math.inf
    assert state.spent("a") == epsilon([ROUND, ROUND], 1e-5)


noises = st.floats(0.5, 4).map(lambda exponent: 10.0**exponent)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("charge"), noises, st.integers(1, 50)),
        st.tuples(st.just("reopen"), st.just(0.0), st.just(0)),
        st.tuples(st.just("tear"), st.just(0.0), st.integers(1, 300)),
        st.tuples(st.just("amend"), st.floats(0.1, 10), st.just(0)),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(actions)
def test_ledger_only_grows_and_never_passes_its_budget(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, float, int]]
) -> None:
    path = tmp_path_factory.mktemp("grows") / "site.jsonl"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chain_module, "_flush", lambda _: None)
        patched.setattr("os.fsync", lambda _: None)
        ledger, accepted, allowed = Ledger(path, BUDGET), [], 1.0
        for action, number, count in steps:
            before, spent = path.read_bytes(), ledger.spent()
            if action == "charge":
                mechanism = Mechanism(number, 1.0, count)
                try:
                    charge(ledger, mechanism)
                    accepted.append(mechanism)
                    assert ledger.spent() <= ledger.budget.epsilon
                except BudgetExceeded:
                    assert path.read_bytes() == before
                    assert epsilon([*accepted, mechanism], 1e-5) > ledger.budget.epsilon
            elif action == "amend":
                allowed = number
                ledger.amend_budget(Budget(number, 1e-5), "decided")
            else:
                ledger.close()
                if action == "tear":
                    path.write_bytes(path.read_bytes() + b'{"alone":'[:count] * 3)
                ledger = Ledger(path)
            assert path.read_bytes().startswith(before)
            assert ledger.spent() >= spent
            assert ledger.spent() == epsilon(accepted, 1e-5)
            assert ledger.budget.epsilon == allowed
        ledger.close()


def test_an_edited_charge_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.jsonl"
    with Ledger(path, BUDGET) as ledger:
        charge(ledger)
    path.write_bytes(path.read_bytes().replace(b'"steps":1', b'"steps":9'))
    with pytest.raises(LedgerError):
        Ledger(path)


def test_budget_is_the_recorded_one(tmp_path: Path) -> None:
    path = tmp_path / "site.jsonl"
    with Ledger(path, BUDGET) as ledger:
        charge(ledger, WHOLE)
    with pytest.raises(
        LedgerError, match="has a budget of epsilon 1 at delta 1e-05 per patient, not of epsilon 2"
    ):
        Ledger(path, Budget(2.0, 1e-5))
    with Ledger(path) as ledger:
        with pytest.raises(BudgetExceeded):
            charge(ledger)
        ledger.amend_budget(Budget(2.0, 1e-5), "ethics board, 12 May")
        charge(ledger)
        with pytest.raises(InvalidValue, match="the new budget is per image"):
            ledger.amend_budget(Budget(2.0, 1e-5, "image"), "cheaper")
        with pytest.raises(InvalidValue, match="the reason is ''"):
            ledger.amend_budget(Budget(3.0, 1e-5), "")
    state = verify_ledger(path)
    assert state.budget == Budget(2.0, 1e-5)
    assert len(state.charges) == 2
    assert "ethics board" in path.read_text()
    with Ledger(path) as ledger:
        ledger.amend_budget(Budget(0.5, 1e-5), "stricter")
        with pytest.raises(BudgetExceeded, match="and 0 left"):
            charge(ledger)


def test_unit_is_protected(tmp_path: Path) -> None:
    with Ledger(tmp_path / "patient.jsonl", BUDGET) as ledger:
        with pytest.raises(InvalidValue, match="one patient has to be protected"):
            charge(ledger, Mechanism(1e3, 1.0, 1, unit="image"))
        with pytest.raises(InvalidValue, match="one patient has to be protected"):
            charge(ledger, ROUND, alone=Mechanism(1e3, 1.0, 1, unit="image"))
        charge(ledger, Mechanism(40.0, 1.0, 1, unit="site"))
        assert ledger.spent() == epsilon([Mechanism(20.0, 1.0, 1)], 1e-5)
    with Ledger(tmp_path / "patient.jsonl") as ledger:
        assert ledger.spent() == epsilon([Mechanism(20.0, 1.0, 1)], 1e-5)
        assert ledger.state.spent() == ledger.state.spent_alone() == ledger.spent()


def test_releases_without_noise_need_an_infinite_budget(tmp_path: Path) -> None:
    with Ledger(tmp_path / "strict.jsonl", BUDGET) as ledger:
        with pytest.raises(BudgetExceeded, match="epsilon inf is requested"):
            charge(ledger, Mechanism(0.0, 1.0, 1), trust="none")
        with pytest.raises(BudgetExceeded, match="epsilon inf is requested"):
            charge(ledger, ROUND, trust="none")
        with pytest.raises(BudgetExceeded):
            charge(ledger, Mechanism(0.0, 1.0, 1), trust="server")
        ledger.admit(WHOLE)
        charge(ledger)
        with pytest.raises(BudgetExceeded, match="epsilon inf is requested"):
            charge(ledger, ROUND, trust="none")
    baseline = Budget(math.inf, 1e-5)
    with Ledger(tmp_path / "baseline.jsonl", baseline) as ledger:
        charge(ledger, Mechanism(0.0, 1.0, 1), trust="none")
        assert ledger.spent() == math.inf
    with Ledger(tmp_path / "baseline.jsonl", baseline) as ledger:
        assert ledger.budget == baseline


def test_admission_prices_a_sampled_study_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = calibrate(Guarantee(1.0, 1e-5, "patient", "server"), steps=30, sampling_rate=0.2)
    priced = []
    original = accounting.loss_epsilon
    monkeypatch.setattr(accounting, "loss_epsilon", lambda *of: priced.append(of) or original(*of))
    accounting._price.cache_clear()
    with Ledger(tmp_path / "site.jsonl", BUDGET) as ledger:
        with pytest.raises(BudgetExceeded):
            ledger.admit(whole.with_steps(31))
        ledger.admit(whole)
        count = len(priced)
        for number in range(30):
            charge(ledger, whole.with_steps(1), trust="server", round=number)
        assert len(priced) == count
        with pytest.raises(BudgetExceeded):
            charge(ledger, whole.with_steps(1), trust="server")
        assert ledger.spent() <= 1.0
        assert ledger.epsilon_if(whole.with_steps(1)) > 1.0


def test_admission_of_one_mechanism_is_no_admission_of_another(tmp_path: Path) -> None:
    with Ledger(tmp_path / "site.jsonl", BUDGET) as ledger:
        ledger.admit(WHOLE)
        with pytest.raises(BudgetExceeded):
            charge(ledger, Mechanism(ROUND.noise_multiplier * 0.1, 1.0, 1))
        charge(ledger, WHOLE.with_steps(39))
        charge(ledger, Mechanism(ROUND.noise_multiplier * 1.01, 1.0, 1))
        with pytest.raises(BudgetExceeded):
            charge(ledger)


def test_later_studies_that_sample_are_priced_as_adaptively_chosen(tmp_path: Path) -> None:
    first, second = Mechanism(3.0, 1.0, 10, 0.1), Mechanism(4.0, 1.0, 10, 0.2)
    with Ledger(tmp_path / "site.jsonl", Budget(8.0, 1e-5)) as ledger:
        charge(ledger, first, study="a")
        assert ledger.spent() == epsilon([first], 1e-5)
        assert ledger.state.delta == 1e-5
        assert ledger.epsilon_if(second) == epsilon([first, second], 1e-5, adaptive=True)
        charge(ledger, second, study="a")
        assert ledger.state.delta == 1e-5, "one study is fixed beforehand"
    with Ledger(tmp_path / "other.jsonl", Budget(8.0, 1e-5)) as ledger:
        charge(ledger, first, study="a")
        charge(ledger, second, study="b")
        assert ledger.spent() == epsilon([first, second], 1e-5, adaptive=True)
        assert ledger.state.delta == 2e-5, "with and without a mixture: each has the budget's"
    with Ledger(tmp_path / "third.jsonl", Budget(8.0, 1e-5)) as ledger:
        charge(ledger, first, study="a")
        charge(ledger, first, study="b")
        assert ledger.state.delta == 2e-5, "whether the second would differ was not settled beforehand"


def test_calibration_beside_a_ledger_fits_to_the_last_step(tmp_path: Path) -> None:
    with Ledger(tmp_path / "site.jsonl", Budget(2.0, 1e-5)) as ledger:
        for study, target in (("a", 0.7), ("b", 1.3), ("c", 2.0)):
            spent = [one.mechanism for one in ledger.state.charges]
            mechanism = calibrate(Guarantee(target, 1e-5, "patient", "site"), steps=7, spent=spent)
            for number in range(7):
                charge(ledger, mechanism.with_steps(1), study=study, round=number)
            assert target - 1e-6 < ledger.spent() <= target


@pytest.mark.parametrize(
    "change",
    [{"study": ""}, {"study": "x" * 201}, {"round": -1}, {"round": True}, {"trust": "me"}, {"label": 3}],
)
def test_charges_that_say_nothing_sensible_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with Ledger(tmp_path / "site.jsonl", BUDGET) as ledger:
        with pytest.raises(InvalidValue):
            charge(ledger, **change)
        assert not ledger.state.charges


@pytest.mark.parametrize("values", [(0.0, 1e-5), (-1.0, 1e-5), (1.0, 0.0), (1.0, 1.0), (math.nan, 1e-5)])
def test_impossible_budgets_are_refused(values: tuple[float, float]) -> None:
    with pytest.raises(InvalidValue):
        Budget(*values)
