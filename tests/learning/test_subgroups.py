"""Accuracy by subgroup: within each group, with gaps to all others."""

import tracemalloc

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


def test_intervals_are_as_wide_as_resampled_patients_say_whichever_parts_hold_their_images():
    owner, labels, probabilities, _ = cohort(patients=150, images=4)
    probabilities = 0.3 + 0.4 * probabilities + 0.1 * np.random.default_rng(9).random((600, 1)) * [[1, -1]]
    sex = np.where(np.arange(600) % 4 < 2, "F", "M")  # each patient has images in both parts
    (group, _) = subgroups(labels, probabilities, {"sex": Column.of(sex)}, patients=owner)
    gaps = []
    for drawn in np.random.default_rng(3).integers(0, 150, (200, 150)):
        rows = (drawn[:, None] * 4 + np.arange(4)).ravel()
        inside = sex[rows] == "F"
        scores = [auroc(labels[part], probabilities[part]) for part in (rows[inside], rows[~inside])]
        gaps.append(scores[0] - scores[1])
    low, high = np.quantile(gaps, [0.025, 0.975])
    found = group.auroc_gap_interval
    assert found[0] <= group.auroc_gap <= found[1]
    assert found[1] - found[0] == pytest.approx(high - low, rel=0.2)


def test_patients_in_both_parts_narrow_a_gap_that_they_share():
    generator = np.random.default_rng(4)
    effect, owner = generator.normal(size=200), np.repeat(np.arange(200), 2)
    labels = np.repeat(np.arange(200) % 2, 2)
    score = 1 / (1 + np.exp(-effect[owner] - labels - 0.1 * generator.normal(size=400)))
    probabilities, eye = np.stack([1 - score, score], axis=1), Column.of(["left", "right"] * 200)
    together = subgroups(labels, probabilities, {"eye": eye}, patients=owner)[0].auroc_gap_interval
    apart = subgroups(labels, probabilities, {"eye": eye}, patients=np.arange(400))[0].auroc_gap_interval
    assert together[1] - together[0] < 0.6 * (apart[1] - apart[0])


def test_intervals_take_memory_for_the_images_and_not_for_resamples_of_them():
    generator, count = np.random.default_rng(0), 100_000
    labels, values = generator.integers(0, 2, count), generator.random(count)
    sex = Column.of(np.where(np.arange(count) % 2, "F", "M"))
    tracemalloc.start()
    subgroups(labels, np.stack([1 - values, values], axis=1), {"sex": sex}, patients=np.arange(count))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 800 * count


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
