"""The law of accuracy against privacy: found again, held to where it was not fitted, and kept."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtr
from tests.planning.laws import AVERAGING, CNN, GRADIENT, ONE_SHOT, TASK, TUNED

from fedveil.errors import InvalidValue, StudyError
from fedveil.planning import Reference, references
from fedveil.study import METRICS
from fedveil.sweeps import NO_PRIVACY, Grid, Measurement


def measured(setting, patients, ratio, auroc):
    return Measurement(
        setting=setting,
        units=patients,
        patients=patients,
        ratio=ratio,
        epsilon_spent=setting.epsilon,
        true_positive_rate=0.02,
        advantage=0.1,
        auroc=auroc,
        balanced_accuracy=auroc,
        seconds=1.0,
    )


@pytest.fixture
def runs():
    """Runs that follow the law with p = 2, and noise of 0.05 on the scale of the score."""
    generator = np.random.default_rng(1)
    lists = {"trust": ("server",), "unit": ("patient",), "sites": (5,), "alpha": (1.0,)}
    grid = Grid(epsilon=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0, NO_PRIVACY), patients=(100, 300, 1000, 3000), **lists)
    found = []
    for setting in grid.settings():
        ratio = 0.25 * setting.patients * setting.epsilon
        lost = 1 + 30 / setting.patients + (60 / ratio) ** 2
        score = 2.5 / math.sqrt(2 * lost) + 0.05 * generator.normal()
        found.append(measured(setting, setting.patients, ratio, float(ndtr(score))))
    return found


def test_the_law_is_found_again(runs):
    fitted = Reference.fit("task", runs)
    errors = [abs(fitted.expected(m.patients, m.ratio) - m.auroc) for m in runs]
    assert np.mean(errors) < 0.015
    assert fitted.separation == pytest.approx(2.5, rel=0.1)
    assert fitted.spread == pytest.approx(0.05, rel=0.5)
    assert fitted.scatter < 0.15
    assert fitted.runs == len(runs)
    assert fitted.ratios == (0.25 * 100 * 0.25, 0.25 * 3000 * 8)


def test_the_law_holds_on_settings_it_was_not_fitted_on(runs):
    fitted = Reference.fit("task", runs[::2])
    rest = runs[1::2]
    assert np.mean([abs(fitted.expected(m.patients, m.ratio) - m.auroc) for m in rest]) <= 0.015
    inside = [low <= m.auroc <= high for m in rest for low, high in [fitted.interval(m.patients, m.ratio)]]
    assert np.mean(inside) >= 0.8


def test_chance_decides_where_noise_is_all_there_is(runs):
    """Runs at small nu that scatter by 0.4 widen the interval there and nowhere else."""
    generator = np.random.default_rng(2)
    wild = [replace(m, auroc=float(ndtr(0.4 * generator.normal()))) if m.ratio < 20 else m for m in runs * 3]
    fitted = Reference.fit("task", wild)
    low, high = fitted.interval(100, 2.0)
    assert high - low > 0.3
    low, high = fitted.interval(3000, 3000.0)
    assert high - low < 0.05


def test_the_law_predicts_the_mean_over_runs_where_chance_decides():
    """Separations scatter normally around d, so AUROC has the mean Phi(d / sqrt(2 (1 + s^2)))."""
    wide = replace(TASK, scatter=1.5)
    generator = np.random.default_rng(5)
    for ratio in (40.0, 120.0):
        score = 2.8 / math.sqrt(2 * (1 + 40 / 1000 + (80 / ratio) ** 1.5))
        s = math.sqrt(0.05**2 + 1.5**2 / (1 + (ratio / 80) ** 2))
        mean = ndtr(score + s * generator.standard_normal(200_000)).mean()
        assert wide.expected(1000, ratio) == pytest.approx(mean, abs=0.003)


def test_each_method_has_a_law_of_its_own(runs):
    once = [
        replace(m, setting=replace(m.setting, method="one-shot"), auroc=0.5 + (m.auroc - 0.5) / 2)
        for m in runs
    ]
    found = Reference.fit_each("task", runs + once)
    assert set(found) == {GRADIENT, ONE_SHOT}
    assert found[GRADIENT]["auroc"] == Reference.fit("task", runs)
    assert found[ONE_SHOT]["auroc"].expected(1000, 500) < found[GRADIENT]["auroc"].expected(1000, 500)
    with pytest.raises(InvalidValue, match="by one method"):
        Reference.fit("task", runs + once)


def test_too_few_runs_are_refused(runs):
    with pytest.raises(InvalidValue, match="8 or more"):
        Reference.fit("task", runs[:7])


def test_more_noise_or_fewer_patients_never_help():
    grid = [TASK.expected(1000, ratio) for ratio in (1, 10, 100, 1000, math.inf)]
    assert grid == sorted(grid)
    assert grid[0] < 0.53
    sizes = [TASK.expected(size, math.inf) for size in (10, 100, 1000)]
    assert sizes == sorted(sizes)
    low, high = TASK.interval(1000, 100)
    assert low < TASK.expected(1000, 100) < high


def test_shipped_references_survive_json(tmp_path):
    known = references()
    for name in ("chest-x-rays", "breast-ultrasound", "phantom"):
        assert set(known[name]) >= {GRADIENT, ONE_SHOT}
        assert all(set(by) == set(METRICS) for by in known[name].values())
    assert {CNN, AVERAGING, TUNED} <= set(known["chest-x-rays"])
    plain = {
        name: [law.to_dict() for both in by.values() for law in both.values()] for name, by in known.items()
    }
    text = json.dumps({"references": plain})
    (tmp_path / "mine.json").write_text(text)
    assert references(tmp_path / "mine.json") == known
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(StudyError):
        references(tmp_path / "mine.json")
