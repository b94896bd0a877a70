"""A study of ordered grades: from arrays to a report and a model that predicts, under every trust."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import fedveil as fv
from fedveil.data import load
from fedveil.data.phantom.grades import GRADES as DRAWN
from fedveil.errors import StudyError
from fedveil.learning import GradesHead
from fedveil.report import write_report
from fedveil.study.results.trained_model import TrainedModel, predict

GRADES = ("none", "mild", "moderate", "severe")


@pytest.fixture(scope="module")
def drawn():
    """Images (480, 16, 16) that are brighter at the left from grade to grade, and their grades; mild is rare."""
    generator = np.random.default_rng(0)
    grades = generator.choice(4, 240, p=[0.4, 0.1, 0.3, 0.2]).repeat(2)
    images = generator.normal(80, 12, (480, 16, 16))
    images[:, 3:12, 2:7] += 16 * (grades + generator.normal(0, 0.3, 480))[:, None, None]
    return np.clip(images, 0, 255).astype(np.uint8), grades


@pytest.fixture(scope="module")
def dataset(drawn):
    images, grades = drawn
    return fv.Dataset.from_arrays(
        images,
        grades,
        patients=np.arange(240).repeat(2),
        classes=GRADES,
        task="grades",
        split=np.where(np.arange(240) % 4 == 0, "test", "train").repeat(2),
    )


def study(**changes):
    return fv.Study(
        name="grades", features="pixels", image_size=16, **({"epsilon": 20.0, "delta": 1e-3} | changes)
    )


@pytest.mark.parametrize("trust", ["secure-aggregation", "none"])
def test_from_arrays_to_a_report_and_predictions(dataset, drawn, tmp_path, trust):
    run = fv.run(study(trust=trust), dataset, directory=tmp_path / "run")
    assert run.metrics.quadratic_kappa > 0.6
    assert run.metrics.quadratic_kappa_interval[0] < run.metrics.quadratic_kappa
    assert run.metrics.quadratic_kappa_noise >= 0
    assert run.metrics.auroc > 0.85
    page = write_report(tmp_path / "run").read_text()
    assert "Quadratic weighted kappa" in page
    assert f"{run.metrics.quadratic_kappa:.3f}" in page
    with (tmp_path / "run" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    images = drawn[0][dataset.test]
    told = np.array([[float(row[f"prob:{name}"]) for name in GRADES] for row in rows])
    np.testing.assert_allclose(run.model.predict_proba(images), told, atol=1e-6)
    assert run.model.predict(images).tolist() == [row["predicted"] for row in rows]
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored["metrics"]["test"]["quadratic_kappa"] == run.metrics.quadratic_kappa
    (tmp_path / "scans").mkdir()
    for number, image in enumerate(images[:3]):
        Image.fromarray(image).save(tmp_path / "scans" / f"{number}.png")
    header, *cells = csv.reader(predict(tmp_path / "run", str(tmp_path / "scans")).csv.splitlines())
    assert header[:2] == ["image", "predicted"]
    assert [row[1] for row in cells] == run.model.predict(images[:3]).tolist()
    assert isinstance(TrainedModel.load(tmp_path / "run").model, GradesHead)


def test_grades_start_from_a_public_model(dataset, tmp_path):
    """At hardly any budget the weights have the start's direction."""
    public = fv.run(study(trust="none"), dataset, directory=tmp_path / "public")
    start = {"model": {"start": str(tmp_path / "public")}}
    scarce = study(epsilon=1e-5, delta=1e-7, trust="server", units=180, rounds=6, **start)
    run = fv.run(scarce, dataset, directory=tmp_path / "run")
    own, found = (one.model.model.split(one.model.parameters)[3] for one in (public, run))
    assert own @ found / np.linalg.norm(own) / np.linalg.norm(found) > 0.99
    classes = fv.Dataset.from_arrays(
        np.zeros((8, 16, 16), np.uint8), np.arange(8) % 4, patients=np.arange(8), classes=GRADES
    )
    with pytest.raises(StudyError, match="'grades' as the task"):
        fv.run(study(**start), classes, directory=tmp_path / "other")


@pytest.mark.parametrize("trust", ["secure-aggregation", "none"])
def test_hospitals_release_an_evaluation_of_grades(dataset, tmp_path, trust):
    changes = {"trust": trust, "evaluation_share": 0.3, "epsilon": 200.0}
    run = fv.run(study(**changes), dataset, directory=tmp_path / "run")
    found, exact = run.record.released, run.metrics
    assert [one.name for one in found.per_class] == list(GRADES)
    low, high = found.quadratic_kappa_interval
    assert low <= found.quadratic_kappa <= high
    page = write_report(tmp_path / "run").read_text()
    assert f"{found.quadratic_kappa:.3f}" in page
    if trust == "none":  # each patient counts once, and has two images
        assert found.quadratic_kappa == pytest.approx(exact.quadratic_kappa, abs=1e-6)
        assert found.balanced_accuracy == pytest.approx(exact.balanced_accuracy, abs=1e-6)
        assert found.auroc == pytest.approx(exact.auroc, abs=0.03)


def test_an_evaluation_of_a_network_knows_the_order_of_its_classes(dataset, tmp_path):
    network = {"network": "cnn", "rounds": 2, "sampling_rate": 1.0, "trust": "none", "evaluation_share": 0.3}
    run = fv.run(
        fv.Study(name="network", image_size=16, delta=1e-3, **network), dataset, directory=tmp_path / "run"
    )
    assert len(run.record.released.model_extra["roc"]) == len(GRADES) - 1, "one curve per cut point"
    assert run.record.released.quadratic_kappa == pytest.approx(run.metrics.quadratic_kappa, abs=1e-6)


def test_averaging_and_own_models_train_grades(dataset, tmp_path):
    own = fv.run(study(personal_share=0.2, trust="site", units=180), dataset, directory=tmp_path / "own")
    assert own.metrics.quadratic_kappa > 0.6
    shares = {"personal_calibration_share": 0.1, "sites": 3}
    placed = fv.run(study(**shares), dataset, directory=tmp_path / "placed")
    assert placed.metrics.quadratic_kappa > 0.5
    assert all(one.personal.balanced_accuracy > 0.3 for one in placed.record.result.sites)
    averaged = fv.run(study(method="averaging", units=180), dataset, directory=tmp_path / "averaging")
    assert averaged.metrics.quadratic_kappa > 0.3


@pytest.mark.parametrize("trust", ["secure-aggregation", "none"])
def test_one_round_is_one_charge_and_a_model(dataset, drawn, tmp_path, trust):
    run = fv.run(study(method="one-shot", trust=trust, epsilon=60.0), dataset, directory=tmp_path / "run")
    assert [one.what for one in run.record.releases] == ["statistics"] * (trust != "none")
    assert run.metrics.quadratic_kappa > 0.6
    told = run.model.predict_proba(drawn[0][dataset.test])
    np.testing.assert_array_equal(
        TrainedModel.load(tmp_path / "run").predict_proba(drawn[0][dataset.test]), told
    )
    assert f"{run.metrics.quadratic_kappa:.3f}" in write_report(tmp_path / "run").read_text()


def test_what_grades_are_not_trained_with_is_refused_before_anything_runs():
    with pytest.raises(StudyError, match=r'data\.task = "classes"'):
        fv.Study(name="grades", source="phantom:grades", task="grades", epsilon="calibrated", max_epsilon=4.0)


def test_what_data_in_memory_hold_is_refused_like_a_study_files_task(dataset, tmp_path):
    with pytest.raises(StudyError, match=r'holds the task "grades".*calibrated'):
        fv.run(study(epsilon="calibrated", max_epsilon=4.0), dataset, directory=tmp_path / "run")


def test_the_phantom_has_five_grades_of_stated_frequency():
    found = load("phantom:grades", image_size=16, task="grades")
    assert found.classes == tuple(DRAWN)
    assert found.synthetic
    patients = found.patients[np.unique(found.patients, return_index=True)[1]]
    grades = found.labels[np.unique(found.patients, return_index=True)[1]]
    assert len(patients) == 1500
    np.testing.assert_allclose(np.bincount(grades) / 1500, list(DRAWN.values()), atol=0.03)
