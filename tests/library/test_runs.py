"""Six lines that people write, and what they rely on."""

import gc
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import fedveil as fv
from fedveil.planning import make_plan
from fedveil.privacy import verify_ledger
from fedveil.study import Study

SMALL = {"features": "pixels", "image_size": 28, "rounds": 5}


@pytest.fixture(scope="module")
def data(x_rays):
    return fv.Dataset.from_arrays(x_rays.images, x_rays.labels, patients=x_rays.patients)


def test_the_six_lines(x_rays, here, tmp_path):
    """As the documentation has them, on real images; with pixels for features, which take no time."""
    data = fv.Dataset.from_arrays(x_rays.images, x_rays.labels, patients=x_rays.patients)
    run = fv.run(fv.Study(epsilon=1.0, features="pixels"), data)
    assert run.metrics.auroc > 0.8
    assert 0.9 < run.guarantee.epsilon <= 1.0
    assert (run.guarantee.unit, run.guarantee.trust) == ("patient", "secure-aggregation")
    new_images = torch.from_numpy(x_rays.images[:20])[:, None]
    assert set(run.model.predict(new_images)) <= {"normal", "pneumonia"}
    assert fv.plan(fv.Study(epsilon=1.0, features="pixels"), data).guarantee.epsilon <= 1.0
    measured = fv.sweep(fv.Study(**SMALL), data, epsilon=[1.0, math.inf], trust=["server"])
    assert [one.epsilon_spent <= 1 for one in measured] == [True, False]
    assert fv.load(run.directory).metrics.auroc == run.metrics.auroc
    classifier = fv.PrivateLinearClassifier(epsilon=3.0)
    classifier.fit(x_rays.embeddings, x_rays.labels, groups=x_rays.patients)
    assert classifier.score(x_rays.embeddings, x_rays.labels) > 0.75
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64 * 64, 2))
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    assert fv.PrivateGradients(model, loss, clip_norm=1.0).clip_norm == 1.0
    assert not list(here.iterdir())


def test_a_temporary_run_lasts_as_long_as_its_object(data):
    run = fv.run(fv.Study(**SMALL), data)
    directory = run.directory
    assert (directory / "report.html").is_file()
    del run
    gc.collect()
    assert not directory.parent.exists()


def test_a_named_run_stays_and_its_ledgers_hold_what_it_says(data, tmp_path):
    run = fv.run(fv.Study(**SMALL, sites=3), data, directory=tmp_path / "study")
    ledgers = [verify_ledger(tmp_path / "study" / "ledgers" / f"site-{number}.jsonl") for number in (1, 2, 3)]
    assert max(state.spent() for state in ledgers) == run.guarantee.epsilon
    again = fv.load(str(tmp_path / "study"))
    assert np.array_equal(again.model.parameters, run.model.parameters)
    assert again.study.privacy == fv.Study(**SMALL).privacy
    with pytest.raises(fv.StudyError, match="finished run"):
        fv.run(fv.Study(**SMALL), data, directory=tmp_path / "study")


def test_a_run_is_what_the_command_line_makes_of_the_same_file(x_rays, tmp_path):
    """One path: the same data, study and result but for noise, which there is none of here."""
    np.savez(
        tmp_path / "memory.npz",
        images=x_rays.images,
        labels=x_rays.labels,
        patient=x_rays.patients,
    )
    study = fv.Study(**SMALL, trust="none")
    dataset = fv.Dataset.from_arrays(x_rays.images, x_rays.labels, patients=x_rays.patients)
    first = fv.run(study, dataset)
    second = fv.run(study, tmp_path / "memory.npz")
    study_file = tmp_path / "study.toml"
    study_file.write_text(fv.Study(**SMALL, trust="none", source="memory.npz").to_toml())
    third = fv.run(study_file)
    assert first.metrics.auroc == second.metrics.auroc == third.metrics.auroc
    assert first.metrics.brier == second.metrics.brier == third.metrics.brier
    assert np.array_equal(first.model.parameters, third.model.parameters)
    assert first.guarantee == fv.Guarantee(math.inf, 1e-5, "patient", "none")


def test_a_run_that_was_stopped_goes_on(data, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    class Listener:
        def stage(self, name, total, done=0):
            pass

        def advance(self, count=1, note=""):
            if "epsilon" in note:
                raise Stop

    study, folder = fv.Study(**SMALL), tmp_path / "study"
    with pytest.raises(Stop):
        fv.run(study, data, directory=folder, progress=Listener())
    assert fv.run(study, data, directory=folder, resume=True).metrics.n == len(data.test)


@pytest.mark.parametrize("embedded", [False, True])
def test_a_run_that_was_stopped_knows_what_it_took_from_its_data(x_rays, tmp_path, monkeypatch, embedded):
    """Channels, classes, window and vector length are kept; the study that is given leaves them open."""
    if embedded:
        data = fv.Dataset.from_features(x_rays.embeddings, x_rays.labels)
        study = fv.Study(rounds=5)
    else:
        data = fv.Dataset.from_arrays(x_rays.images.astype(np.int16), x_rays.labels, window=(128, 256))
        study = fv.Study(**SMALL)
    folder = tmp_path / "study"
    with monkeypatch.context() as patch:
        patch.setattr("fedveil.study.runner.train", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            fv.run(study, data, directory=folder)
    run = fv.run(study, data, directory=folder, resume=True)
    kept = run.study
    assert (kept.data.channels, kept.data.classes) == (1, ("normal", "pneumonia"))
    assert kept.model.dimension == (256 if embedded else None)
    assert kept.data.window == ("file" if embedded else (128.0, 256.0))
    again = fv.run(kept, data)
    assert again.study.data == kept.data


def _interrupted(*_args, **_kwargs):
    raise KeyboardInterrupt


def test_the_model_reads_images_by_the_window_of_its_data(x_rays):
    """Stored values that only a window makes shades of; the study names none."""
    shifted = x_rays.images.astype(np.int16) - 1000
    data = fv.Dataset.from_arrays(shifted, x_rays.labels, patients=x_rays.patients, window=(-872.5, 255))
    model = fv.run(fv.Study(**SMALL), data).model
    assert model.window == (-872.5, 255.0)
    same = fv.Dataset.from_arrays(x_rays.images, x_rays.labels, patients=x_rays.patients)
    read = [one.images.read(np.arange(5)) for one in (data, same)]
    assert np.allclose(*read, atol=1e-6)
    assert model.predict_proba(shifted[:5]).shape == (5, 2)


def test_a_study_brings_data_in_memory_to_its_channels(x_rays):
    colour = np.repeat(x_rays.images[..., None], 3, axis=3)
    data = fv.Dataset.from_arrays(colour, x_rays.labels, patients=x_rays.patients)
    run = fv.run(fv.Study(**SMALL, channels=1), data)
    assert run.model.channels == run.study.data.channels == 1
    with pytest.raises(fv.StudyError, match="the study's are a, b"):
        fv.run(fv.Study(**SMALL, classes=("a", "b")), data)


def test_a_mistake_leaves_no_directory(data, tmp_path):
    few = data.subset(np.concatenate([data.train[:20], data.test[:5]]))
    with pytest.raises(fv.FedveilError):
        fv.run(fv.Study(**SMALL, sites=30), few, directory=tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_data_in_memory_cannot_be_found_again_by_a_file(data, tmp_path):
    fv.run(fv.Study(**SMALL), data, directory=tmp_path / "study")
    with pytest.raises(fv.DataError, match='the source is "memory"'):
        make_plan(Study.load(tmp_path / "study" / "study.toml"))


@pytest.mark.parametrize(
    "settings",
    [
        {"positive": ("pneumonia",)},
        {"test_fraction": 0.5},
        {"allow_patient_overlap": True},
        {"separator": "|"},
        {"columns": {"label": "dx"}},
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(data, settings):
    with pytest.raises(fv.StudyError, match=r"Dataset\.from_arrays"):
        fv.run(fv.Study(**SMALL, **settings), data)


def test_hospitals_that_the_data_names_are_kept(x_rays):
    sites = np.array(["north", "south", "west"])[x_rays.patients % 3]
    data = fv.Dataset.from_arrays(x_rays.images, x_rays.labels, patients=x_rays.patients, sites=sites)
    run = fv.run(fv.Study(**SMALL), data)
    assert [site.name for site in run.record.sites] == ["north", "south", "west"]


def test_a_notebook_shows_a_summary_with_names_escaped(x_rays, tmp_path):
    study = fv.Study(**SMALL, name="chest")
    evil = np.where(x_rays.labels == "normal", "<script>alert(1)</script>", "b")
    data = fv.Dataset.from_arrays(x_rays.images, evil, name="<b>")
    shown = fv.run(study, data, directory=tmp_path / "<b>")._repr_html_()
    assert "<script>" not in shown
    assert "<b>" not in shown
    for words in ("epsilon", "AUROC", "chest", "data:image/svg+xml;base64,", "names no patients"):
        assert words in shown


def test_a_model_says_the_same_of_an_image_however_it_is_given(data, x_rays):
    model = fv.run(fv.Study(**SMALL), data).model
    some = x_rays.images[:5]
    given = model.predict_proba(some)
    colour = np.repeat(some[..., None], 3, axis=3)
    tensor = torch.from_numpy(some)[:, None].float() / 255
    assert np.allclose(model.predict_proba(colour), given, atol=1e-4)
    assert np.allclose(model.predict_proba(tensor), given, atol=1e-6)
    assert model.predict_proba(some[:0]).shape == (0, 2)
    assert model.predict(some).tolist() == [model.predict(one[None])[0] for one in some]


def test_nothing_judged_is_said(data):
    run = fv.run(fv.Study(**SMALL), data)
    nothing = run.record.result.metrics.model_copy(update={"test": None, "released": None})
    result = run.record.result.model_copy(update={"metrics": nothing})
    bare = fv.Run(run.directory, replace(run.record, result=result, predictions=None))
    with pytest.raises(fv.StudyError, match="holds no metrics"):
        bare.metrics  # noqa: B018
    assert "AUROC" not in bare._repr_html_().partition("<img")[0]
