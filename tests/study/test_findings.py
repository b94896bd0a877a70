"""A study of several findings per image: from arrays to a report and a model that predicts, under every trust."""

import csv

import numpy as np
import pytest

import fedveil as fv
from fedveil.errors import StudyError
from fedveil.report import write_report
from fedveil.study.results.trained_model import TrainedModel, predict

FINDINGS = ("left", "right", "both bright")


@pytest.fixture
def pixels():
    """Images (400, 16, 16) and their findings."""
    return draw()


@pytest.fixture
def dataset(pixels):
    """The images of two hundred patients; a tenth of the labels unknown."""
    images, labels = pixels
    seen = np.where(np.random.default_rng(1).random(labels.shape) < 0.1, -1, labels)
    return fv.Dataset.from_arrays(
        images,
        seen,
        patients=np.arange(200).repeat(2),
        classes=FINDINGS,
        task="findings",
        unknown_labels="unknown",
        split=np.where(np.arange(200) % 4 == 0, "test", "train").repeat(2),
    )


def draw():
    """Blobs on a noisy ground: at the left, at the right, and a bright image."""
    generator = np.random.default_rng(0)
    labels = (generator.random((200, 3)) < [0.4, 0.3, 0.2]).astype(int).repeat(2, axis=0)
    images = generator.normal(80, 12, (400, 16, 16))
    images[:, 4:11, 2:6] += 60 * labels[:, 0, None, None]
    images[:, 4:11, 10:14] += 60 * labels[:, 1, None, None]
    images += 40 * labels[:, 2, None, None]
    return np.clip(images, 0, 255).astype(np.uint8), labels


def study(**changes):
    return fv.Study(
        name="findings", features="pixels", image_size=16, delta=1e-3, **({"epsilon": 20.0} | changes)
    )


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "server", "none"])
def test_from_arrays_to_a_report_and_predictions(dataset, pixels, tmp_path, trust):
    run = fv.run(study(trust=trust), dataset, directory=tmp_path / "run")
    assert run.study.privacy.statistics_share == 0.05
    assert run.metrics.auroc > 0.85
    assert [one.name for one in run.metrics.per_class] == list(FINDINGS)
    assert run.metrics.auroc_interval[0] < run.metrics.auroc <= run.metrics.auroc_interval[1]
    assert run.metrics.auroc_noise >= 0
    page = write_report(tmp_path / "run").read_text()
    assert all(name in page for name in FINDINGS)
    with (tmp_path / "run" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(dataset.test)
    assert {row["label:left"] for row in rows} == {"", "0", "1"}
    assert {row["predicted:left"] for row in rows} == {"0", "1"}
    images = pixels[0][dataset.test]
    told = np.array([[float(row[f"prob:{name}"]) for name in FINDINGS] for row in rows])
    np.testing.assert_allclose(run.model.predict_proba(images), told, atol=1e-6)
    called = run.model.predict(images)
    np.testing.assert_array_equal(
        called, [[row[f"predicted:{name}"] == "1" for name in FINDINGS] for row in rows]
    )


def test_a_stored_model_classifies_files(dataset, pixels, tmp_path):
    fv.run(study(), dataset, directory=tmp_path / "run")
    from PIL import Image

    (tmp_path / "scans").mkdir()
    for number, image in enumerate(pixels[0][:3]):
        Image.fromarray(image).save(tmp_path / "scans" / f"{number}.png")
    found = predict(tmp_path / "run", str(tmp_path / "scans"))
    header, *rows = csv.reader(found.csv.splitlines())
    assert header == ["image", *(f"{kind}:{name}" for kind in ("predicted", "prob") for name in FINDINGS)]
    assert len(rows) == 3
    assert TrainedModel.load(tmp_path / "run").task == "findings"


@pytest.mark.parametrize("trust", ["secure-aggregation", "none"])
def test_hospitals_release_an_evaluation_of_every_finding(dataset, tmp_path, trust):
    changes = {"trust": trust, "evaluation_share": 0.3, "epsilon": 200.0}
    run = fv.run(study(**changes), dataset, directory=tmp_path / "run")
    found, exact = run.record.released, run.metrics
    assert [one.name for one in found.per_class] == list(FINDINGS)
    assert found.auroc_interval[0] <= found.auroc <= found.auroc_interval[1]
    assert "noisy" in write_report(tmp_path / "run").read_text()
    if trust == "none":  # ten bins, every patient once
        assert found.auroc == pytest.approx(exact.auroc, abs=0.03)
        assert found.balanced_accuracy == pytest.approx(exact.balanced_accuracy, abs=0.03)


@pytest.mark.parametrize("trust", ["secure-aggregation", "none"])
def test_hospitals_release_findings_by_subgroup(pixels, tmp_path, trust):
    images, labels = pixels
    sexes = np.array(["F", "M"])[np.arange(200) // 4 % 2].repeat(2)
    dataset = fv.Dataset.from_arrays(
        images,
        labels,
        patients=np.arange(200).repeat(2),
        classes=FINDINGS,
        task="findings",
        split=np.where(np.arange(200) % 4 == 0, "test", "train").repeat(2),
        attributes={"sex": sexes},
    )
    changes = {"trust": trust, "subgroup": "sex", "subgroup_share": 0.3, "epsilon": 200.0}
    run = fv.run(study(**changes), dataset, directory=tmp_path / "run")
    found = {one.group: one for one in run.record.released.subgroups}
    assert list(found) == ["female", "male", "other or unknown"]
    assert "By subgroup of held-out patients" in write_report(tmp_path / "run").read_text()
    if trust == "none":
        assert [one.units for one in found.values()] == pytest.approx([25, 25, 0], abs=1e-6)
        assert run.record.released.units == pytest.approx(50)
        shares = [found["female"].balanced_accuracy, found["male"].balanced_accuracy]
        assert min(shares) <= run.record.released.balanced_accuracy <= max(shares)


@pytest.mark.parametrize("trust", ["secure-aggregation", "none"])
def test_one_round_is_one_charge_and_a_model(dataset, pixels, tmp_path, trust):
    run = fv.run(study(method="one-shot", trust=trust, epsilon=60.0), dataset, directory=tmp_path / "run")
    private = trust != "none"
    assert [one.what for one in run.record.releases] == ["statistics"] * private
    assert run.metrics.auroc > 0.8
    assert run.metrics.balanced_accuracy > 0.65
    told = run.model.predict_proba(pixels[0][dataset.test])
    stored = TrainedModel.load(tmp_path / "run")
    np.testing.assert_array_equal(stored.predict_proba(pixels[0][dataset.test]), told)
    assert all(name in write_report(tmp_path / "run").read_text() for name in FINDINGS)
    shares = {"calibration_share": 0.1, "evaluation_share": 0.2}
    more = fv.run(study(method="one-shot", trust=trust, **shares), dataset, directory=tmp_path / "more")
    found = [one.what for one in more.record.releases]
    assert found == ["statistics", "calibration", "evaluation"] * private
    assert more.record.result.decision.weight > 0


def test_what_findings_are_not_trained_with_is_refused_before_anything_runs():
    with pytest.raises(StudyError, match="findings"):
        fv.Study(
            name="findings",
            source="phantom:findings",
            task="findings",
            epsilon="calibrated",
            max_epsilon=8.0,
        )


def test_the_phantom_has_five_findings_of_stated_frequency():
    from fedveil.data import load
    from fedveil.data.phantom.findings import FINDINGS as DRAWN

    found = load("phantom:findings", image_size=16, task="findings")
    assert found.classes == tuple(DRAWN)
    assert found.synthetic
    np.testing.assert_allclose((found.labels == 1).mean(axis=0), list(DRAWN.values()), atol=0.04)
