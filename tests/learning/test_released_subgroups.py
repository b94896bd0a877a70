"""Accuracy by subgroup from noisy histograms: exact without noise, and gaps whose intervals hold what they should."""

import numpy as np
from sklearn.metrics import roc_auc_score

from fedveil.learning import HeldOut, ReleasedSubgroups, ScoreHistogram

GROUPS = ("A", "B", "other or unknown")


def drawn(seed: int, patients: int):
    """Scores that separate group A better than B; one image per patient."""
    generator = np.random.default_rng(seed)
    strata, labels = generator.choice(3, patients, p=[0.4, 0.4, 0.2]), generator.integers(0, 2, patients)
    margin = np.array([2.5, 1.0, 1.5])[strata] * (labels - 0.5) + generator.normal(size=patients)
    positive = 1 / (1 + np.exp(-margin))
    return np.stack([1 - positive, positive], axis=1), labels, strata


def released(seed: int, patients: int, noise: float) -> ReleasedSubgroups:
    probabilities, labels, strata = drawn(seed, patients)
    held_out = HeldOut(lambda _: probabilities, labels, np.arange(patients), classes=2, strata=strata)
    total = held_out.histograms(np.full(2, 0.5), 3)
    total += noise * np.random.default_rng(seed + 10_000).normal(size=total.shape)
    parts = [ScoreHistogram.from_released(part, 2, noise**2) for part in np.split(total, 3)]
    return ReleasedSubgroups("scanner", GROUPS, tuple(parts))


def binned(seed: int, patients: int) -> list[float]:
    """AUROC of each group by ten bins of scores, exactly."""
    probabilities, labels, strata = drawn(seed, patients)
    bins = np.minimum((10 * probabilities[:, 1]).astype(int), 9)
    return [roc_auc_score(labels[strata == code], bins[strata == code]) for code in range(3)]


def test_without_noise_groups_are_those_of_their_own_patients():
    found = released(1, 3000, 0.0)
    told = found.metrics()
    np.testing.assert_allclose([one["auroc"] for one in told], binned(1, 3000), atol=1e-6)
    assert sum(one["units"] for one in told) == 3000
    probabilities, labels, _ = drawn(1, 3000)
    plain = HeldOut(lambda _: probabilities, labels, np.arange(3000), classes=2).histogram(np.full(2, 0.5))
    np.testing.assert_allclose(found.everyone.counts.ravel(), plain, atol=1e-6)
    assert told[0]["auroc_gap"] > 0 > told[1]["auroc_gap"]
    missing = HeldOut(lambda _: probabilities, labels, np.arange(3000), classes=2)
    sums = missing.histograms(np.full(2, 0.5), 3).reshape(3, -1).sum(axis=1)
    np.testing.assert_allclose(sums, [0, 0, 3000], atol=1e-6)


def test_a_patient_with_images_in_several_groups_has_the_bound_of_one():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8]])
    for strata in ([0, 1, 2], [1, 1, 1], [0, 0, 2]):
        held_out = HeldOut(
            lambda _: probabilities, np.zeros(3, int), np.zeros(3, int), classes=2, strata=np.array(strata)
        )
        assert np.linalg.norm(held_out.histograms(np.full(2, 0.5), 3)) <= 1


def test_intervals_of_gaps_hold_the_gaps_of_many_patients():
    """Seeded, so that it is the same in each run: 95 % within the error of 200 draws."""
    areas = binned(0, 200_000)
    probabilities, labels, strata = drawn(0, 200_000)
    bins = np.minimum((10 * probabilities[:, 1]).astype(int), 9)
    gap = areas[0] - roc_auc_score(labels[strata != 0], bins[strata != 0])
    held = [released(seed, 1500, 6.0).metrics()[0]["auroc_gap_interval"] for seed in range(1, 201)]
    assert 0.90 <= np.mean([low <= gap <= high for low, high in held]) <= 0.99


def test_a_group_that_noise_hides_has_no_value():
    told = released(3, 60, 500.0).metrics()
    assert np.isnan([one["auroc_gap"] for one in told]).all()
    assert np.isnan([one["auroc_gap_interval"][0] for one in told]).all()


def test_a_gap_beyond_what_is_possible_stays_within_its_interval():
    """Noise takes an estimate out of [0, 1]; the gap and both ends are cut alike."""
    counts = [np.array([[-9.0, *[0.0] * 8, 100.0], [100.0, *[0.0] * 8, -9.0]]) for _ in range(2)]
    counts[0] = counts[0][:, ::-1]
    parts = [ScoreHistogram(counts=one[None], confusion=None, noise_variance=1e-4) for one in counts]
    found = ReleasedSubgroups("sex", ("a", "b"), tuple(parts)).metrics()
    for one in found:
        low, high = one["auroc_gap_interval"]
        assert -1 <= low <= one["auroc_gap"] <= high <= 1
    assert found[0]["auroc_gap"] == 1
