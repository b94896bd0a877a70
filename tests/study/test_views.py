import numpy as np
import pytest

from fedveil.study import Silent, prepare
from fedveil.study.task import make_task


def learner(study):
    prepared = prepare(study)
    task = make_task(study, prepared.dataset, Silent())
    rows = next(iter(prepared.sites.values()))
    return task, task.learner(rows), rows


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_views_belong_to_the_unit_of_their_image(study, unit):
    settings = study(training={"views": 3, "rounds": 2}, privacy={"unit": unit, "statistics_share": 0})
    task, one, rows = learner(settings)
    patients = task.dataset.patients[rows]
    assert one.units == (len(np.unique(patients)) if unit == "patient" else len(rows))
    # From the origin every gradient is longer than the bound, so that lengths are all alike.
    whole = task.model.join(None, task.model.initial())
    bound = 1e-3
    assert np.linalg.norm(one.contribution(whole, clip_norm=bound, units=np.array([0]))) == pytest.approx(
        bound
    )
    everything = one.contribution(whole, clip_norm=bound)
    assert np.linalg.norm(everything) <= bound * one.units * (1 + 1e-6)


def test_a_gradient_is_the_mean_over_views_before_clipping(study):
    plain, _, _ = learner(study(privacy={"unit": "image", "statistics_share": 0}))
    task, one, rows = learner(study(training={"views": 3}, privacy={"unit": "image", "statistics_share": 0}))
    assert len(task.crops) == 2
    assert not plain.crops
    whole = task.model.join(None, task.model.initial())
    views = [task.features, *task.crops]
    points = [task.head.view(view[rows[:1]], np.zeros(task.head.features))[0] for view in views]
    residual = 0.5 - task.dataset.labels[rows[0]]
    expected = np.mean(points, axis=0) * residual
    found = one.contribution(whole, clip_norm=1e3, units=np.array([0]))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-6)


def test_views_leave_test_images_as_they_are(study):
    plain, _, _ = learner(study())
    task, _, _ = learner(study(training={"views": 2}))
    np.testing.assert_array_equal(task.features, plain.features)
