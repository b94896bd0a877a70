"""A ledger under kills, full disks, interrupts, threads, rollbacks and edits."""

import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from tests.privacy.test_ledger import BUDGET, ROUND, WHOLE, charge

from fedveil.errors import BudgetExceeded, LedgerError
from fedveil.privacy import (
    Budget,
    Ledger,
    Mechanism,
    epsilon,
    read_ledger,
    verify_ledger,
)
from fedveil.privacy.ledger import chain as chain_module

CHILD = textwrap.dedent(
    """
    import sys
    from fedveil.privacy import Budget, Ledger, Mechanism
    with Ledger(sys.argv[1], Budget(1000.0, 1e-5)) as ledger:
        print(len(ledger.state.charges), flush=True)
        while True:
            charge = ledger.reserve(Mechanism(1e4, 1.0, 1), study="s", trust="site", round=1)
            print(charge.seq, flush=True)
    """
)


def test_ledger_survives_kill(tmp_path: Path) -> None:
    """Killed again and again while it charges: every acknowledged charge is there, and at most one more."""
    path = tmp_path / "site.jsonl"
    kept = 0
    for acknowledged_before_kill in (1, 7, 40):
        command = [sys.executable, "-c", CHILD, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert int(child.stdout.readline()) == kept
            for _ in range(acknowledged_before_kill):
                child.stdout.readline()
            child.send_signal(signal.SIGKILL)
            acknowledged = kept + acknowledged_before_kill + len(child.stdout.read().split())
        state = verify_ledger(path)
        assert acknowledged <= len(state.charges) <= acknowledged + 1
        assert [entry.seq for entry in state.charges] == list(range(1, len(state.charges) + 1))
        kept = len(state.charges)
    with Ledger(path) as ledger:
        assert ledger.spent() == epsilon([Mechanism(1e4, 1.0, kept)], 1e-5)


def test_another_process_is_kept_out(tmp_path: Path) -> None:
    path = tmp_path / "site.jsonl"
    with Ledger(path, Budget(1000.0, 1e-5)):
        command = [sys.executable, "-c", CHILD, str(path)]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"{path} is held by another process" in refused.stderr
    assert len(read_ledger(path)) == 0


def test_a_charge_is_on_the_disk_before_it_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []
    path = tmp_path / "site.jsonl"
    with Ledger(path, BUDGET) as ledger, monkeypatch.context() as patched:
        patched.setattr(chain_module, "_flush", lambda fd: flushed.append((fd, path.stat().st_size)))
        charge(ledger)
        size = path.stat().st_size
        assert [seen for _, seen in flushed] == [size]
        assert Path(f"/proc/self/fd/{flushed[0][0]}").resolve() == path


def test_a_failed_write_charges_nothing_and_a_later_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    with Ledger(tmp_path / "site.jsonl", BUDGET) as ledger:
        with monkeypatch.context() as patched:
            patched.setattr(chain_module, "_flush", fails)
            with pytest.raises(LedgerError, match="No space left on device"):
                charge(ledger)
        assert ledger.spent() == 0
        charge(ledger)
        assert ledger.spent() == epsilon([ROUND], 1e-5)


def test_an_interrupt_after_the_write_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with Ledger(tmp_path / "site.jsonl", BUDGET) as ledger:
        with monkeypatch.context() as patched:
            patched.setattr(chain_module, "_write_slot", interrupted)
            with pytest.raises(KeyboardInterrupt):
                charge(ledger)
        assert ledger.spent() == epsilon([ROUND], 1e-5)
        assert len(read_ledger(ledger.path)) == 1
        charge(ledger)
    assert len(read_ledger(tmp_path / "site.jsonl")) == 2


def test_threads_do_not_lose_charges_or_pass_the_budget(tmp_path: Path) -> None:
    refused = []

    def work(ledger: Ledger) -> None:
        for _ in range(15):
            try:
                charge(ledger)
            except BudgetExceeded:
                refused.append(1)

    with Ledger(tmp_path / "site.jsonl", BUDGET) as ledger:
        threads = [threading.Thread(target=work, args=(ledger,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == 20
        assert ledger.spent() == epsilon([WHOLE], 1e-5)
    assert len(read_ledger(tmp_path / "site.jsonl")) == 40


def test_receipts_reveal_a_rollback_of_both_files(tmp_path: Path) -> None:
    path = tmp_path / "site.jsonl"
    head_path = tmp_path / "site.jsonl.head"
    with Ledger(path, BUDGET) as ledger:
        charge(ledger)
        old = path.read_bytes(), head_path.read_bytes()
        charge(ledger)
        receipt = ledger.head
    verify_ledger(path, receipt)
    path.write_bytes(old[0])
    head_path.write_bytes(old[1])
    verify_ledger(path)
    with pytest.raises(LedgerError, match="a receipt names it"):
        verify_ledger(path, receipt)


def test_lines_of_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.jsonl"
    with chain_module.Chain(path, {"kind": "budget", "version": 2, "budget": BUDGET.to_dict()}):
        pass
    with pytest.raises(LedgerError, match="is neither a budget nor a charge"):
        Ledger(path)
    other = tmp_path / "other.jsonl"
    with Ledger(other, BUDGET):
        pass
    with chain_module.Chain(other) as chain:
        chain.append({"kind": "refund"})
    with pytest.raises(LedgerError, match="line 2"):
        read_ledger(other)
