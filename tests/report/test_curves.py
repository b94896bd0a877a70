import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from fedveil.report.figures import curves

SCORED = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=60).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


@given(SCORED)
def test_roc_agrees_with_scikit_learn(rows: list[tuple[bool, int]]) -> None:
    labels = np.array([label for label, _ in rows])
    scores = np.array([score / 20 for _, score in rows])
    curve = curves.roc(labels, scores)
    assert curve is not None
    false, true, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    area = np.trapezoid(curve.true_positive_rate, curve.false_positive_rate)
    assert area == pytest.approx(metrics.roc_auc_score(labels, scores))
    for x, y in zip(curve.false_positive_rate, curve.true_positive_rate, strict=True):
        assert np.isclose(false, x).astype(bool)[np.isclose(true, y)].any()
    for x in np.unique(false):
        assert curve.at(x) == pytest.approx(true[false == x].max())


def test_roc_of_one_class_is_undefined() -> None:
    assert curves.roc(np.ones(3, dtype=bool), np.array([0.1, 0.2, 0.3])) is None


def test_roc_is_read_at_a_rate_on_its_upper_side() -> None:
    labels, scores = np.array([True, False, True, False]), np.array([0.9, 0.8, 0.7, 0.1])
    curve = curves.roc(labels, scores)
    assert curve is not None
    assert [curve.at(rate) for rate in (0.0, 0.25, 0.5, 1.0)] == [0.5, 0.5, 1.0, 1.0]


def test_mean_roc_is_the_macro_average() -> None:
    rng = np.random.default_rng(3)
    labels, scores = rng.integers(0, 3, 300), rng.dirichlet(np.ones(3), 300)
    found = [curves.roc(labels == k, scores[:, k]) for k in range(3)]
    rocs = [curve for curve in found if curve is not None]
    mean = curves.mean_roc(rocs, points=2001)
    area = np.trapezoid(mean.true_positive_rate, mean.false_positive_rate)
    assert area == pytest.approx(metrics.roc_auc_score(labels, scores, multi_class="ovr"), abs=2e-3)


def test_reliability_agrees_with_scikit_learn_and_scipy() -> None:
    rng = np.random.default_rng(5)
    probability = rng.random(400)
    event = rng.random(400) < probability**1.5
    found = curves.reliability(event, probability)
    observed, predicted = calibration_curve(event, probability, n_bins=10)
    np.testing.assert_allclose(found.predicted, predicted)
    np.testing.assert_allclose(found.observed, observed)
    for k, n in enumerate(found.counts.tolist()):
        interval = binomtest(round(found.observed[k] * n), n).proportion_ci(0.95, method="wilson")
        assert (found.low[k], found.high[k]) == pytest.approx((interval.low, interval.high), abs=1e-6)
    assert found.error == pytest.approx(np.average(np.abs(predicted - observed), weights=found.counts))


def test_reliability_takes_the_ends_and_leaves_empty_bins_out() -> None:
    found = curves.reliability(np.array([False, True, True]), np.array([0.0, 1.0, 1.0]))
    assert found.counts.tolist() == [1, 2]
    assert found.observed.tolist() == [0.0, 1.0]


def test_histogram_counts_every_score_once() -> None:
    scores = np.array([0.0, 0.049, 0.05, 0.5, 1.0])
    shares = curves.histogram(scores)
    assert shares.sum() == pytest.approx(1)
    assert (shares[[0, 1, 10, 19]] * 5).round().tolist() == [2, 1, 1, 1]
    assert curves.histogram(np.array([])).tolist() == [0.0] * 20


def test_confusion_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    labels, predicted = rng.integers(0, 4, 100), rng.integers(0, 4, 100)
    expected = metrics.confusion_matrix(labels, predicted, labels=range(4))
    np.testing.assert_array_equal(curves.confusion(labels, predicted, 4), expected)
