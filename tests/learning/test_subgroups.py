"""Accuracy by subgroup: as a loop over resampled patients has it, with gaps to all others."""

import numpy as np
import pytest

from fedveil.data.annotations.columns import Column
from fedveil.learning import auroc, evaluate, subgroups


def cohort(seed=0, patients=80, images=2):
    generator = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), images)
    labels = generator.integers(0, 2, len(owner))
    chance = generator.random(len(owner))
    women = owner % 2 == 0
    score = np.where(women, 0.6 * labels + 0.4 * chance, chance)  # right for women, a guess for men
    return owner, labels, np.stack([1 - score, score], axis=1), np.where(women, "F", "M")


def test_each_group_is_judged_as_if_it_were_alone():
    owner, labels, probabilities, sex = cohort()
    found = {
        one.group: one for one in subgroups(labels, probabilities, {"sex": Column.of(sex)}, patients=owner)
    }
    assert set(found) == {"female", "male"}
    for name, letter in (("female", "F"), ("male", "M")):
        own = sex == letter
        alone = evaluate(labels[own], probabilities[own], classes="ab", patients=owner[own])
        group = found[name]
        assert (group.n, group.patients) == (alone.n, alone.patients)
        assert group.auroc == pytest.approx(alone.auroc)
        assert group.balanced_accuracy == pytest.approx(alone.balanced_accuracy)
        assert group.auroc_gap == pytest.approx(alone.auroc - auroc(labels[~own], probabilities[~own]))
    assert found["female"].auroc_gap == pytest.approx(-found["male"].auroc_gap)
    assert found["female"].auroc_gap_interval[0] > 0.2, "a real gap is told from noise"


def test_intervals_resample_patients_and_both_parts_at_once():
    owner, labels, probabilities, sex = cohort(patients=30)
    (group, _) = subgroups(
        labels, probabilities, {"sex": Column.of(sex)}, patients=owner, resamples=40, seed=3
    )
    drawn = np.random.default_rng(3).integers(0, 30, (40, 30))
    gaps = []
    for one in drawn:
        rows = np.concatenate([np.flatnonzero(owner == patient) for patient in one])
        inside = sex[rows] == "F"
        parts = (rows[inside], rows[~inside])
        scores = [auroc(labels[part], probabilities[part]) for part in parts]
        gaps.append(scores[0] - scores[1])
    low, high = np.quantile(gaps, [0.025, 0.975])
    assert group.auroc_gap_interval == pytest.approx((low, high))


def test_no_gap_is_found_where_there_is_none():
    owner, labels, probabilities, _ = cohort(seed=1, patients=120)
    sex = Column.of(np.random.default_rng(5).choice(["F", "M"], 120)[owner])
    for group in subgroups(labels, probabilities, {"sex": sex}, patients=owner):
        low, high = group.auroc_gap_interval
        assert low < 0 < high


def test_what_is_undefined_is_nan_and_missing_values_are_a_group():
    labels = np.array([0, 1, 1, 1, 0, 1])
    probabilities = np.stack([1 - labels * 0.8, labels * 0.8], axis=1)
    ages = Column.of(["30", "35", "70", "71", None, "old"])
    found = {one.group: one for one in subgroups(labels, probabilities, {"age": ages}, patients=np.arange(6))}
    assert list(found) == ["18-39", "65-79", "other or unknown"]
    assert np.isnan(found["65-79"].auroc)
    assert np.isnan(found["65-79"].auroc_interval).all()
    assert np.isnan(found["65-79"].auroc_gap)
    assert found["18-39"].auroc == 1
    (everyone,) = subgroups(labels, probabilities, {"site": Column.of(["x"] * 6)}, patients=np.arange(6))
    assert np.isnan(everyone.auroc_gap)
