"""Budget shaped over rounds, and training that stops early: priced as executed, within the same target."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.study.stopping import Stop, StopAfter
from torch import nn

from fedveil.errors import StudyError
from fedveil.federation import Coordinator
from fedveil.learning import network_learner
from fedveil.privacy import epsilon, verify_ledger
from fedveil.study import RunDirectory, Study, make_plan, run
from fedveil.study.phases import Check, make_phases, stops

EASY = {"epsilon": 60.0, "progress_share": 0.2}


@given(st.integers(1, 200), st.floats(0.01, 100))
def test_phases_spend_what_even_rounds_would(rounds, spending):
    phases = make_phases(
        Study().with_changes({"training": {"rounds": rounds}, "privacy": {"spending": spending}})
    )
    assert sum(phase.rounds for phase in phases) == phases[-1].end == rounds
    assert sum(phase.rounds * phase.weight for phase in phases) == pytest.approx(rounds)
    if len(phases) > 1:
        assert phases[-1].weight / phases[0].weight == pytest.approx(spending)
    before = 0
    for phase in phases:
        assert phase.before == (0 if spending == 1 else before)
        before += phase.rounds
        assert phase.end == before


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "server"])
@pytest.mark.parametrize("spending", [0.1, 10.0])
def test_uneven_spending_meets_the_same_target(study, trust, spending):
    plan = make_plan(
        study(privacy={"trust": trust, "spending": spending, "progress_share": 0.1}, training={"rounds": 12})
    )
    phases = plan.terms.phases
    assert [one.mechanism.steps for one in phases] == [2, 3, 2, 3, 2]
    spent = [1 / one.mechanism.noise_multiplier**2 for one in phases]
    assert spent[-1] / spent[0] == pytest.approx(spending, rel=1e-5)
    assert 0.999 * 20 <= plan.guarantee.epsilon <= 20
    assert epsilon([one.mechanism for one in plan.terms.releases], 1e-3, adaptive=True) <= 20


def test_what_is_charged_is_what_each_phase_adds(study, tmp_path):
    """Every round's charge holds its own phase's noise, and that noise is in the sum that leaves."""
    settings = study(privacy={"spending": 0.04, "trust": "server"}, training={"rounds": 5})
    result = run(RunDirectory.create(tmp_path / "out", settings))
    planned = [one["mechanism"]["noise_multiplier"] for one in result["releases"][1:6]]
    state = verify_ledger(tmp_path / "out" / "ledgers" / "site-1.jsonl")
    charged = [c.mechanism.noise_multiplier for c in state.charges if c.label.startswith("training")]
    assert charged == planned
    assert charged[-1] / charged[0] == pytest.approx(5.0)
    assert state.spent() == pytest.approx(result["guarantee"]["epsilon"])
    assert state.spent() <= 20
    rounds = [json.loads(line) for line in (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()]
    assert [record["round"] for record in rounds] == [1, 2, 3, 4, 5]


def test_each_phases_noise_is_in_its_sums(study, tmp_path, monkeypatch):
    """The spread of what the coordinator receives, against a run without noise, is the phase's own."""
    collected, collect, sent = {}, Coordinator.collect, []

    def watched(self, release, number, parameters):
        sent.append(parameters)
        found = collect(self, release, number, sent[0])  # those before training, each time
        collected.setdefault(self.terms.trust, {}).setdefault(release.name, []).append(found.total)
        return found

    monkeypatch.setattr(Coordinator, "collect", watched)
    shares = {"statistics_share": 0.0, "calibration_share": 0.0, "spending": 0.01}
    for trust in ("none", "secure-aggregation"):
        settings = study(
            privacy={"trust": trust, **shares},
            training={"rounds": 10, "units": 112},
            data={"sites": {"count": 3}},
        )
        run(RunDirectory.create(tmp_path / trust, settings))
    terms = make_plan(settings).terms
    for release in terms.phases:
        exact, noisy = (np.array(collected[trust][release.name]) for trust in ("none", "secure-aggregation"))
        std = np.sqrt(terms.noise_variance(release.mechanism, 3))
        assert np.std(noisy - exact) == pytest.approx(std, rel=0.15), release.name


def test_training_stops_where_a_check_finds_no_progress(study, tmp_path):
    """On images that are told apart at once the second check is no better: exactly so without noise."""
    settings = study(privacy={**EASY, "trust": "none"}, training={"rounds": 10})
    result = run(RunDirectory.create(tmp_path / "out", settings))
    assert [one["round"] for one in result["progress"]] == [2, 4]
    assert [one["std"] for one in result["progress"]] == [0, 0]
    assert result["progress"][0]["accuracy"] == pytest.approx(1.0, abs=0.02)
    assert result["rounds"] == 4
    assert "stopped after 4 of 10 rounds" in result["notes"][-1]


def test_a_training_that_stops_early_states_the_guarantee_of_the_whole_plan(study, tmp_path, monkeypatch):
    """When to stop follows from releases, so no smaller total may be stated; the ledgers keep what was not charged."""
    monkeypatch.setattr("fedveil.study.training.stops", lambda found: len(found) == 2)
    settings = study(privacy=EASY, training={"rounds": 10})
    planned = make_plan(settings).guarantee.epsilon
    result = run(RunDirectory.create(tmp_path / "out", settings))
    assert result["rounds"] == 4
    assert result["guarantee"]["epsilon"] == pytest.approx(planned)
    state = verify_ledger(tmp_path / "out" / "ledgers" / "site-1.jsonl")
    kinds = [charge.label.split()[0] for charge in state.charges]
    assert kinds == [
        "statistics",
        *["training"] * 2,
        "progress",
        *["training"] * 2,
        "progress",
        "calibration",
    ]
    assert state.spent() < 0.9 * planned
    assert result["sites"][0]["epsilon_spent"] == pytest.approx(state.spent())


def test_a_check_is_as_noisy_as_it_says(study, tmp_path):
    """Training accuracy of an easy task is 1; what is released lies around it as its standard deviation says."""
    settings = study(privacy={"epsilon": 60.0, "progress_share": 0.3}, training={"rounds": 5, "units": 112})
    errors = []
    for number in range(6):
        result = run(RunDirectory.create(tmp_path / str(number), settings))
        errors += [(one["accuracy"] - 1) / one["std"] for one in result["progress"][1:]]
    assert 0.2 < np.sqrt(np.mean(np.square(errors))) < 3
    assert len(set(errors)) == len(errors)


def test_a_plan_warns_where_checks_are_left_to_chance(study):
    unsure = make_plan(study(privacy={"progress_share": 0.01})).to_dict()["notes"]
    assert any("left to chance" in note for note in unsure)
    for privacy in ({"progress_share": 0.5, "epsilon": 200.0}, {}):
        assert not any(
            "left to chance" in note for note in make_plan(study(privacy=privacy)).to_dict()["notes"]
        )


def test_progress_is_no_better_where_it_is_the_same():
    def checks(*accuracies):
        return [Check(round=k, accuracy=one, std=0.1) for k, one in enumerate(accuracies)]

    assert not stops(checks())
    assert not stops(checks(0.9))
    assert not stops(checks(0.8, 0.9))
    assert stops(checks(0.9, 0.9))
    assert stops(checks(0.8, 0.9, 0.85))


def test_a_resumed_run_checks_and_stops_as_an_uninterrupted_one(study, tmp_path):
    privacy = {"trust": "none", "spending": 0.5, "progress_share": 0.1}
    settings = study(privacy=privacy, training={"rounds": 10})
    whole = run(RunDirectory.create(tmp_path / "whole", settings))
    expected = (tmp_path / "whole" / "model.safetensors").read_bytes()
    for rounds in range(1, whole["rounds"] + 1):
        out = tmp_path / f"stopped-{rounds}"
        with pytest.raises(Stop):
            run(RunDirectory.create(out, settings), progress=StopAfter(rounds))
        result = run(RunDirectory.reopen(out, settings))
        assert (result["rounds"], result["progress"]) == (whole["rounds"], whole["progress"])
        assert (out / "model.safetensors").read_bytes() == expected


def test_a_sampled_network_is_checked_with_more_steps_of_its_mechanism(study, tmp_path, monkeypatch):
    small = nn.Sequential(nn.Conv2d(1, 4, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    monkeypatch.setattr(network_learner, "network", lambda *_, **__: small)
    settings = study(
        model={"network": "cnn", "features": "none"},
        training={"rounds": 10, "sampling_rate": 0.5},
        privacy=EASY,
        data={"sites": {"count": 3}},
        federation={"max_units": 1000},
    )
    terms = make_plan(settings).terms
    check, step = terms.release("progress").mechanism, terms.release("training").mechanism
    assert (check.steps, check.sampling_rate, check.noise_multiplier) == (4, 0.5, step.noise_multiplier)
    assert epsilon([one.mechanism for one in terms.releases], 1e-3) <= 60
    result = run(RunDirectory.create(tmp_path / "out", settings))
    assert result["progress"][0]["round"] == 2
    assert 0 < result["progress"][0]["accuracy"] < 1.5, "divided by the units and the sampling rate"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[privacy]\nspending = 2.0\n[training]\nsampling_rate = 0.5", "no tight price"),
        ('[privacy]\nspending = 2.0\n[training]\noptimizer = "adam"', 'optimizer "sgd"'),
        ('[privacy]\nspending = 2.0\n[training]\nmethod = "averaging"', 'method "gradient"'),
        ('[privacy]\nprogress_share = 0.1\n[training]\nmethod = "one-shot"', "one round"),
        ("[privacy]\nprogress_share = 0.9", "training needs the rest"),
        ("[privacy]\nspending = 0", "greater than or equal to 0.01"),
    ],
)
def test_what_cannot_be_shaped_is_refused(text, words):
    with pytest.raises(StudyError) as caught:
        Study.parse(text)
    assert words in str(caught.value)
