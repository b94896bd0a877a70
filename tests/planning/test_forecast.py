import pytest

from fedveil.planning import make_plan, references
from fedveil.privacy import Guarantee, calibrate
from fedveil.study import Recipe


def test_a_plan_foretells_accuracy_from_patients_and_noise(study):
    plan = make_plan(study(privacy={"epsilon": 20.0, "trust": "server"}))
    patients = sum(plan.prepared.patients.values())
    privacy = plan.prepared.study.privacy
    mu = 1 / calibrate(Guarantee(20.0, 1e-3, "patient", "server"), steps=1).noise_multiplier
    ratio = patients * mu * (1 - privacy.statistics_share - privacy.calibration_share) ** 0.5
    assert plan.outlook.ratio == pytest.approx(ratio, rel=5e-3)
    assert plan.outlook.auroc == {
        name: pytest.approx(by[Recipe()]["auroc"].expected(patients, plan.outlook.ratio))
        for name, by in references().items()
    }
    assert plan.to_dict()["outlook"]["signal_to_noise"] == plan.outlook.ratio


def test_one_round_is_foretold_by_a_law_of_its_own(study):
    """It gets all of the budget, so its ratio is larger at the same epsilon."""
    rounds, once = (
        make_plan(study(privacy={"epsilon": 20.0}, training={"method": method})).outlook
        for method in ("gradient", "one-shot")
    )
    assert once.ratio == pytest.approx(rounds.ratio / 0.8**0.5, rel=5e-3)
    assert {law.method for law in once.laws} == {"one-shot"}
    assert set(once.auroc) == set(rounds.auroc)


def test_a_plan_warns_where_noise_drowns_the_classes(study):
    faint, loud = (make_plan(study(privacy={"epsilon": e})).to_dict()["notes"] for e in (1.0, 50.0))
    assert [note for note in faint if note.startswith("The signal-to-noise ratio of training is")]
    assert not [note for note in loud if "signal-to-noise" in note]


def test_a_plan_says_where_its_forecast_is_of_other_features(study):
    others = make_plan(study(privacy={"epsilon": 50.0})).outlook.notes
    default = make_plan(
        study(privacy={"epsilon": 50.0}, model={"features": "efficientnet-lite0"}, data={"image_size": 32})
    ).outlook.notes
    assert len(others) == 1
    assert "default features" in others[0]
    assert default == []


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy": {"trust": "none"}},
        {"privacy": {"unit": "site"}},
        {"training": {"method": "averaging", "units": 112}},
        {"model": {"network": "cnn", "features": "none"}, "training": {"rounds": 2}},
    ],
)
def test_nothing_is_foretold_where_nothing_is_known(study, changes):
    assert make_plan(study(**changes)).outlook is None
