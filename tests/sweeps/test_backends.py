"""A sweep on backends of joblib measures what it measures here."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from fedveil.errors import InvalidValue, StudyError
from fedveil.study.prepare import prepare
from fedveil.sweeps import NO_PRIVACY, Grid, read_measurements, sweep
from fedveil.sweeps.backends import reach

SWEEP = """
import json, sys
from pathlib import Path
from fedveil.study import Study
from fedveil.sweeps import Grid, sweep

def main():
    folder, backend, study, lists = sys.argv[1:]
    values = {name: tuple(value) for name, value in json.loads(lists).items()}
    chosen = Grid(**values | {"epsilon": (5.0, float("inf"))})
    if backend == "dask":
        from distributed import Client, LocalCluster
        options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
        with LocalCluster(**options) as cluster, Client(cluster, set_as_default=False):
            sweep(Path(folder), Study.parse(study), chosen, backend=f"dask:{cluster.scheduler_address}")
    else:
        sweep(Path(folder), Study.parse(study), chosen, backend=backend, workers=2)

if __name__ == "__main__":
    main()
"""
LISTS = {"trust": ("server",), "unit": ("patient",), "sites": (3,), "alpha": (math.inf,)}


@pytest.mark.parametrize("backend", ["loky", "dask"])
def test_a_cluster_measures_what_this_process_does(study, tmp_path, backend):
    """Without noise to the last digit; every setting is in the results file, with its cost."""
    base = study()
    here = sweep(tmp_path / "here", base, Grid(**LISTS | {"epsilon": (NO_PRIVACY,)}), workers=1)
    script = tmp_path / "script.py"
    script.write_text(SWEEP)
    command = [sys.executable, str(script), str(tmp_path / "there"), backend, base.to_toml()]
    subprocess.run([*command, json.dumps(LISTS)], check=True, cwd=tmp_path)
    there = read_measurements(tmp_path / "there")
    assert {one.setting.epsilon for one in there} == {5.0, math.inf}
    (bare,) = [one for one in there if one.setting.trust == "none"]
    assert replace(bare, seconds=0.0) == replace(here[0], seconds=0.0)
    (private,) = [one for one in there if one.setting.trust != "none"]
    assert private.epsilon_spent == pytest.approx(5.0, rel=1e-3)


def test_a_backend_that_joblib_does_not_know_is_named():
    with pytest.raises(InvalidValue, match=r"'nowhere'.*registered with joblib"):
        reach("nowhere")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"backend": "nowhere"}, "registered with joblib"),
        ({"backend": "loky:x"}, "only dask has an address"),
        ({"backend": "dask:"}, "only dask has an address"),
        ({"workers": -5}, "at least 1"),
        ({"workers": 0}, "at least 1"),
    ],
)
def test_a_sweep_that_cannot_run_begins_nothing(study, tmp_path, chosen, said):
    with pytest.raises(InvalidValue, match=said):
        sweep(tmp_path / "out", study(), Grid(**LISTS | {"epsilon": (5.0,)}), **chosen)
    assert not (tmp_path / "out").exists()


def test_what_joblib_says_is_one_line():
    """Without an address and a client, Dask's backend is explained on several lines."""
    with pytest.raises(InvalidValue, match="joblib cannot use it") as caught:
        reach("dask")
    assert "\n" not in str(caught.value)
    assert "  " not in str(caught.value)


def test_images_in_memory_are_not_sent_to_a_backend(study, tmp_path):
    base = study()
    data = prepare(base).dataset
    with pytest.raises(StudyError, match="in memory"):
        sweep(tmp_path / "out", base, Grid(**LISTS | {"epsilon": (5.0,)}), dataset=data, backend="loky")
