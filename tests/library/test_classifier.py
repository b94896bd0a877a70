"""The estimator: scikit-learn's own checks, and the guarantee behind a fit."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

import fedveil as fv
from fedveil.library.classifier import _unit_rows
from fedveil.privacy import verify_ledger

TWO_FITS = "two fits on the same rows differ: each has noise of its own, from the operating system"
EXPECTED_TO_FAIL = dict.fromkeys(
    ("check_classifier_data_not_an_array", "check_supervised_y_2d", "check_fit_idempotent"), TWO_FITS
)


@parametrize_with_checks(
    [fv.PrivateLinearClassifier(rounds=3)], expected_failed_checks=lambda _: EXPECTED_TO_FAIL
)
def test_it_keeps_to_scikit_learns_conventions(estimator, check):
    check(estimator)


def rows(count=400, seed=0):
    """Two directions for two classes, two rows for each group."""
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(count // 2) % 2, 2)
    X = generator.normal(size=(count, 8)) + 2 * np.eye(8)[y]
    return X, np.array(["a", "b"])[y], np.repeat(np.arange(count // 2), 2)


def test_a_fit_guarantees_what_it_was_asked_for():
    X, y, groups = rows()
    by_group = fv.PrivateLinearClassifier(epsilon=2.0, delta=1e-4).fit(X, y, groups=groups)
    assert by_group.guarantee_.unit == "patient"
    assert 1.9 < by_group.guarantee_.epsilon <= 2.0
    assert (by_group.guarantee_.delta, by_group.guarantee_.trust) == (1e-4, "site")
    assert fv.PrivateLinearClassifier().fit(X, y).guarantee_.unit == "image"


def test_noise_is_not_reproducible_from_numpys_seed():
    X, y, _ = rows()
    found = []
    for _ in range(2):
        np.random.seed(0)
        found.append(fv.PrivateLinearClassifier().fit(X, y).predict_proba(X))
    assert not np.allclose(*found, atol=1e-6)
    assert "random_state" not in fv.PrivateLinearClassifier().get_params()


def test_it_learns_where_the_budget_allows():
    X, y, groups = rows(2000)
    assert fv.PrivateLinearClassifier(epsilon=5.0).fit(X, y, groups=groups).score(X, y) > 0.85


def test_three_classes_and_one_that_does_not_occur():
    X, y, _ = rows()
    fitted = fv.PrivateLinearClassifier(classes=["c", "b", "a"]).fit(X, y)
    assert fitted.classes_.tolist() == ["a", "b", "c"]
    assert fitted.predict_proba(X).shape == fitted.decision_function(X).shape == (400, 3)


def test_every_fit_is_charged_to_a_ledger_that_is_given(tmp_path):
    X, y, groups = rows()
    path = tmp_path / "ledger.jsonl"
    fv.Ledger(path, fv.Budget(2.0, 1e-5)).close()
    one = fv.PrivateLinearClassifier(epsilon=1.0, rounds=5, ledger=path)
    one.fit(X, y, groups=groups)
    first = verify_ledger(path)
    assert first.spent() == pytest.approx(one.guarantee_.epsilon)
    one.fit(X, y, groups=groups)
    second = verify_ledger(path)
    assert len(second.charges) == 2 * len(first.charges)
    assert len(second.studies) == 2
    assert 1.0 < second.spent() < 2.0
    again = clone(one).set_params(epsilon=1.5)
    with pytest.raises(fv.FedveilError, match="budget"):
        again.fit(X, y, groups=groups)
    assert len(verify_ledger(path).charges) == len(second.charges)
    assert not hasattr(again, "model_")


def test_a_ledger_for_groups_does_not_pay_for_single_rows(tmp_path):
    X, y, _ = rows()
    fv.Ledger(tmp_path / "ledger.jsonl", fv.Budget(2.0, 1e-5)).close()
    with pytest.raises(fv.FedveilError, match="image"):
        fv.PrivateLinearClassifier(ledger=tmp_path / "ledger.jsonl").fit(X, y)


def test_cross_validation_takes_groups_through_fits_parameters():
    X, y, groups = rows()
    scores = cross_val_score(
        fv.PrivateLinearClassifier(epsilon=5.0, rounds=5), X, y, cv=3, params={"groups": groups}
    )
    assert len(scores) == 3


def test_it_goes_into_a_pipeline_and_a_pickle():
    X, y, _ = rows()
    pipeline = make_pipeline(FunctionTransformer(np.tanh), fv.PrivateLinearClassifier(rounds=3)).fit(X, y)
    assert np.array_equal(pickle.loads(pickle.dumps(pipeline)).predict(X), pipeline.predict(X))


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_a_row_is_scaled_by_its_own_length(scale):
    X = np.random.default_rng(0).normal(size=(5, 7))
    found = _unit_rows(X * np.array([scale, 1, 1, 1, 0])[:, None])
    assert np.allclose(np.linalg.norm(found, axis=1), [1, 1, 1, 1, 0], atol=1e-6)
    assert np.array_equal(found[1:4], _unit_rows(X)[1:4])
    assert np.allclose(found[0], _unit_rows(X)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "y", "words"),
    [
        ({"delta": 0.1}, None, "delta is 0.1 for 400 units"),
        ({"epsilon": -1.0}, None, "privacy.epsilon is -1.0"),
        ({"classes": ["a"]}, None, "there is 1 class"),
        ({"classes": ["a", "c"]}, None, "y holds b"),
        ({}, ["a"] * 400, "there is 1 class"),
    ],
)
def test_mistakes_say_value_rule_and_remedy(settings, y, words):
    X, usual, _ = rows()
    with pytest.raises(fv.FedveilError, match=words):
        fv.PrivateLinearClassifier(**settings).fit(X, usual if y is None else y)


def test_groups_of_another_length_are_refused():
    X, y, groups = rows()
    with pytest.raises(fv.InvalidValue, match="400 rows"):
        fv.PrivateLinearClassifier().fit(X, y, groups=groups[1:])
