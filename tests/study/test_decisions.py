"""Decisions where noise is large: drowned releases are not made, results warn, intervals hold the noise of training."""

import numpy as np
import pytest

from fedveil.federation.queries import CalibrationQuery
from fedveil.learning import Adam, Averaged, FindingsHead, Sgd
from fedveil.study import RunDirectory, run
from fedveil.study.calibrate import make_agreement
from fedveil.study.pipeline import sizes_of
from fedveil.study.results.training_noise import coefficients


def names_of(agreement):
    return [release.name for release in agreement.releases]


def test_a_release_known_to_drown_gives_its_share_to_training(study):
    sites = ("a", "b", "c", "d", "e")

    def agreement(units):
        one = study(training={"rounds": 6, "units": units}, privacy={"epsilon": 0.2, "delta": 1e-5})
        return make_agreement(one, sites=sites, model=sizes_of(one, 2, 1))

    few, many, unknown = agreement(60), agreement(60_000), agreement(None)
    assert "calibration" not in names_of(few)
    assert "calibration" in names_of(many)
    assert "calibration" in names_of(unknown)
    assert few.main.mechanism.noise_multiplier < 0.99 * many.main.mechanism.noise_multiplier
    assert few.holds
    assert few.digest == agreement(60).digest


def test_findings_share_what_is_released_so_more_of_them_drown():
    """The same units and noise: one finding's threshold is worth its share, one of forty is not."""
    groups, variance = np.array([[300.0, 200.0]]), 30.0**2
    for count, expected in ((1, False), (40, True)):
        head = FindingsHead((5,), count)
        released = CalibrationQuery().drowned(head, variance, np.repeat(groups, count, axis=0))
        assert released == expected
    common = np.repeat([[300.0, 200.0]], 40, axis=0) * 40
    common[1:] = 1.0
    assert not CalibrationQuery().drowned(FindingsHead((5,), 40), variance, common), "one is worth it"


def test_a_release_that_released_counts_show_to_drown_is_not_charged(study, tmp_path):
    directory = RunDirectory.create(
        tmp_path / "run",
        study(
            privacy={"epsilon": 0.3, "delta": 1e-5, "statistics_share": 0.4, "calibration_share": 0.002},
            data={"sites": {"count": 3}},
        ),
    )
    result = run(directory)
    ledgers = "".join(path.read_text() for path in (tmp_path / "run" / "ledgers").glob("*.jsonl"))
    assert "statistics" in ledgers
    assert "calibration" not in ledgers
    assert result["guarantee"]["epsilon"] < 0.3
    notes = " ".join(result["notes"])
    assert "The calibration release was not made" in notes
    assert "it learns mostly noise" in notes
    assert result["decision"]["signal_to_noise"] < 1000


def test_a_result_says_how_sure_its_decisions_are_and_how_noise_widens_intervals(study, tmp_path):
    result = run(RunDirectory.create(tmp_path / "run", study()))
    decision, test = result["decision"], result["metrics"]["test"]
    assert 0 < decision["weight"] <= 1
    assert decision["signal_to_noise"] > 120
    assert not any("learns mostly noise" in note for note in result["notes"])
    assert test["auroc_noise"] >= 0
    assert 0 <= test["brier"] <= 1
    assert 0 <= test["calibration_error"] <= 1
    low, high = test["auroc_interval"]
    assert low <= test["auroc"] <= high


@pytest.mark.parametrize(
    "rule",
    [
        Sgd(learning_rate=0.5),
        Sgd(learning_rate=0.5, momentum=0.9, weight_decay=0.01),
        Averaged(optimizer=Sgd(learning_rate=0.2, momentum=0.5), decay=0.9),
        Averaged(optimizer=Sgd(learning_rate=0.2), skip=4),
    ],
)
def test_the_noise_of_released_parameters_is_that_of_the_rule(rule):
    """Against the rule itself, run on pure noise in many coordinates."""
    generator, rounds = np.random.default_rng(0), 12
    state = rule.init(np.zeros(20_000))
    for _ in range(rounds):
        state = rule.step(state, 3.0 * generator.standard_normal(20_000))
    found = coefficients(rule, rounds)
    assert np.std(rule.released(state)) == pytest.approx(3.0 * np.linalg.norm(found), rel=0.03)


def test_the_noise_of_adam_is_not_known():
    assert coefficients(Adam(learning_rate=0.1), 5) is None
