"""A network of several findings per image: a whole study, its own thresholds, its report and its predictions."""

import csv

import numpy as np
import pytest

import fedveil as fv
from fedveil.data.phantom.findings import phantom_findings
from fedveil.report import write_report
from fedveil.study import TrainedModel

RECORDS = phantom_findings(16, patients=150)
PIXELS = np.rint(RECORDS.images.read(np.arange(len(RECORDS.labels)))[:, 0] * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def dataset():
    """The phantom of five findings, with a tenth of its labels unknown."""
    hidden = np.random.default_rng(0).random(RECORDS.labels.shape) < 0.1
    return fv.Dataset.from_arrays(
        PIXELS,
        np.where(hidden, -1, RECORDS.labels),
        patients=np.array(RECORDS.patients),
        classes=RECORDS.classes,
        task="findings",
        unknown_labels="unknown",
        split=np.array(RECORDS.splits),
    )


def study(**changes):
    values = {"sampling_rate": 1.0, "learning_rate": 2.0, "delta": 1e-3, "sites": 3}
    return fv.Study(name="f", network="cnn", features="none", image_size=16, **(values | changes))


def test_a_network_learns_the_phantoms_findings(dataset, tmp_path):
    """Without noise, so that nothing is left to chance."""
    run = fv.run(study(trust="none", rounds=12), dataset, directory=tmp_path / "run")
    assert run.metrics.per_class[0].auroc > 0.6
    assert run.metrics.per_class[1].auroc > 0.8
    assert [one.name for one in run.metrics.per_class] == list(dataset.classes)
    assert run.metrics.auroc_interval[0] < run.metrics.auroc < run.metrics.auroc_interval[1]


def test_a_private_one_is_reported_and_predicts_with_thresholds_of_each_hospital(dataset, tmp_path):
    changes = {"epsilon": 8.0, "rounds": 2, "personal_calibration_share": 0.2}
    run = fv.run(study(**changes), dataset, directory=tmp_path / "run")
    page = write_report(tmp_path / "run").read_text()
    assert all(name in page for name in dataset.classes)
    with (tmp_path / "run" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    told = np.array([[float(row[f"prob:{name}"]) for name in dataset.classes] for row in rows])
    images = PIXELS[dataset.test]
    np.testing.assert_allclose(run.model.predict_proba(images), told, atol=1e-6)
    called = [[row[f"predicted:{name}"] == "1" for name in dataset.classes] for row in rows]
    np.testing.assert_array_equal(run.model.predict(images), called)
    common = TrainedModel.load(tmp_path / "run")
    for site in ("site-1", "site-2", "site-3"):
        own = TrainedModel.load(tmp_path / "run" / "personal" / site)
        moved, kept = np.split(own.parameters, [len(dataset.classes)])
        np.testing.assert_array_equal(kept, common.parameters[len(dataset.classes) :])
        assert (moved != common.parameters[: len(dataset.classes)]).all()
        assert (own.frequencies != common.frequencies).all()
