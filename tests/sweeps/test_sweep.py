import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.optimize import brentq
from scipy.stats import norm
from tests.study.conftest import write_images

from fedveil.errors import InvalidValue, StudyError
from fedveil.study import Study, run
from fedveil.study.results.run_directory import RunDirectory
from fedveil.sweeps import NO_PRIVACY, Grid, Measurement, Setting, read_measurements, sweep
from fedveil.sweeps.grid import EVEN
from fedveil.sweeps.run import table


def grid(**changes):
    lists = {
        "epsilon": (5.0, NO_PRIVACY),
        "trust": ("site", "server"),
        "unit": ("patient",),
        "sites": (3,),
        "alpha": (EVEN,),
    }
    return Grid(**(lists | changes))


def test_the_grid_is_the_product_without_duplicates():
    settings = grid(trust=("site", "secure-aggregation", "server"), sites=(3, 5), seeds=2).settings()
    assert len(settings) == len(set(settings)) == (3 + 1) * 2 * 2
    bare = [one for one in settings if math.isinf(one.epsilon)]
    assert {one.trust for one in bare} == {"none"}
    assert len(bare) == 4


def test_trust_none_is_the_same_as_epsilon_none():
    assert grid(trust=("none",)).settings() == grid(epsilon=(NO_PRIVACY,), trust=("site",)).settings()


def test_a_method_that_is_swept_has_its_own_defaults_for_a_network():
    """A network's gradients are averaged as a study that says so would average them, whatever was resolved before."""
    base = Study.parse(Study.parse('model.network = "cnn"\ntraining.units = 2000').to_toml())
    setting = grid().settings()[0]
    swept = replace(setting, method="averaging").study(base)
    own = Study.parse('model.network = "cnn"\ntraining.method = "averaging"\ntraining.units = 2000')
    assert swept.training == own.training
    assert swept.privacy.calibration_share == own.privacy.calibration_share
    whole = replace(setting, method="averaging", unit="site").study(base)
    assert whole.training.local_learning_rate == 0.2
    kept = Study.parse('model.network = "cnn"\ntraining.rounds = 7')
    assert setting.study(kept).training == kept.training


def test_fewer_patients_than_a_study_states_are_stated_as_what_they_are():
    """Local steps are divided by the stated number, which would shorten them where few patients are drawn."""
    base = Study.parse("training.units = 2000")
    for patients, stated in ((None, 2000), (300, 300), (5000, 2000)):
        assert replace(grid().settings()[0], patients=patients).study(base).training.units == stated


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": ()},
        {"epsilon": (0.0,)},
        {"alpha": (-1.0,)},
        {"seeds": 0},
        {"trust": ("secure-aggregation",), "sites": (2,)},
    ],
)
def test_an_impossible_grid_is_refused(changes):
    with pytest.raises(InvalidValue):
        grid(**changes)


def test_a_setting_survives_json():
    for setting in grid(alpha=(EVEN, 0.5), patients=(None, 40)).settings():
        assert Setting.from_dict(json.loads(json.dumps(setting.to_dict()))) == setting


def test_a_setting_changes_the_study_and_nothing_else(study):
    base = study(federation={"min_sites": 4})
    changed = Setting(epsilon=2.0, trust="site", unit="image", sites=3, alpha=0.3).study(base)
    assert (changed.privacy.epsilon, changed.privacy.trust, changed.privacy.unit) == (2.0, "site", "image")
    assert (changed.data.sites.count, changed.data.sites.alpha) == (3, 0.3)
    assert changed.federation.min_sites is None
    assert changed.training == base.training
    assert changed.model == base.model


def test_a_sweep_measures_every_setting(study, tmp_path):
    wanted = grid(epsilon=(5.0, 20.0, NO_PRIVACY), unit=("patient", "image"))
    results = sweep(tmp_path / "out", study(), wanted, workers=1)
    assert [one.setting for one in results] == wanted.settings()
    assert set(read_measurements(tmp_path / "out")) == set(results)
    for one in results:
        assert one.patients == 112
        assert one.units == (224 if one.setting.unit == "image" else 112)
        private = one.setting.trust != "none"
        assert math.isfinite(one.ratio) == private
        if private:
            assert one.epsilon_spent == pytest.approx(one.setting.epsilon, rel=1e-3)
            assert one.epsilon_spent <= one.setting.epsilon
            assert 0.01 < one.true_positive_rate < 1
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "results.csv").read_text())))
    assert [row["epsilon"] for row in rows] == [
        "none" if math.isinf(one.setting.epsilon) else str(one.setting.epsilon) for one in results
    ]
    assert [float(row["auroc"]) for row in rows] == [one.auroc for one in results]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("own", ["gradient", "one-shot"])
def test_without_noise_a_setting_equals_the_run_of_its_study(study, tmp_path, own, workers):
    """The sweep trains what `fedveil run` trains: without noise, to the last digit, whatever the study's own method."""
    hard = {"source": str(write_images(tmp_path / "hard.npz", contrast=4))}
    base = study(privacy={"trust": "none"}, training={"method": own}, data=hard)
    lists = {"epsilon": (NO_PRIVACY,), "sites": (5,), "method": ("gradient", "one-shot")}
    results = sweep(tmp_path / "sweep", base, grid(**lists), workers=workers)
    for measured in results:
        method = measured.setting.method
        setting = study(
            privacy={"trust": "none"}, training={"method": method}, data=hard | {"sites": {"scheme": "iid"}}
        )
        result = run(RunDirectory.create(tmp_path / method, setting))
        assert measured.auroc == result["metrics"]["test"]["auroc"]
        assert measured.balanced_accuracy == result["metrics"]["test"]["balanced_accuracy"]
    assert results[0].auroc != results[1].auroc


def test_the_ratio_is_units_times_mu_over_the_factor_of_trust(study, tmp_path):
    """nu = N mu / f, with f^2 = n for trust site and 1 for a trusted server."""
    results = sweep(tmp_path / "out", study(), grid(epsilon=(5.0,), sites=(4,)), workers=1)
    ratios = {one.setting.trust: one.ratio for one in results}
    assert ratios["server"] / ratios["site"] == pytest.approx(2.0, rel=1e-6)


def test_the_risk_is_that_of_the_releases_not_of_epsilon_alone(study, tmp_path):
    """Together they are one Gaussian mechanism: TPR = Phi(Phi^-1(0.01) + mu), mu from its exact privacy curve."""
    one = sweep(tmp_path / "out", study(), grid(epsilon=(5.0,), trust=("server",)), workers=1)[0]

    def delta(mu):
        return norm.cdf(mu / 2 - 5 / mu) - math.exp(5) * norm.cdf(-mu / 2 - 5 / mu)

    mu = brentq(lambda value: delta(value) - 1e-3, 0.1, 10)
    assert one.true_positive_rate == pytest.approx(norm.cdf(norm.ppf(0.01) + mu), rel=1e-4)


def test_fewer_patients_are_a_subset_and_change_with_the_seed(study, tmp_path):
    results = sweep(tmp_path / "out", study(), grid(epsilon=(5.0,), patients=(30, None), seeds=2), workers=1)
    assert {one.setting.patients: one.patients for one in results} == {30: 30, None: 112}


def test_a_sweep_goes_on_where_it_stopped(study, tmp_path):
    out = tmp_path / "out"
    first = sweep(out, study(), grid(), workers=1)
    with pytest.raises(StudyError, match="--resume"):
        sweep(out, study(), grid(), workers=1)
    with (out / "results.jsonl").open("a") as file:
        file.write('{"setting": {"eps')
    again = sweep(out, study(), grid(sites=(3, 4)), resume=True, workers=1)
    assert [one for one in again if one.setting.sites == 3] == first
    assert len(read_measurements(out)) == len(again) == 6


def test_a_resumed_sweep_keeps_its_study(study, tmp_path):
    sweep(tmp_path / "out", study(), grid(epsilon=(NO_PRIVACY,)), workers=1)
    with pytest.raises(StudyError, match="another study"):
        sweep(tmp_path / "out", study(training={"rounds": 7}), grid(), resume=True, workers=1)
    with pytest.raises(StudyError, match="holds no sweep"):
        sweep(tmp_path / "nothing", study(), grid(), resume=True, workers=1)


CHILD = """
import sys
from pathlib import Path
from fedveil.study import Study
from fedveil.sweeps import Grid, sweep

if __name__ == "__main__":
    lists = dict(trust=("site",), unit=("patient",), sites=(3,), alpha=(1.0,))
    study = Study.load(Path(sys.argv[2]))
    sweep(Path(sys.argv[1]), study, Grid(epsilon=tuple(range(1, 25)), **lists), workers=2)
"""


def test_killed_at_any_moment_no_finished_setting_is_lost(study, tmp_path):
    """kill -9 while two workers are busy: what was finished stays, the workers end too, and the rest is done later."""
    settings = study(training={"rounds": 30})
    (tmp_path / "study.toml").write_text(settings.to_toml())
    (tmp_path / "child.py").write_text(CHILD)
    out = tmp_path / "out"
    command = [sys.executable, str(tmp_path / "child.py"), str(out), str(tmp_path / "study.toml")]
    child = subprocess.Popen(command, env=os.environ)
    deadline = time.monotonic() + 120
    while len(_lines(out)) < 3 and time.monotonic() < deadline:
        assert child.poll() is None
        time.sleep(0.01)
    workers = _children(child.pid)
    child.send_signal(signal.SIGKILL)
    child.wait()
    finished = read_measurements(out)
    assert 3 <= len(finished) < 24
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    wanted = grid(epsilon=tuple(range(1, 25)), trust=("site",), alpha=(1.0,))
    after = sweep(out, settings, wanted, resume=True, workers=1)
    assert len(after) == 24
    assert set(finished) <= set(after)


def _lines(out):
    path = out / "results.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def _children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def test_alternatives_are_measured_once_each():
    """Alone does not depend on trust, nor pooled on trust, hospitals or, without privacy, on chance."""
    lists = {"trust": ("site", "server"), "sites": (3, 5), "seeds": 2}
    settings = grid(epsilon=(5.0,), baselines=True, **lists).settings()
    assert len(settings) == len(set(settings))
    count = Counter((one.arrangement, one.trust) for one in settings)
    assert count == {
        ("federated", "site"): 4,
        ("federated", "server"): 4,
        ("federated", "none"): 4,
        ("pooled", "server"): 2,
        ("pooled", "none"): 1,
        ("alone", "site"): 4,
        ("alone", "none"): 4,
    }
    assert grid(epsilon=(5.0,), **lists).settings() == [
        one for one in settings if one.arrangement == "federated" and one.trust != "none"
    ]


def test_alternatives_are_those_of_a_run(study, tmp_path):
    """Without noise the sweep and the report of a run say the same of each, to the last digit but for order of sums."""
    hard = {"source": str(write_images(tmp_path / "hard.npz", contrast=4))}
    base = study(
        privacy={"trust": "none"},
        training={"method": "averaging", "units": 112, "local_steps": 20, "local_learning_rate": 20.0},
        data=hard | {"sites": {"count": 3}},
        report={"baselines": True},
    )
    lists = {"method": ("averaging",), "alpha": (0.5,)}
    wanted = grid(epsilon=(NO_PRIVACY,), baselines=True, **lists)
    swept = {m.setting.arrangement: m for m in sweep(tmp_path / "sweep", base, wanted, workers=1)}
    baselines = run(RunDirectory.create(tmp_path / "run", base))["baselines"]
    names = {"federated": "no_privacy", "pooled": "pooled_no_privacy", "alone": "alone_no_privacy"}
    for arrangement, name in names.items():
        assert swept[arrangement].auroc == pytest.approx(baselines[name]["auroc"], abs=1e-9)
    assert len({round(m.auroc, 4) for m in swept.values()}) == 3  # averaging: pooled is not the federation
    assert {m.patients for m in swept.values()} == {112}


def test_a_hospital_alone_has_the_guarantee_and_less_accuracy(study, tmp_path):
    hard = {"source": str(write_images(tmp_path / "hard.npz", contrast=8))}
    wanted = grid(epsilon=(2.0,), trust=("server",), sites=(8,), baselines=True)
    found = sweep(tmp_path / "out", study(data=hard), wanted, workers=1)
    private = {m.setting.arrangement: m for m in found if m.setting.trust != "none"}
    for one in private.values():
        assert one.epsilon_spent == pytest.approx(2.0, rel=1e-3)
    assert private["alone"].ratio == pytest.approx(private["federated"].ratio / 8, rel=1e-3)
    assert private["pooled"].ratio == pytest.approx(private["federated"].ratio, rel=1e-3)
    assert private["alone"].auroc < private["federated"].auroc


def test_older_results_are_those_of_federations(study, tmp_path):
    out = tmp_path / "out"
    first = sweep(out, study(), grid(), workers=1)
    older = [one.to_dict() for one in first]
    for one in older:
        del one["setting"]["arrangement"]
    (out / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in older))
    assert set(read_measurements(out)) == set(first)


def test_a_hospital_is_no_unit_beside_its_alternatives():
    with pytest.raises(InvalidValue, match="unit is site"):
        grid(unit=("patient", "site"), baselines=True)


def test_the_table_names_what_is_infinite():
    measurement = Measurement(
        setting=Setting(epsilon=NO_PRIVACY, trust="none", unit="patient", sites=3, alpha=EVEN),
        units=10,
        patients=10,
        ratio=math.inf,
        epsilon_spent=math.inf,
        true_positive_rate=1.0,
        advantage=1.0,
        auroc=0.9,
        balanced_accuracy=0.8,
        seconds=0.1,
    )
    row = next(csv.DictReader(io.StringIO(table([measurement]))))
    assert (row["epsilon"], row["alpha"], row["patients"]) == ("none", "iid", "all")
    assert Measurement.from_dict(json.loads(json.dumps(measurement.to_dict()))) == measurement
