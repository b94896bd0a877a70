"""Sweeps over data that names real hospitals: what is paid bounds everything that was released."""

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm
from tests.study.stopping import Stop

from fedveil.errors import LedgerError, StudyError
from fedveil.privacy import verify_ledger
from fedveil.study import RunDirectory
from fedveil.sweeps import NAMED, NO_PRIVACY, Grid, read_measurements, read_payment, sweep

DELTA = 1e-3


@pytest.fixture
def named(study, tmp_path):
    """The small study where the data itself names three hospitals."""
    arrays = dict(np.load(study().data.source))
    path = tmp_path / "named.npz"
    np.savez(path, **arrays, site=arrays["patient"] % 3, site_names=np.array(["a", "b", "c"]))
    return study(data={"source": str(path)})


def grid(**changes):
    lists = {
        "epsilon": (2.0, 5.0),
        "trust": ("site",),
        "unit": ("patient",),
        "sites": (5,),
        "alpha": (0.5,),
    }
    return Grid(**(lists | changes))


def composed(path):
    """Epsilon of a ledger's lines by the exact privacy curve of one Gaussian mechanism, worked out here."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    charges = [line["mechanism"] for line in lines if line["kind"] == "charge"]
    mu = math.sqrt(sum(one["steps"] / one["noise_multiplier"] ** 2 for one in charges))

    def excess(epsilon):
        inside = norm.cdf(mu / 2 - epsilon / mu), math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
        return inside[0] - inside[1] - DELTA

    return brentq(excess, 1e-6, 100)


def price(study, out, wanted):
    with pytest.raises(StudyError) as caught:
        sweep(out, study, wanted)
    assert not out.exists()
    return float(caught.value.remedy.split("--pay ")[1])


def test_the_number_that_is_asked_for_is_enough_and_hardly_more(named, tmp_path):
    """Models of one mu each compose to the root of the sum of their squares: repeats count."""
    wanted, out = grid(seeds=2), tmp_path / "out"
    need = price(named, out, wanted)
    with pytest.raises(StudyError, match=f"give --pay {need:g}"):
        sweep(out, named, wanted, pay=need - 0.02)
    assert not out.exists()
    results = sweep(out, named, wanted, pay=need)
    assert len(results) == 4
    assert {(one.setting.sites, one.setting.alpha) for one in results} == {(3, NAMED)}
    paid = read_payment(out)
    assert set(paid.spent) == {"a", "b", "c"}
    for name, spent in paid.spent.items():
        exact = composed(out / "ledgers" / f"{name}.jsonl")
        assert need - 0.02 < exact <= spent * (1 + 1e-9) <= paid.guarantee.epsilon == need
        assert len(verify_ledger(out / "ledgers" / f"{name}.jsonl").studies) == 4
    assert not list((out / "under-way").iterdir())


def test_the_guarantee_is_that_of_the_weakest_trust(named, tmp_path):
    trusts = ("site", "secure-aggregation", "server")
    for count, trust in enumerate(trusts, 1):
        sweep(tmp_path / trust, named, grid(epsilon=(2.0,), trust=trusts[:count]), pay=20)
        assert read_payment(tmp_path / trust).guarantee.trust == trust


def test_a_sweep_on_simulated_hospitals_has_nothing_to_pay(study, tmp_path):
    with pytest.raises(StudyError, match="simulated hospitals have no budget"):
        sweep(tmp_path / "out", study(), grid(), pay=20)
    sweep(tmp_path / "free", study(), grid(), workers=1)
    assert read_payment(tmp_path / "free") is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"epsilon": (2.0, NO_PRIVACY)}, "drop epsilon none"),
        ({"trust": ("none",)}, "drop epsilon none"),
        ({"baselines": True}, "drop --baselines"),
        ({"patients": (30, None)}, "drop --patients"),
        ({"sites": (4,)}, "there are 3"),
        ({"alpha": (0.3,)}, "drop --alpha"),
        ({"unit": ("patient", "image")}, "one unit"),
    ],
)
def test_what_no_ledger_can_pay_for_is_refused(named, tmp_path, changes, word):
    with pytest.raises(StudyError, match=word):
        sweep(tmp_path / "out", named, grid(**changes), pay=100)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pay", [0.0, -1.0, math.inf, math.nan])
def test_only_a_number_pays(named, tmp_path, pay):
    with pytest.raises(StudyError, match="positive number"):
        sweep(tmp_path / "out", named, grid(), pay=pay)


def test_several_processes_cannot_charge_one_ledger(named, tmp_path):
    with pytest.raises(StudyError, match="drop --workers"):
        sweep(tmp_path / "out", named, grid(), pay=100, workers=2)
    with pytest.raises(StudyError, match="drop --workers and --backend"):
        sweep(tmp_path / "out", named, grid(), pay=100, backend="loky")


def test_a_sweep_that_grows_pays_for_what_it_has_released_too(named, tmp_path):
    out = tmp_path / "out"
    sweep(out, named, grid(), pay=20)
    before = {name: (out / "ledgers" / f"{name}.jsonl").read_text() for name in "abc"}
    with pytest.raises(StudyError, match="epsilon 20 was declared"):
        sweep(out, named, grid(epsilon=(19.9,)), resume=True)
    assert {name: (out / "ledgers" / f"{name}.jsonl").read_text() for name in "abc"} == before
    sweep(out, named, grid(epsilon=(19.9,)), resume=True, pay=40)
    paid = read_payment(out)
    assert paid.guarantee.epsilon == 40
    assert all(
        composed(out / "ledgers" / f"{name}.jsonl") <= spent <= 40 for name, spent in paid.spent.items()
    )
    with pytest.raises(StudyError, match="protect per patient"):
        sweep(out, named, grid(unit=("image",)), resume=True, pay=100)


def test_ledgers_that_are_gone_are_not_begun_anew(named, tmp_path):
    out = tmp_path / "out"
    sweep(out, named, grid(epsilon=(2.0,)), pay=20)
    shutil.rmtree(out / "ledgers")
    with pytest.raises(LedgerError, match="does not exist"):
        sweep(out, named, grid(), resume=True, pay=20)


CHILD = """
import sys
from pathlib import Path
from fedveil.study import Study
from fedveil.sweeps import Grid, sweep

if __name__ == "__main__":
    lists = dict(epsilon=(2.0, 5.0), trust=("site",), unit=("patient",), sites=(5,), alpha=(0.5,))
    sweep(Path(sys.argv[1]), Study.load(Path(sys.argv[2])), Grid(**lists, seeds=4), pay=float(sys.argv[3]))
"""


def killed(study, tmp_path, charges, pay):
    """A sweep of eight settings that was killed after so many charges of the first hospital."""
    (tmp_path / "study.toml").write_text(study.to_toml())
    (tmp_path / "child.py").write_text(CHILD)
    out, ledger = tmp_path / "out", tmp_path / "out" / "ledgers" / "a.jsonl"
    command = [sys.executable, str(tmp_path / "child.py"), str(out), str(tmp_path / "study.toml"), f"{pay}"]
    child = subprocess.Popen(command, env=os.environ)
    deadline = time.monotonic() + 120
    while not (ledger.exists() and len(ledger.read_text().splitlines()) > charges):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    return out


def test_killed_and_resumed_it_costs_no_more_than_was_paid(named, tmp_path):
    study, wanted = named.with_changes({"training": {"rounds": 40}}), grid(seeds=4)
    need = price(study, tmp_path / "out", wanted)
    out = killed(study, tmp_path, 100, need)
    finished = read_measurements(out)
    assert 1 <= len(finished) < 8
    results = sweep(out, study, wanted, resume=True)
    assert len(results) == 8
    assert set(finished) <= set(results)
    paid = read_payment(out)
    for name, spent in paid.spent.items():
        assert (
            composed(out / "ledgers" / f"{name}.jsonl")
            <= spent * (1 + 1e-9)
            <= need
            == paid.guarantee.epsilon
        )


def test_a_setting_that_cannot_go_on_begins_anew_and_pays_again(named, tmp_path, monkeypatch):
    """Its checkpoint is gone; what it was charged is not."""
    study, wanted, out = named.with_changes({"training": {"rounds": 20}}), grid(seeds=4), tmp_path / "out"
    need = price(study, out, wanted)
    with monkeypatch.context() as patch:
        rounds = itertools.count(1)

        def append(_self, _record):
            if next(rounds) == 50:
                raise Stop

        patch.setattr(RunDirectory, "append_round", append)
        with pytest.raises(Stop):
            sweep(out, study, wanted, pay=need)
    finished = read_measurements(out)
    assert len(finished) == 2
    for folder in (out / "under-way").iterdir():
        shutil.rmtree(folder)
    with pytest.raises(StudyError, match=r"finished and stored.*--resume and a larger --pay"):
        sweep(out, study, wanted, resume=True)
    assert set(finished) <= set(read_measurements(out))
    results = sweep(out, study, wanted, resume=True, pay=2 * need)
    assert len(results) == 8
    paid = read_payment(out)
    assert max(paid.spent.values()) > need
    for name, spent in paid.spent.items():
        assert composed(out / "ledgers" / f"{name}.jsonl") <= spent * (1 + 1e-9) <= paid.guarantee.epsilon
    assert any("attempt 2" in title for title in verify_ledger(out / "ledgers" / "a.jsonl").studies)


def test_without_payment_the_price_is_named(named, tmp_path):
    with pytest.raises(StudyError, match="an unbounded epsilon"):
        sweep(tmp_path / "out", named, grid(epsilon=(2.0, NO_PRIVACY)))
    with pytest.raises(StudyError, match=r"3 real hospitals.*epsilon 5\.\d+ per patient.*2 models") as caught:
        sweep(tmp_path / "out", named, grid())
    assert "phantom" in str(caught.value)
    assert not (tmp_path / "out").exists()
