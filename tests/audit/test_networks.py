"""Audits of networks and of sampled rounds: what makes them affordable changes neither sums nor noise."""

import sys
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from fedveil.audit import Effort, audit
from fedveil.audit.arena import Arena, Remembering, plant, small
from fedveil.audit.one_run import _ratios
from fedveil.audit.white_box import Aim, aim, draws
from fedveil.data import Dataset
from fedveil.errors import StudyError
from fedveil.study import Silent, Study
from fedveil.study.pipeline import make_task
from fedveil.study.prepare import prepare

SURE = 1 - 1e-6
"""Confidence of verdicts here: a sound study is accused once in a million runs."""


def images(patients: int = 30, size: int = 28) -> Dataset:
    """Bright and dark noise, two images of each patient, at three hospitals."""
    generator = np.random.default_rng(0)
    owners = np.repeat(np.arange(patients), 2)
    labels = owners % 2
    pixels = np.clip(
        generator.normal(0.4 + 0.2 * labels[:, None, None], 0.2, (len(owners), size, size)), 0, 1
    )
    made = Dataset.from_arrays(
        pixels.astype(np.float32),
        labels,
        patients=owners,
        sites=[f"h{one % 3}" for one in owners],
    )
    return replace(made, synthetic=True)


def study(**more: object) -> Study:
    settings = {"epsilon": 1.0, "network": "cnn", "image_size": 28, "rounds": 2, "trust": "server"}
    return Study(**settings | {"sampling_rate": 0.5} | more)


def arena(made: Study, homes: tuple[str, ...] = ("h0",)) -> Arena:
    prepared = prepare(made, images())
    task = make_task(prepared.study, prepared.dataset, Silent())
    return plant(small(prepared), task, homes, np.random.default_rng(1))


class Counts:
    """Progress that can be stopped: the stage's total, and the notes of its steps."""

    def __init__(self, stop: int = 0) -> None:
        self.total, self.notes, self._stop = 0, list[str](), stop

    def stage(self, name: str, total: int, done: int = 0) -> None:
        self.total = total

    def advance(self, count: int = 1, note: str = "") -> None:
        self.notes.append(note)
        if len(self.notes) == self._stop:
            raise KeyboardInterrupt


def test_an_audit_of_a_network_ends_with_a_sound_bound(tmp_path):
    effort = Effort(confidence=SURE, attackers=("white box", "one run"), trials=400, canaries=60)
    result = audit(study(), tmp_path / "audit", dataset=images(), effort=effort)
    assert not result.contradicted
    assert {(one.attacker, one.release) for one in result.findings} >= {
        ("white box", "training"),
        ("one run", "study"),
    }
    assert all(one.lower <= one.epsilon for one in result.findings)


def test_progress_counts_every_round_and_an_interrupted_run_is_not_trained_again(tmp_path):
    folder, made = tmp_path / "audit", study(calibration_share=0)
    effort = Effort(confidence=0.9, attackers=("one run",), canaries=60)
    rounds, stopped = 3, Counts(stop=3 + 2)  # class statistics and two of gradients
    with mock.patch("fedveil.audit.one_run.AT_ONCE", 1):
        with pytest.raises(KeyboardInterrupt):
            audit(made, folder, dataset=images(), effort=effort, progress=stopped)
        assert stopped.total == 4 * rounds
        assert stopped.notes == ["training"] * rounds + ["decoding"] * 2
        seen = (folder / "audit-trials" / "one-run.1.seen.npy").read_bytes()
        again = Counts(stop=rounds)
        with pytest.raises(KeyboardInterrupt):
            audit(made, folder, dataset=images(), effort=effort, progress=again)
    assert again.notes == ["decoding"] * 2 + [
        "training"
    ]  # of the second run; the second round was not stored
    assert (folder / "audit-trials" / "one-run.1.seen.npy").read_bytes() == seen


def test_what_each_canary_adds_is_what_a_hospital_of_it_alone_sums():
    ring = arena(study(), ("h0",) * 5)
    together = ring.task.learner(np.concatenate(ring.canaries))
    parameters = ring.task.model.join(None, ring.task.model.initial())
    each = together.each(parameters, clip_norm=0.5)
    for found, rows in zip(each, ring.canaries, strict=True):
        alone = ring.task.learner(rows).contribution(parameters, clip_norm=0.5)
        np.testing.assert_allclose(found, alone, atol=1e-5)
        assert 0.4 < np.linalg.norm(alone) <= 0.5
    total = together.contribution(parameters, clip_norm=0.5)
    np.testing.assert_allclose(each.sum(axis=0), total, atol=1e-5)


def test_each_sample_of_units_is_summed_once_and_as_it_is():
    ring = arena(study())
    learner = ring.task.learner(np.concatenate([ring.prepared.sites["h0"], ring.canaries[0]]))
    calls = []
    inner = learner.contribution

    def counted(parameters, *, clip_norm, units=None):
        calls.append(units)
        return inner(parameters, clip_norm=clip_norm, units=units)

    learner.contribution = counted
    known, parameters = Remembering(learner), ring.task.model.join(None, ring.task.model.initial())
    for units in (None, np.array([0]), np.array([0, 2]), np.array([], np.int64)) * 3:
        for norm in (1.0, 0.5):
            found = known.contribution(parameters, clip_norm=norm, units=units)
            np.testing.assert_array_equal(found, inner(parameters, clip_norm=norm, units=units))
            found += 1  # what the caller does to it changes nothing
    assert len(calls) == 4 * 2
    known.contribution(parameters + 1e-3, clip_norm=1.0)
    assert len(calls) == 9


def test_samples_are_drawn_anew_in_every_execution():
    ring = arena(study())
    attack = aim(ring, ring.agreement.main)
    canary = len(
        np.unique(ring.prepared.dataset.patients[ring.prepared.sites["h0"]])
    )  # its unit is the last one
    drawn = []
    inner = Remembering.contribution

    def watched(self, parameters, *, clip_norm, units=None):
        drawn.append(set(units.tolist()))
        return inner(self, parameters, clip_norm=clip_norm, units=units)

    with mock.patch.object(Remembering, "contribution", watched):
        draws(ring, attack, within=True, count=200)
    assert len(drawn) == 200
    for unit in range(canary + 1):
        assert (
            55 < sum(unit in one for one in drawn) < 145
        )  # each by its own fair coin; wrong once in a billion


def test_few_entries_of_a_networks_gradient_hold_most_of_it():
    ring = arena(study())
    attack = aim(ring, ring.agreement.main)
    few = attack.narrowed()
    assert few.entries is not None
    assert len(few.direction) < len(attack.direction) / 4
    held = float(few.direction @ few.direction) / float(attack.direction @ attack.direction)
    assert 0.7 <= held < 0.71
    np.testing.assert_array_equal(few.looked_at(attack.direction), few.direction)
    for direction in (np.ones(20_000), np.eye(100)[0]):  # nothing stands out; and few numbers take no time
        level = Aim(attack.release, attack.parameters, direction)
        assert level.narrowed() is level


def test_scores_of_a_network_on_few_entries_have_the_stated_noise():
    ring = arena(study(sampling_rate=1.0, epsilon=4.0))
    attack = aim(ring, ring.agreement.main).narrowed()
    without, within = (draws(ring, attack, within=one, count=2000) for one in (False, True))
    sigma = ring.agreement.main.mechanism.noise_multiplier
    length = float(np.linalg.norm(attack.direction)) / attack.release.mechanism.clip_norm
    assert abs(without.std() / sigma - 1) < 0.1  # 6 standard errors
    assert within.mean() - without.mean() == pytest.approx(length, abs=6 * sigma * np.sqrt(2 / 2000))


def test_orthogonal_canaries_have_the_exact_ratio_of_a_gaussian():
    observed = np.array([0.1, -0.2, 0.05, 0.9, 0.0])
    variance, rate = 0.04, 0.3
    gram, right = np.eye(5) / variance, observed / variance
    exact = np.log(1 - rate + rate * np.exp((observed - 0.5) / variance))
    np.testing.assert_allclose(_ratios(gram, right, rate), exact, rtol=1e-9)
    np.testing.assert_allclose(_ratios(gram, right, 1.0), (observed - 0.5) / variance, rtol=1e-9)


def test_canaries_that_have_much_in_common_are_told_apart_in_sampled_rounds():
    """A matched filter for one canary at a time cannot: others who were drawn look like it."""
    generator = np.random.default_rng(0)
    count, length, sigma, rate = 100, 2000, 0.2, 0.2
    rows = 0.8 * np.ones(length) / np.sqrt(length) + 0.6 * generator.normal(size=(count, length)) / np.sqrt(
        length
    )
    coins = np.arange(count) < count / 2
    together, alone = np.zeros(count), np.zeros(count)
    for _ in range(10):
        drawn = coins & (generator.random(count) < rate)
        rest = drawn @ rows + sigma * generator.normal(size=length)
        together += _ratios(rows @ rows.T / sigma**2, rows @ rest / sigma**2, rate)
        alone += rows @ rest

    def area(scores):
        return np.mean(scores[coins][:, None] > scores[~coins])

    assert area(together) > 0.85 > 0.7 > area(alone)


def embeddings() -> Dataset:
    generator = np.random.default_rng(0)
    owners = np.repeat(np.arange(150), 2)
    vectors = generator.normal(size=(len(owners), 24)).astype(np.float32)
    sites = [f"h{one % 3}" for one in owners]
    made = Dataset.from_features(vectors, owners % 2, patients=owners, sites=sites)
    return replace(made, synthetic=True)


PER_IMAGE = {"features": "precomputed", "rounds": 2, "unit": "image", "trust": "server", "epsilon": 4.0}


def test_where_images_are_protected_one_image_is_in_or_out(tmp_path):
    """A patient of three images adds three units: the sound code was accused of three times its epsilon."""
    effort = Effort(confidence=SURE, attackers=("white box",), trials=3000)
    result = audit(Study(**PER_IMAGE), tmp_path / "audit", dataset=embeddings(), effort=effort)
    assert not result.contradicted
    assert max(one.lower / one.epsilon for one in result.findings) > 0.3  # and the image adds its whole bound


def test_candidates_of_the_black_box_are_images_where_images_are_protected(tmp_path):
    effort = Effort(confidence=0.9, attackers=("black box",), references=2)
    made = Study(**PER_IMAGE | {"epsilon": 1.0})
    (found,) = audit(made, tmp_path / "audit", dataset=embeddings(), effort=effort).findings
    half = sum(len(rows) // 2 for rows in prepare(made, embeddings()).sites.values())
    assert f"membership of {half} images" in found.what


def test_a_study_that_protects_sites_is_refused(tmp_path):
    with pytest.raises(StudyError, match="unit is site"):
        audit(study(unit="site", sampling_rate=1.0), tmp_path / "audit", dataset=images())
    assert not (tmp_path / "audit").exists()


def test_an_interrupted_audit_of_ones_own_function_is_refused(tmp_path, monkeypatch):
    """Its code may be another by now, and no digest of installed packages tells."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def flat(*, classes, channels, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    own, effort = study(network="module:mine.flat"), Effort(attackers=("white box",), trials=600)
    with pytest.raises(KeyboardInterrupt):
        audit(own, tmp_path / "audit", dataset=images(), effort=effort, progress=Counts(stop=1))
    kept = sorted(path.name for path in (tmp_path / "audit" / "audit-trials").iterdir())
    with pytest.raises(StudyError, match=r"module:mine\.flat.*cannot be told"):
        audit(own, tmp_path / "audit", dataset=images(), effort=effort)
    assert sorted(path.name for path in (tmp_path / "audit" / "audit-trials").iterdir()) == kept


@pytest.mark.parametrize("attacker", ["white box", "protocol", "one run", "black box"])
def test_findings_are_refused_before_anything_is_attacked(tmp_path, attacker):
    """Attacks add patients of one class. Phantom patients in place of a hospital's would not have its findings."""
    effort = Effort(attackers=(attacker,), trials=600, references=2)
    for source in ("phantom:findings", "/nowhere/else"):
        wanted = Study(data={"source": source, "task": "findings", "sites": {"count": 3}})
        with pytest.raises(StudyError, match="labels are findings"):
            audit(wanted, tmp_path / "audit", effort=effort)
    assert not (tmp_path / "audit").exists()
