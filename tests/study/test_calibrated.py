"""A study whose epsilon is calibrated: a pilot, then the level that the rule picks, charged as used."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from tests.study.stopping import Stop, StopAfter

from fedveil import report
from fedveil.errors import BudgetExceeded, FederationError, InvalidValue, StudyError
from fedveil.federation import Declined, Policy, Site
from fedveil.federation.levels.grid import SCALE
from fedveil.privacy import Budget, Ledger, operational_risk, verify_ledger
from fedveil.study import RunDirectory, Study, make_agreement, run
from fedveil.study.pipeline import make_task
from fedveil.study.prepare import prepare
from fedveil.study.progress import Silent
from fedveil.study.simulation import Simulated
from fedveil.study.training import train

CALIBRATED = {
    "epsilon": "calibrated",
    "max_epsilon": 16.0,
    "pilot_epsilon": 4.0,
    "delta": 1e-3,
    "tolerance": 0.45,
}
"""A tolerance that the cheapest level meets whatever the noise; `STRICT` is one that no level meets."""
STRICT = {"tolerance": 1e-6}


def calibrated(study, **privacy):
    return study(privacy=CALIBRATED | privacy)


def charges(folder, site="site-1"):
    return verify_ledger(folder / "ledgers" / f"{site}.jsonl")


def names(state):
    return [charge.label.split()[0] for charge in state.charges]


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "server"])
def test_the_level_is_charged_and_the_maximum_is_the_guarantee(study, tmp_path, trust):
    result = run(RunDirectory.create(tmp_path / "out", calibrated(study, trust=trust)))
    found, state = result["calibrated"], charges(tmp_path / "out")
    level = found["level"]
    assert names(state) == [
        "statistics",
        "pilot",
        f"statistics-level-{level}",
        *[f"training-level-{level}"] * 6,
        f"calibration-level-{level}",
    ]
    assert state.spent() == pytest.approx(found["charged"], rel=1e-9)
    assert found["charged"] <= found["epsilon"] < 16.0
    assert found["charged"] == pytest.approx(found["epsilon"], rel=1e-3), "all of the level is used"
    assert result["guarantee"]["epsilon"] == pytest.approx(16.0, rel=1e-3)
    assert [one["what"] for one in result["releases"]][-1] == f"calibration-level-{level}"
    assert result["metrics"]["test"]["auroc"] > 0.9
    assert len(found["levels"]) == len({one["epsilon"] for one in found["levels"]}) > 3
    pilot = [charge.mechanism for charge in state.charges[:2]]
    study_ = calibrated(study, trust=trust)
    agreement = make_agreement(study_, sites=("a", "b", "c"), model=make_task_of(study_).model)
    assert agreement.price(pilot) <= 4.0


def make_task_of(study):
    data = prepare(study)
    return make_task(data.study, data.dataset, Silent())


def test_the_level_follows_from_released_numbers_alone(study, tmp_path):
    """The forecast that the run states is the rule applied to what its checkpoint holds of the pilot, and no other."""
    directory = RunDirectory.create(tmp_path / "out", calibrated(study))
    with pytest.raises(Stop):
        run(directory, progress=StopAfter(1))
    saved = directory.load_checkpoint()
    task = make_task_of(calibrated(study))
    agreement = make_agreement(task.study, sites=tuple(prepare(task.study).sites), model=task.model)
    evidence = np.concatenate([[5.0, 5.0], saved["statistics"], saved["pilot"]]) * SCALE
    found = agreement.calibration.forecast(agreement.calibration.read(evidence))
    result = run(RunDirectory(tmp_path / "out"))
    assert result["calibrated"]["level"] == found.level
    labels = names(charges(tmp_path / "out"))
    assert labels.count("pilot") == labels.count("statistics") == 1, "a resumed run does not repeat the pilot"
    assert {name.rpartition("-level-")[2] for name in labels if "-level-" in name} == {str(found.level)}


def test_the_page_states_the_maximum_and_its_risk_and_shows_the_curve(study, tmp_path):
    """A level that was chosen in view of releases bounds no attack beforehand: the page must not state its risk."""
    result = run(RunDirectory.create(tmp_path / "out", calibrated(study)))
    record = report.load(tmp_path / "out")
    assert result["calibrated"]["charged"] < 6
    assert record.risk == operational_risk(record.guarantee, record.mechanisms)
    assert record.risk.true_positive_rate == pytest.approx(result["risk"]["tpr_at_1_percent_fpr"])
    charged = operational_risk(record.guarantee, [one.mechanism for one in record.releases])
    assert record.risk.true_positive_rate > charged.true_positive_rate + 0.1
    page = report.write_report(tmp_path / "out").read_text()
    assert "AUROC against epsilon, as the pilot predicts it" in page
    assert "The guarantee states the maximum" in page


def test_one_round_is_calibrated_too(study, tmp_path):
    settings = study(training={"method": "one-shot", "rounds": 1}, privacy=CALIBRATED)
    result = run(RunDirectory.create(tmp_path / "out", settings))
    state = charges(tmp_path / "out")
    assert names(state) == ["statistics", "pilot", f"statistics-level-{result['calibrated']['level']}"]
    assert result["metrics"]["test"]["auroc"] > 0.9


def fails(go):
    with pytest.raises(FederationError):
        go()


class Tampering:
    """A coordinator's transport that changes requests; of a real simulated federation."""

    def __init__(self, inner, change):
        self.inner, self.change, self.declined = inner, change, []

    def exchange(self, requests):
        answers = self.inner.exchange({site: self.change(site, one) for site, one in requests.items()})
        self.declined += [one for one in answers.values() if isinstance(one, Declined)]
        return {
            site: replace(one, release=requests[site].release)
            if hasattr(requests[site], "release") and hasattr(one, "release")
            else one
            for site, one in answers.items()
        }

    def signing_keys(self):
        return self.inner.signing_keys()


@contextmanager
def tampered(study, folder, change):
    """A started study whose requests are changed on their way."""
    directory = RunDirectory.create(folder, study)
    with directory:
        data = prepare(study)
        task = make_task(data.study, data.dataset, Silent())
        with Simulated().join(data, task, directory) as joined:
            transport = Tampering(joined.transport, change)

            def go():
                return train(
                    data.study,
                    joined.agreement,
                    task.model,
                    transport,
                    directory,
                    evaluate=lambda *_: None,
                    progress=Silent(),
                )

            yield joined.agreement, transport, go


def level_of(request):
    name = getattr(request, "release", "")
    return int(name.rpartition("-level-")[2]) if "-level-" in name else None


def renamed(request, level):
    return replace(request, release=f"{request.release.rpartition('-level-')[0]}-level-{level}")


@pytest.mark.parametrize("where", ["dearer", "outside", "negative"])
def test_a_level_that_the_rule_does_not_give_is_refused_and_costs_nothing(study, tmp_path, where):
    """Dearer than the rule picks from the very sums that the request states, or outside the grid."""

    def change(_, request):
        level = level_of(request)
        if level is None:
            return request
        return renamed(request, {"dearer": level + 1, "outside": 99, "negative": 0}[where])

    with tampered(calibrated(study, trust="site"), tmp_path / "out", change) as (_, transport, go):
        fails(go)
        assert {one.code for one in transport.declined} == {"refused"}
    for number in range(1, 6):
        assert names(charges(tmp_path / "out", f"site-{number}")) == ["statistics", "pilot"]


def test_a_cheaper_level_than_the_rule_gives_is_answered(study, tmp_path):
    """So the refusals above are for the level, not for the change."""

    def change(_, request):
        return request if level_of(request) is None else renamed(request, 1)

    with tampered(calibrated(study, trust="site", **STRICT), tmp_path / "out", change) as (
        agreement,
        transport,
        go,
    ):
        go()
        assert not transport.declined
    assert agreement.price([one.mechanism for one in charges(tmp_path / "out").charges]) <= (
        agreement.calibration.levels[0].epsilon
    )


def test_the_evidence_cannot_change_between_requests(study, tmp_path):
    seen = []

    def change(_, request):
        if level_of(request) is None or not request.release.startswith("training"):
            return request
        seen.append(request)
        parameters = request.parameters.copy()
        parameters[5] *= 1 + 1e-9
        return replace(request, parameters=parameters)

    with tampered(calibrated(study, trust="site"), tmp_path / "out", change) as (_, transport, go):
        fails(go)
    assert seen
    assert {one.code for one in transport.declined} == {"refused"}
    assert not [name for name in names(charges(tmp_path / "out")) if name.startswith("training")]


@pytest.mark.parametrize("value", [0.0, 2.5, 6.0, -1.0])
def test_impossible_numbers_of_sites_are_refused(study, tmp_path, value):
    def change(_, request):
        if level_of(request) is None:
            return request
        parameters = request.parameters.copy()
        parameters[0] = value * SCALE
        return replace(request, parameters=parameters)

    with tampered(calibrated(study, trust="site"), tmp_path / "out", change) as (_, transport, go):
        fails(go)
    assert {one.code for one in transport.declined} == {"refused"}


def test_a_study_runs_at_one_level_and_within_its_epsilon(study, tmp_path):
    """A request at a second, cheaper level is refused; repeats are bounded by the level, not by the maximum."""
    task = make_task_of(calibrated(study))
    agreement = make_agreement(task.study, sites=("a", "b", "c"), model=task.model)
    pilot = {"statistics": 1, "pilot": 1}
    low = pilot | {"statistics-level-2": 1, "training-level-2": 6, "calibration-level-2": 1}
    assert agreement.affords(pilot)
    assert agreement.affords(low)
    assert not agreement.affords(low | {"training-level-2": 8}), "within the maximum, beyond the level"
    assert agreement.price(agreement.asked(low | {"training-level-2": 8})) < agreement.target.epsilon
    assert not agreement.affords(low | {"training-level-1": 1})
    assert not agreement.affords({"training-level-2": 1000})
    many = pilot | {"pilot": 100_000}
    assert not agreement.affords(many), "repeated pilots are bounded by the maximum"

    levels = []

    def change(_, request):
        level = level_of(request)
        if level is None:
            return request
        levels.append(level)
        return renamed(request, level - 1) if request.release.startswith("training") else request

    with tampered(calibrated(study, trust="site", **STRICT), tmp_path / "out", change) as (_, transport, go):
        fails(go)
    assert set(levels) == {len(agreement.calibration.levels)}
    assert {one.code for one in transport.declined} == {"refused"}


def test_a_hospital_that_is_lost_between_the_parts_is_left_out(study, tmp_path):
    """The level stays what the pilot gave; sums of other hospitals are not mixed with those of the pilot."""

    def change(site, request):
        if site == "site-5" and level_of(request) is not None:
            return replace(request, attempt=0)  # answered to nobody's request: as if it had stopped
        return request

    settings = calibrated(study, trust="site")
    with tampered(settings, tmp_path / "out", change) as (agreement, transport, go):
        trained = go()
    assert transport.declined
    assert trained.rounds == 6
    assert names(charges(tmp_path / "out", "site-5")) == ["statistics", "pilot"]
    own = agreement.release(f"statistics-level-{trained.forecast.level}")
    four = agreement.noise_variance(own, 4)
    assert trained.statistics.noise_variance == pytest.approx(four), "those of four hospitals, not combined"
    assert agreement.price([one.mechanism for one in charges(tmp_path / "out").charges]) <= 16.0


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        ({"max_epsilon": None}, "set privacy.max_epsilon"),
        ({"max_epsilon": -1.0}, "max_epsilon"),
        ({"max_epsilon": float("inf")}, "max_epsilon must be a finite number"),
        ({"max_epsilon": 2.0}, "leaves nothing"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": 0.7}, "tolerance"),
        ({"trust": "none"}, "no noise to calibrate"),
        ({"unit": "site"}, "patients or images"),
        ({"personal_share": 0.1}, "own models"),
        ({"statistics_share": 0.0}, "statistics_share above 0"),
        ({"epsilon": "cheapest"}, "epsilon"),
        ({"pilot_epsilon": 0.0}, "pilot_epsilon"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_when_the_study_is_read(privacy, words):
    with pytest.raises(StudyError, match=words):
        Study().with_changes({"privacy": CALIBRATED | privacy})


def test_a_pilot_that_leaves_nothing_for_any_level_is_refused(study):
    settings = calibrated(study, max_epsilon=4.5)
    with pytest.raises(InvalidValue, match="pilot may use"):
        make_agreement(settings, sites=("a", "b", "c"), model=make_task_of(settings).model)


def test_a_tolerance_that_no_level_meets_gives_the_dearest_and_says_so(study, tmp_path):
    result = run(RunDirectory.create(tmp_path / "out", calibrated(study, **STRICT)))
    found = result["calibrated"]
    assert not found["within"]
    assert found["epsilon"] == 16.0
    assert any("no level up to the maximum keeps the AUROC" in note for note in result["notes"])


def test_a_budget_below_the_maximum_admits_no_calibrated_study(study, tmp_path):
    """Sites admit the dearest level, although a cheaper one would be charged."""

    settings = calibrated(study, trust="site")
    task = make_task_of(settings)
    agreement = make_agreement(settings, sites=("a", "b", "c"), model=task.model)
    rows = prepare(settings).dataset.train
    for epsilon, fits in ((15.0, False), (16.0, True)):
        with Ledger(tmp_path / f"{epsilon}.jsonl", Budget(epsilon, 1e-3, "patient")) as ledger:
            site = Site("a", task.learner(rows), Policy(), ledger)
            if fits:
                site.admit(agreement)
                continue
            with pytest.raises(BudgetExceeded):
                site.admit(agreement)


def test_the_digest_covers_every_level(study):
    settings = calibrated(study)
    task = make_task_of(settings)
    agreement = make_agreement(settings, sites=("a", "b", "c"), model=task.model)
    cheaper = replace(agreement.calibration, levels=agreement.calibration.levels[1:])
    other = replace(agreement.calibration, rule=replace(agreement.calibration.rule, tolerance=0.02))
    digests = {replace(agreement, calibration=one).digest for one in (agreement.calibration, cheaper, other)}
    assert len(digests) == 3
    assert json.dumps(agreement.calibration.to_dict())


def test_a_level_that_the_pilot_costs_up_is_left_out_where_units_are_sampled(study):
    """Beside other mechanisms a sampled one has no tight price: the pilot may cost all of the smallest level."""
    sampled = study(
        training={"sampling_rate": 0.25, "units": 100},
        privacy=CALIBRATED | {"max_epsilon": 8.0, "pilot_epsilon": 0.2},
    )
    prepared = prepare(sampled)
    task = make_task(prepared.study, prepared.dataset, Silent())
    agreement = make_agreement(prepared.study, sites=tuple(prepared.sites), model=task.model)
    epsilons = [level.epsilon for level in agreement.calibration.levels]
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] == 8.0
    assert [level.releases[0].level for level in agreement.calibration.levels] == list(
        range(1, len(epsilons) + 1)
    )
