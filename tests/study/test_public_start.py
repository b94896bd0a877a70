"""Studies that start from a public model: at both ends of the budget, and what cannot be a start."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.study.conftest import write_images

from fedveil.errors import FedveilError, StudyError
from fedveil.learning import ClassStatistics
from fedveil.planning import make_plan
from fedveil.study import RunDirectory, Study, TrainedModel, run
from fedveil.study.prepare import resolve
from fedveil.study.results.public_start import load_start, start_hash
from fedveil.study.steps import _certain

Make = Callable[..., Study]


@pytest.fixture
def public(study: Make, tmp_path: Path) -> Path:
    """A model of other patients of the same kind, without privacy."""
    source = write_images(tmp_path / "public.npz", seed=8)
    run(
        RunDirectory.create(
            tmp_path / "public", study(data={"source": str(source)}, privacy={"trust": "none"})
        )
    )
    return tmp_path / "public"


def weights(folder: Path) -> np.ndarray:
    model = TrainedModel.load(folder)
    return model.model.split(model.parameters)[3]


def test_at_hardly_any_budget_the_model_is_the_start_and_without_noise_it_is_the_plain_one(
    study: Make, public: Path, tmp_path: Path
) -> None:
    units = {"rounds": 6, "units": 112}
    scarce = study(
        model={"start": str(public)},
        training=units,
        privacy={"epsilon": 1e-5, "delta": 1e-7, "trust": "server"},
    )
    result = run(RunDirectory.create(tmp_path / "scarce", scarce))
    one, other = weights(tmp_path / "scarce"), weights(public)
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.99
    assert result["metrics"]["test"]["auroc"] > 0.95

    found = TrainedModel.load(public)
    random = np.random.default_rng(0).normal(size=found.parameters.shape)
    centre, frequencies, shift, trained = found.model.split(found.parameters)
    useless = np.concatenate([-centre, frequencies, shift, random[: len(trained)]])
    (tmp_path / "useless").mkdir()
    replace(found, parameters=useless).save(tmp_path / "useless")
    plain = study(privacy={"trust": "none"})
    run(RunDirectory.create(tmp_path / "plain", plain))
    ample = study(privacy={"trust": "none"}, model={"start": str(tmp_path / "useless")})
    run(RunDirectory.create(tmp_path / "ample", ample))
    models = [TrainedModel.load(tmp_path / name) for name in ("plain", "ample")]
    np.testing.assert_allclose(models[1].parameters, models[0].parameters, rtol=1e-5, atol=1e-6)


def test_plan_result_and_model_name_the_start_by_its_hash(study: Make, public: Path, tmp_path: Path) -> None:
    described = json.loads((public / "model.json").read_text())
    described["classes"] = ["air", "fluid"]
    (public / "model.json").write_text(json.dumps(described))
    settings = study(model={"start": "public"})
    settings = resolve(settings, tmp_path)
    found = start_hash(public)
    notes = make_plan(settings).to_dict()["notes"]
    assert any(found in note and "covers the hospitals' patients only" in note for note in notes)
    assert any('"left" as "air"' in note for note in notes)
    assert any("without model.start" in note for note in notes)
    directory = RunDirectory.create(tmp_path / "out", settings)
    result = run(directory)
    assert any(found in note for note in result["notes"])
    assert json.loads((tmp_path / "out" / "model.json").read_text())["start"] == found
    assert TrainedModel.load(tmp_path / "out").start == found
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["start"] == found
    assert directory.study().model.start_sha256 == found


def test_a_start_that_changed_is_refused_on_resume(study: Make, public: Path, tmp_path: Path) -> None:
    settings = study(model={"start": str(public)})
    directory = RunDirectory.create(tmp_path / "out", settings)

    class Dies:
        def stage(self, name: str, total: int, done: int = 0) -> None:
            if name == "training":
                raise KeyboardInterrupt

        def advance(self, count: int = 1, note: str = "") -> None: ...

    with pytest.raises(KeyboardInterrupt):
        run(directory, progress=Dies())
    RunDirectory.reopen(tmp_path / "out", settings)  # the same settings, before its hash was filled in
    model = TrainedModel.load(public)
    replace(model, parameters=model.parameters + 1e-3).save(public)
    with pytest.raises(StudyError, match="the study began with"):
        run(RunDirectory.reopen(tmp_path / "out"))


@pytest.mark.parametrize(
    ("table", "changes", "said"),
    [
        ("data", {"image_size": 12}, "with 16 as data.image_size"),
        ("model", {"features": "scattering"}, "with 'pixels' as model.features"),
        ("model", {"whitened": False}, "model.whitened"),
        ("data", {"window": [100, 80]}, "data.window"),
    ],
)
def test_a_start_for_other_inputs_is_refused(
    study: Make, public: Path, tmp_path: Path, table: str, changes: dict[str, object], said: str
) -> None:
    settings = study(model={"start": str(public)}).with_changes({table: changes})
    with pytest.raises(FedveilError, match=said):
        run(RunDirectory.create(tmp_path / "out", settings))
    assert not list((tmp_path / "out" / "ledgers").glob("*"))


def test_a_start_with_other_classes_channels_or_a_network_is_refused(
    study: Make, public: Path, tmp_path: Path
) -> None:
    model = TrainedModel.load(public)
    settings = study(model={"start": str(public)})
    more = replace(model, classes=("a", "b", "c"), frequencies=np.full(3, 1 / 3))
    more = replace(more, parameters=np.zeros(more.model.parameters))
    colour = replace(model, channels=3)
    colour = replace(colour, parameters=np.zeros(colour.model.parameters))
    network = replace(model, network="cnn", features="none")
    network = replace(network, parameters=np.zeros(network.model.parameters))
    for changed, said in ((more, "number of classes"), (colour, "channels"), (network, "model.network")):
        changed.save(public)
        with pytest.raises(StudyError, match=said):
            make_plan(settings)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slices": 4}, "data.slices"),
        ({"axis": "coronal"}, "data.axis"),
        ({"spacing": (2.0, 1.0)}, "data.spacing"),
    ],
)
def test_a_start_from_volumes_that_were_cut_otherwise_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """A network for volumes has as many weights for any number of slices."""
    text = '[data]\nsource = "phantom:volumes"\nslices = 8\nimage_size = 16\n'
    text += f'[model]\nfeatures = "none"\nnetwork = "cnn3d"\nstart = "{tmp_path}"'
    settings, data = Study.parse(text), SimpleNamespace(images=SimpleNamespace(channels=1))
    data.classes, data.task = ("clear", "nodule"), "classes"
    model = TrainedModel.of(settings, classes=data.classes, channels=1, parameters=np.zeros(0))
    whole = replace(model, **changes)
    replace(whole, parameters=np.zeros(whole.model.parameters)).save(tmp_path)
    with pytest.raises(StudyError, match=said):
        load_start(settings, data)


def test_a_folder_without_a_whole_model_is_refused(study: Make, public: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"a start must be a folder with model\.json"):
        make_plan(study(model={"start": str(tmp_path / "nowhere")}))
    model = TrainedModel.load(public)
    for place in (0, -1):
        broken = model.parameters.copy()
        broken[place] = np.inf
        replace(model, parameters=broken).save(public)
        with pytest.raises(FedveilError):
            make_plan(study(model={"start": str(public)}))
    (public / "model.safetensors").write_bytes(b"none")
    with pytest.raises(StudyError, match="damaged"):
        make_plan(study(model={"start": str(public)}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"network": "cnn"}, "training": {"optimizer": "adam"}}, "gradient descent, whose noise"),
        ({"model": {"network": "cnn"}, "training": {"weight_decay": 0.1}}, "gradient descent, whose noise"),
        (
            {"model": {"network": "cnn"}, "training": {"method": "averaging"}},
            'needs training.method "gradient"',
        ),
        ({"training": {"method": "one-shot"}}, 'needs training.method "gradient"'),
        ({"training": {"method": "averaging"}}, 'needs training.method "gradient"'),
        ({"training": {"momentum": 0.5}}, "plain gradient descent"),
        ({"training": {"optimizer": "adam"}}, "plain gradient descent"),
        ({"privacy": {"epsilon": "calibrated", "max_epsilon": 8}}, "does not know what model.start brings"),
    ],
)
def test_settings_that_a_start_cannot_go_with(changes: dict[str, dict[str, object]], said: str) -> None:
    for start in ({"start": "runs/public"}, {"start_sha256": "0" * 64}):
        tables = changes | {"model": start | changes.get("model", {})}
        with pytest.raises(StudyError, match=said):
            Study().with_changes(tables)


def test_a_number_of_units_that_is_noise_makes_no_displacement_look_long(study: Make) -> None:
    """Divided by 1e6 units that are noise, gradients of 112 are short, whatever the step size makes of them."""
    vector = np.tile([0.0, 0.0, 0.3 * 1e5], 2)
    for variance, low, high in ((0.0, 1.0, 1.0), (0.09 * 1e9, 0.5, 0.9), (0.09 * 1e11, 0.0, 1e-5)):
        assert low <= _certain(study(), ClassStatistics.from_released(vector, 2, variance)) <= high
    stated = study(training={"units": 112})
    assert _certain(stated, ClassStatistics.from_released(vector, 2, 0.09 * 1e11)) == 1.0
