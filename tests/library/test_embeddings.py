"""Studies of embeddings: the same guarantee, and no image anywhere."""

import numpy as np
import pytest
from typer.testing import CliRunner

import fedveil as fv
from fedveil.cli import app
from fedveil.data import Dataset
from fedveil.deploy.offer import Offer
from fedveil.errors import InvalidValue
from fedveil.study.pipeline import make_task, model_of
from fedveil.study.prepare import pinned
from fedveil.study.progress import Silent
from fedveil.study.results.trained_model import TrainedModel


@pytest.fixture(scope="module")
def data(x_rays):
    return Dataset.from_features(x_rays.embeddings, x_rays.labels, patients=x_rays.patients)


def test_a_model_of_embeddings_is_trained_saved_and_predicts(data, x_rays, tmp_path):
    run = fv.run(fv.Study(epsilon=3.0), data, directory=tmp_path / "study")
    assert run.metrics.auroc > 0.8
    assert run.study.model.features == "precomputed"
    model = TrainedModel.load(tmp_path / "study")
    assert model.dimension == x_rays.embeddings.shape[1]
    said = model.predict(x_rays.embeddings[data.test])
    assert (said == x_rays.labels[data.test]).mean() == pytest.approx(run.metrics.accuracy)
    with pytest.raises(InvalidValue, match=r"takes \(k, 256\)"):
        model.predict(x_rays.embeddings[:, :5])


def test_the_command_line_takes_a_file_of_embeddings(x_rays, here):
    np.savez("e.npz", features=x_rays.embeddings, labels=x_rays.labels, patient=x_rays.patients)
    (here / "study.toml").write_text('[data]\nsource = "e.npz"\n[model]\nfeatures = "precomputed"\n')
    checked = CliRunner().invoke(app, ["data", "check", "e.npz"])
    assert "256 numbers" in checked.output
    for arguments in (["plan"], ["run", "--out", "run"], ["sweep", "--epsilon", "1", "--trust", "server"]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    assert fv.load("run").metrics.auroc > 0.75
    refused = CliRunner().invoke(app, ["predict", "run", "."])
    assert refused.exit_code == 2
    assert "takes embeddings" in refused.stderr
    assert not (here / "run" / "examples.npz").exists()


@pytest.mark.parametrize("method", ["gradient", "one-shot"])
def test_a_patients_bound_follows_from_that_patient_alone(method):
    """Others may be huge, tiny or many: what one patient adds to each sum stays within its bound, and is the same."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(40, 6))
    patients, labels = np.arange(40) // 2, np.arange(40) // 2 % 2
    study = fv.Study(features="precomputed", method=method, dimension=6)

    def sums(scale, rows):
        scaled = features * np.where(patients == 0, 1.0, scale)[:, None]
        dataset = Dataset.from_features(
            scaled[rows], labels[rows], patients=patients[rows], split=["train"] * len(rows)
        )
        learner = make_task(study, dataset, Silent()).learner(np.arange(len(rows)))
        parameters = np.full(learner._model.parameters, 0.1)
        return learner.statistics(np.empty(0)), learner.contribution(parameters, clip_norm=0.2)

    everyone, others = np.arange(40), np.arange(2, 40)
    for scale in (1e-5, 1.0, 1e5):
        moved = [a - b for a, b in zip(sums(scale, everyone), sums(scale, others), strict=True)]
        usual = [a - b for a, b in zip(sums(1.0, everyone), sums(1.0, others), strict=True)]
        assert np.linalg.norm(moved[0]) <= 1 + 1e-9
        assert np.linalg.norm(moved[1]) <= 0.2 * (1 + 1e-9)
        for one, other in zip(moved, usual, strict=True):
            assert np.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"network": "cnn"}, "trained on pixels"),
        ({"whitened": True}, "model.whitened needs the encoder"),
        ({"views": 2}, "views of frozen features were removed"),
    ],
)
def test_what_needs_pixels_is_refused(keywords, words):
    with pytest.raises(fv.StudyError, match=words):
        fv.Study(features="precomputed", **keywords)


def test_a_dimension_without_embeddings_is_refused():
    with pytest.raises(fv.StudyError, match=r"model\.dimension is for"):
        fv.Study(dimension=5)


def test_embeddings_and_a_study_of_pixels_do_not_go_together(data):
    with pytest.raises(fv.StudyError, match="holds embeddings"):
        fv.run(fv.Study(features="pixels"), data)


def test_images_and_a_study_of_embeddings_do_not_go_together(x_rays):
    images = Dataset.from_arrays(x_rays.images, x_rays.labels)
    with pytest.raises(InvalidValue, match=r"model\.dimension|precomputed"):
        fv.run(fv.Study(features="precomputed"), images)


def test_hospitals_derive_the_same_terms_from_an_offer_that_names_the_length(data):
    """A hospital has no embeddings of the coordinator's; the length travels in the study."""
    study = fv.Study(features="precomputed", sites=3)
    offer = Offer.make(study, ("a", "b", "c"), data)
    again = Offer.from_dict(offer.to_dict())
    assert again.study.model.dimension == 256
    assert again.agreement().digest == offer.agreement().digest
    assert again.agreement().releases[0].dimension == model_of(pinned(study, data), data).statistics_size


def test_embeddings_of_another_encoder_are_refused(data):
    with pytest.raises(InvalidValue, match="embeddings of 256 numbers"):
        make_task(fv.Study(features="precomputed", dimension=512), data, Silent())


def test_a_coordinator_without_data_names_the_length():
    empty = Dataset.empty(("a", "b"), channels=1, image_size=64)
    with pytest.raises(InvalidValue, match=r"set model\.dimension"):
        model_of(fv.Study(features="precomputed"), empty)
    assert len(make_task(fv.Study(features="precomputed", dimension=9), empty, Silent()).features) == 0
