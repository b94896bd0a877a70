"""Audits of a small study, through the real sites, ledgers, noise, masks and rounds."""

import json
from dataclasses import replace
from importlib.metadata import distributions
from unittest import mock

import numpy as np
import pytest
from typer.testing import CliRunner

import fedveil
from fedveil.audit import ATTACKERS, Effort, audit, read_audit
from fedveil.audit.arena import colluders_of, plant, small
from fedveil.audit.attacker import Attempt, Setup, claim_of
from fedveil.audit.evidence import TwoWorlds
from fedveil.audit.runner import _result
from fedveil.audit.white_box import aim, draws, rounds_of_a_session, session
from fedveil.cli import app
from fedveil.data import Dataset
from fedveil.errors import InvalidValue, StudyError
from fedveil.federation import noise
from fedveil.installed import code_hash
from fedveil.privacy import Mechanism
from fedveil.study import RunDirectory, Silent, Study, run
from fedveil.study.pipeline import make_task
from fedveil.study.prepare import prepare
from fedveil.study.simulation import Simulated

PATIENTS = 260
QUICK = Effort(trials=600, sessions=2, canaries=110, references=2, confidence=0.99)


def dataset(features: int = 24) -> Dataset:
    generator = np.random.default_rng(0)
    owners = np.repeat(np.arange(PATIENTS), 2)
    labels = owners % 2
    vectors = generator.normal(size=(len(owners), features)) + 0.5 * labels[:, None]
    made = Dataset.from_features(
        vectors.astype(np.float32), labels, patients=owners, sites=[f"h{one % 3}" for one in owners]
    )
    return replace(made, synthetic=True)


def study(epsilon: float = 4.0, trust: str = "secure-aggregation", **more: object) -> Study:
    settings = {"epsilon": epsilon, "trust": trust, "rounds": 4, "features": "precomputed", **more}
    return Study(**settings)


def arena(made: Study):
    prepared = prepare(made, dataset())
    task = make_task(prepared.study, prepared.dataset, Silent())
    return plant(small(prepared), task, ("h0",), np.random.default_rng(1))


def setup_of(ring, attempts: int, **more: object) -> Setup:
    effort = {"trials": 600, "sessions": 2, "canaries": 40, "references": 2, "confidence": 0.95} | more
    parts = {"prepared": ring.prepared, "task": ring.task, "agreement": ring.agreement}
    return Setup(**parts, **effort, attempts=attempts, store=mock.Mock(), progress=Silent())


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "server"])
def test_a_canary_reaches_the_bound_of_every_release_and_no_more(trust):
    ring = arena(study(trust=trust))
    for release in ring.agreement.releases:
        attack = aim(ring, release)
        length = float(np.linalg.norm(attack.direction)) / release.mechanism.clip_norm
        assert 0.99 < length <= 1


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "server"])
def test_the_protocol_and_the_draws_have_the_same_law(trust):
    """Mean and spread of the scores: the noise of the stated mechanism and the canary's contribution, in both."""
    ring = arena(study(epsilon=50.0, trust=trust, rounds=20))
    release = ring.agreement.main
    attack = aim(ring, release)
    rounds = rounds_of_a_session(ring, release)
    known = {}
    for within in (False, True):
        full = np.array(session(ring, attack, within=within, rounds=rounds))
        alone = draws(ring, attack, within=within, count=4000)
        error = release.mechanism.noise_multiplier
        assert abs(alone.std() / error - 1) < 0.1
        assert 0.35 < full.std() / error < 2.0  # of some 20 rounds; wrong once in 100,000 runs
        known[within] = alone.mean()
    assert known[True] - known[False] == pytest.approx(1, abs=5 * error / np.sqrt(2000))


def test_a_canary_adds_to_a_hospital_of_many_what_it_adds_alone():
    """So the contribution of each is computed alone, in a time that does not depend on how many there are."""
    made = study()
    prepared = prepare(made, dataset())
    task = make_task(prepared.study, prepared.dataset, Silent())
    ring = plant(prepared, task, ("h0",) * 5, np.random.default_rng(1))
    everybody = ring.hospital(np.concatenate(ring.canaries))
    for release in ring.agreement.releases:
        attack = aim(arena(made), release)
        norm = release.mechanism.clip_norm
        for number, rows in enumerate(ring.canaries):
            alone = release.query.contribution(ring.hospital(rows), attack.parameters, norm, None)
            among = release.query.contribution(everybody, attack.parameters, norm, np.array([number]))
            np.testing.assert_array_equal(alone, among)


def test_colluding_sites_are_those_that_the_guarantee_allows():
    ring = arena(study())
    assert colluders_of(ring.agreement, "h0") == {"h2"}
    assert colluders_of(ring.agreement, "h0", inside=True) == {"h1", "h2"}
    assert colluders_of(arena(study(trust="site")).agreement, "h0") == frozenset()


@pytest.mark.parametrize("more", [{}, {"method": "averaging", "units": 80}, {"sampling_rate": 0.5}])
def test_an_audit_of_sound_code_contradicts_nothing(tmp_path, more):
    wanted = tuple(ATTACKERS) if not more else ("white box", "one run")
    effort = replace(QUICK, attackers=wanted, trials=600 if not more else 200)
    result = audit(study(**more), tmp_path / "audit", dataset=dataset(), effort=effort)
    assert not result.contradicted
    assert "cannot prove" in result.verdict
    assert {one.attacker for one in result.findings} == set(wanted)
    assert all(one.lower <= one.epsilon for one in result.findings)
    assert result == read_audit(tmp_path / "audit")
    assert not (tmp_path / "audit" / "audit-trials").exists()
    if not more:
        whole = next(one for one in result.findings if (one.attacker, one.release) == ("white box", "study"))
        assert whole.lower > 0.1 * whole.epsilon


def test_the_largest_of_several_bounds_has_the_stated_confidence():
    """With 95 % for each of nine attacks, the largest bound of a sound study would often exceed its epsilon."""
    claim, plain = claim_of((Mechanism(1.0, 1.0, 1),), 1e-5)
    attempts = [
        Attempt(
            attacker="white box",
            release="study",
            claim=claim,
            plain=plain,
            evidence=TwoWorlds(50, 400, 200, 400),
            curve=np.zeros((2, 2)),
            area=0.5,
            executions=800,
            what="",
        )
    ] * 9
    setup = setup_of(arena(study(trust="site")), attempts=9)
    found = _result(setup, attempts, [], 0.0).findings[0].lower
    assert found == claim.epsilon(attempts[0].evidence.leak(claim, 0.05 / 9))
    assert found < claim.epsilon(attempts[0].evidence.leak(claim, 0.05))
    with pytest.raises(AssertionError, match="9 attempts"):
        _result(replace(setup, attempts=8), attempts, [], 0.0)


def test_too_little_noise_is_found(tmp_path):
    """A quarter of the noise, planted where sites draw it."""

    def weak(total, std, generator):
        return total + generator.normal(size=total.shape) * std / 4

    with mock.patch.object(noise, "release", weak):
        result = audit(study(trust="site"), tmp_path / "audit", dataset=dataset(), effort=QUICK)
    assert {"white box"} <= {one.attacker for one in result.contradicted}
    assert result.verdict.startswith("CONTRADICTED at 99 % confidence")


class Interrupted(Exception):
    pass


class Stops:
    def __init__(self, after: int) -> None:
        self.left = after

    def stage(self, name: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, count: int = 1, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted


def test_an_interrupted_audit_goes_on_where_it_was(tmp_path):
    folder, effort = tmp_path / "audit", replace(QUICK, attackers=("white box", "one run"))
    with pytest.raises(Interrupted):
        audit(study(), folder, dataset=dataset(), effort=effort, progress=Stops(3))
    kept = {path.name: path.read_bytes() for path in (folder / "audit-trials").glob("*.npy")}
    assert len(kept) > 3
    again: list[str] = []
    inner = draws

    def counted(ring, attack, **how):
        again.append(attack.release.name)
        return inner(ring, attack, **how)

    with mock.patch("fedveil.audit.white_box.draws", counted):
        result = audit(study(), folder, dataset=dataset(), effort=effort)
    assert again == []
    assert len(result.findings) == 5
    with pytest.raises(StudyError, match="holds a finished audit"):
        audit(study(), folder, dataset=dataset(), effort=effort)


def other_labels() -> Dataset:
    made = dataset()
    return replace(made, labels=1 - made.labels)


@pytest.mark.parametrize(
    ("asked", "data", "code"),
    [
        ({"epsilon": 2.0}, dataset, None),
        ({"seed": 1}, dataset, None),
        ({}, other_labels, None),
        ({}, dataset, "0" * 64),
    ],
    ids=["settings", "seed", "data", "code"],
)
def test_the_trials_of_another_audit_are_refused(tmp_path, asked, data, code):
    """Trials of other code would acquit this code, or accuse it."""
    effort = replace(QUICK, attackers=("white box",))
    with pytest.raises(Interrupted):
        audit(study(), tmp_path, dataset=dataset(), effort=effort, progress=Stops(1))
    with (
        mock.patch("fedveil.audit.runner.code_hash", return_value=code or code_hash()),
        pytest.raises(StudyError, match="trials of another audit"),
    ):
        audit(study(**asked), tmp_path, dataset=data(), effort=effort)


def test_the_trials_of_other_packages_are_refused(tmp_path):
    effort = replace(QUICK, attackers=("white box",))
    with pytest.raises(Interrupted):
        audit(study(), tmp_path, dataset=dataset(), effort=effort, progress=Stops(1))
    fewer = list(distributions())[1:]
    with (
        mock.patch("fedveil.audit.runner.distributions", return_value=fewer),
        pytest.raises(StudyError, match="trials of another audit"),
    ):
        audit(study(), tmp_path, dataset=dataset(), effort=effort)


@pytest.mark.parametrize(
    ("effort", "words"),
    [
        ({"attackers": ("white box",), "trials": 10}, "10 executions of each world.*takes [0-9]+ .*--trials"),
        ({"attackers": ("one run",), "canaries": 5}, "5 canaries.*takes [0-9]+ .*--canaries"),
        ({"confidence": 1.0}, "confidence is 1"),
        ({"attackers": ("grey box",)}, "grey box"),
        ({"canaries": 0}, "canaries is 0"),
    ],
)
def test_too_little_effort_says_how_much_it_takes(tmp_path, effort, words):
    with pytest.raises(InvalidValue, match=words):
        audit(study(), tmp_path, dataset=dataset(), effort=replace(QUICK, **effort))


def test_a_study_without_privacy_says_so(tmp_path):
    made = study(trust="none")
    result = audit(made, tmp_path, dataset=dataset(), effort=replace(QUICK, confidence=0.95))
    assert result.epsilon == float("inf")
    assert "No privacy is stated (epsilon is infinite)" in result.verdict
    run = next(one for one in result.findings if one.attacker == "one run")
    assert run.area > 0.9
    assert run.lower > 1


def test_a_hospitals_patients_are_not_used_unless_it_asks(tmp_path):
    """The source does not exist: it was not opened."""
    made = Study(
        source=str(tmp_path / "nowhere.csv"), trust="site", rounds=2, features="pixels", image_size=8
    )
    result = audit(made, tmp_path / "a", effort=replace(QUICK, attackers=("white box",)))
    assert result.data == "phantom"
    assert "synthetic patients" in result.notes[0]
    own = audit(
        study(trust="site"),
        tmp_path / "b",
        dataset=replace(dataset(), synthetic=False),
        own_images=True,
        effort=replace(QUICK, attackers=("white box",)),
    )
    assert "as confidential as the images" in own.notes[0]
    with pytest.raises(StudyError, match="precomputed"):
        audit(study(), tmp_path / "c", dataset=replace(dataset(), synthetic=False), effort=QUICK)


def test_a_file_of_a_newer_version_or_a_damaged_one_is_refused(tmp_path):
    assert read_audit(tmp_path) is None
    (tmp_path / "audit.json").write_text(json.dumps({"schema_version": 2}))
    with pytest.raises(StudyError, match="layout 2"):
        read_audit(tmp_path)
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(StudyError, match=r"audit\.json"):
        read_audit(tmp_path)


def test_the_command_writes_into_the_run_and_its_report_shows_what_was_found(tmp_path):
    made = study(trust="site", rounds=2)
    run(RunDirectory.create(tmp_path / "run", made), Simulated(dataset=dataset()))
    asked = ["audit", str(tmp_path / "run"), "--only", "white box", "--trials", "400", "--own-images"]
    with mock.patch("fedveil.audit.runner.prepare", lambda one, _: prepare(one, dataset())):
        done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "Not contradicted at 95 % confidence" in done.output
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What attacks found" in page
    assert 'id="figure-attacks"' in page
    assert "Not contradicted" in page


def test_the_public_function_is_the_same_audit():
    result = fedveil.audit_study(
        study(trust="site", rounds=2), dataset(), attackers=("white box",), trials=400, confidence=0.99
    )
    assert result.confidence == pytest.approx(0.99)
    assert {one.release for one in result.findings} == {"statistics", "training", "calibration", "study"}
