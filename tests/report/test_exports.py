"""Exports compute what the model computes, and say what it is."""

import io
import json
import resource
import warnings
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from fedveil.cli.main import app
from fedveil.data import load
from fedveil.errors import InvalidValue, StudyError
from fedveil.learning import CentredHead, FindingsHead, GradesHead, NetworkModel
from fedveil.learning.encoders import Precomputed
from fedveil.learning.networks.whole import whole_head, whole_network
from fedveil.report import load as load_record
from fedveil.report.exports import bundle, graph
from fedveil.report.exports.bundle import write_bundle
from fedveil.report.exports.card import UNKNOWN, model_card, plain
from fedveil.report.exports.graph import TOLERANCE, probabilities_of, write_onnx
from fedveil.study import RunDirectory, Study, TrainedModel, run

STUDY = """
[study]
name = "export"
[data]
source = "{source}"
image_size = {size}
positive = {positive}
[model]
{model}
[training]
rounds = 2
[privacy]
trust = "{trust}"
[report]
examples = 2
"""


ILL = '["bacteria", "virus"]'


def study(source, model, size, positive="[]", trust="none"):
    """Without noise results are the same in every run."""
    return STUDY.format(source=source, model=model, size=size, positive=positive, trust=trust)


def train(folder, source, model, size=28, positive="[]"):
    study_ = Study.parse(study(source, model, size, positive))
    run(RunDirectory.create(folder, study_))
    return TrainedModel.load(folder)


@pytest.fixture(scope="module")
def x_rays(shared_data, tmp_path_factory):
    """Real chest X-rays: enough to train on, and some to compare on."""
    with np.load(shared_data / "kermany_cxr" / "kermany_cxr_64.npz") as file:
        rows = np.random.default_rng(0).permutation(len(file["labels"]))[:60]
        arrays = {name: file[name][rows] for name in ("images", "labels", "patient")}
        classes = file["classes"]
    path = tmp_path_factory.mktemp("x-rays") / "x_rays.npz"
    np.savez(path, classes=classes, **arrays)
    return path


@pytest.mark.parametrize(
    ("model", "size", "positive"),
    [
        ('features = "efficientnet-lite0"', 32, "[]"),
        ('features = "efficientnet-lite0@48+pixels@8"\nwhitened = false', 32, ILL),
        ('network = "cnn"', 16, ILL),
    ],
    ids=["default encoder", "two encoders", "cnn"],
)
def test_onnx_runtime_finds_the_same_probabilities_for_real_images(x_rays, tmp_path, model, size, positive):
    trained = train(tmp_path / "run", x_rays, model, size, positive)
    path = write_onnx(trained, tmp_path / "model.onnx")
    images = load(str(x_rays), image_size=size).images.read(np.arange(30))
    own = trained.probabilities(images)
    assert np.abs(probabilities_of(path.read_bytes(), images) - own).max() <= TOLERANCE
    assert np.ptp(own, axis=0).max() > 100 * TOLERANCE, "the images differ"
    assert str(tmp_path).encode() not in path.read_bytes()
    for count in (1, 7):
        assert probabilities_of(path.read_bytes(), images[:count]).shape == (count, len(trained.classes))
    with pytest.raises(StudyError, match="never overwrites"):
        write_onnx(trained, path)


@pytest.fixture(scope="module")
def finished(x_rays, tmp_path_factory):
    """A finished run of a linear head on pixels, which says who is responsible for it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    stated = '[governance]\npurpose = "tell <b>pneumonia</b> | from normal"\ncontact = "dpo@example.org"\n'
    run(
        RunDirectory.create(
            folder, Study.parse(study(x_rays, 'features = "pixels@8"', 16, trust="site") + stated)
        )
    )
    return folder


def test_a_bundle_has_the_required_files_and_its_program_computes_the_same(finished, x_rays, tmp_path):
    model, record = TrainedModel.load(finished), load_record(finished)
    folder = write_bundle(model, record, tmp_path / "bundle")
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    required = {
        *("version", "monai_version", "pytorch_version", "numpy_version", "optional_packages_version"),
        *("task", "description", "authors", "copyright", "network_data_format"),
    }
    of_tensors = {
        *("type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range"),
        *("is_patch_data", "channel_def"),
    }
    assert required <= set(metadata), "MONAI Bundle Specification, metadata.json"
    (image,), (pred,) = (metadata["network_data_format"][side].values() for side in ("inputs", "outputs"))
    assert set(image) == set(pred) == of_tensors
    assert pred["channel_def"] == dict(zip("012", model.classes, strict=True))
    images = load(str(x_rays), image_size=16).images.read(np.arange(20))
    assert list(images.shape[2:]) == image["spatial_shape"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is what MONAI reads, and deprecated in PyTorch
        program = torch.jit.load(io.BytesIO((folder / "models" / "model.ts").read_bytes()))
    with torch.inference_mode():
        found = program(torch.from_numpy(images)).numpy()
    assert np.abs(found - model.probabilities(images)).max() <= TOLERANCE
    weights = torch.load(folder / "models" / "model.pt", weights_only=True)
    assert set(weights) == set(program.state_dict())
    assert UNKNOWN in metadata["copyright"]
    with pytest.raises(StudyError, match="never overwrites"):
        write_bundle(model, record, folder)


@contextmanager
def short_files(most):
    """Writing a file beyond this number of bytes fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_bundle_that_cannot_be_written_whole_is_not_there(finished, tmp_path):
    with short_files(4096):
        said = CliRunner().invoke(app, ["export", str(finished), "--monai", str(tmp_path / "bundle")])
    assert said.exit_code == 2, said.output
    assert "repeat the command" in said.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_holds_no_path_of_the_machine_that_wrote_it(finished, tmp_path):
    folder = write_bundle(TrainedModel.load(finished), load_record(finished), tmp_path / "bundle")
    own = [str(Path(one.__file__).parent).encode() for one in (torch, graph)]
    for name in ("model.ts", "model.pt"):
        with zipfile.ZipFile(folder / "models" / name) as file:
            for entry in file.namelist():
                assert not any(path in file.read(entry) for path in own), entry


def test_nothing_is_written_if_one_target_exists_or_is_named_twice(finished, tmp_path):
    there, new = tmp_path / "there.md", tmp_path / "new"
    there.write_text("mine")
    for words in (["--card", str(there)], ["--card", str(new)]):
        said = CliRunner().invoke(app, ["export", str(finished), "--monai", str(new), *words])
        assert said.exit_code == 2, said.output
        assert list(tmp_path.iterdir()) == [there]


def test_a_name_with_brackets_is_printed_as_it_is(finished, tmp_path):
    path = tmp_path / "[" / "b].md"
    said = CliRunner().invoke(app, ["export", str(finished), "--card", str(path)])
    assert said.exit_code == 0, said.output
    assert f"wrote {path}" in said.output


@pytest.mark.parametrize("task", ["classes", "findings"])
def test_a_card_says_whether_frequencies_were_released(finished, task):
    model, record = TrainedModel.load(finished), load_record(finished)
    equal = 0.5 if task == "findings" else 1 / len(model.classes)
    model = replace(model, task=task, frequencies=np.full(len(model.classes), equal))
    text = model_card(record, model)
    assert "taken as equal; none were released" in text
    assert "as released" not in text
    assert "its frequency in training" not in text
    assert "as released" in model_card(record, replace(model, frequencies=model.frequencies * 0.9))


@pytest.mark.parametrize("task", ["classes", "findings"])
def test_the_facts_of_a_graph_say_whether_frequencies_were_released_and_how_its_task_decides(finished, task):
    model = TrainedModel.load(finished)
    equal = 0.5 if task == "findings" else 1 / len(model.classes)
    assumed = replace(model, task=task, frequencies=np.full(len(model.classes), equal))
    assert graph.facts(assumed)["frequencies_are"] == "assumed equal: none were released"
    released = graph.facts(replace(assumed, frequencies=assumed.frequencies * 0.9))
    assert released["frequencies_are"] == "released with noise"
    decided = {
        "classes": "the class with the largest",
        "findings": "each finding whose probability is larger",
    }
    assert released["decision"].startswith(decided[task])


def test_a_program_that_computes_something_else_is_not_written(finished, tmp_path, monkeypatch):
    model, record = TrainedModel.load(finished), load_record(finished)
    other = replace(model, parameters=-model.parameters)
    monkeypatch.setattr(bundle, "as_module", lambda _: graph.as_module(other))
    with pytest.raises(StudyError, match="the exported program differs"):
        write_bundle(model, record, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_card_states_what_the_run_holds_and_marks_the_rest(finished):
    model, record = TrainedModel.load(finished), load_record(finished)
    text = model_card(record, model)
    card = ModelCard(text)
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.eval_results[0].metric_value == pytest.approx(record.test.auroc, abs=1e-4)
    for title in (
        "Intended use",
        "Population",
        "Subgroups",
        "Input",
        "Output and threshold",
        "Limits",
        "Responsible",
    ):
        assert f"# {title}\n" in text
    assert "Contact: dpo@example.org" in text
    assert "tell &lt;b&gt;pneumonia&lt;/b&gt; \\| from normal" in text
    assert f"Legal basis: {UNKNOWN}" in text
    assert f"Regulatory status: {UNKNOWN}" in text
    assert record.digest in text
    assert plain("a\n# b") == "a \\# b"


@pytest.mark.parametrize("kind", [FindingsHead, GradesHead, CentredHead])
def test_every_linear_head_is_exported_on_embeddings(kind):
    """Each finding has a probability of its own; grades have means in order."""
    generator = np.random.default_rng(0)
    head, vectors = kind((6,), 3), generator.normal(size=(8, 6)).astype(np.float32)
    parameters = generator.normal(size=head.parameters)
    parameters[6:9] = 0.1, 0.5, 0.7  # their frequencies, or weights
    with torch.inference_mode():
        found = whole_head(Precomputed.of(6), head, parameters, 0)(torch.from_numpy(vectors)).numpy()
    assert np.abs(found - head.probabilities(parameters, vectors)).max() <= TOLERANCE


@pytest.mark.parametrize("findings", [False, True])
def test_a_network_is_exported_with_the_meaning_of_its_outputs(findings):
    model = NetworkModel("cnn", classes=3, channels=1, image_size=16, findings=findings)
    parameters = model.join(None, model.initial(), np.array([0.4, -1.0, 0.2]))
    images = np.random.default_rng(0).random((5, 1, 16, 16), dtype=np.float32)
    with torch.inference_mode():
        found = whole_network(model, parameters)(torch.from_numpy(images)).numpy()
    own = model.probabilities(parameters, SimpleNamespace(read=lambda rows: images[rows]), len(images))
    assert np.abs(found - own).max() <= TOLERANCE


def test_the_command_writes_what_it_is_told_and_refuses_what_it_cannot(finished, tmp_path, x_rays):
    said = CliRunner().invoke(app, ["export", str(finished), "--card", str(tmp_path / "card.md")])
    assert said.exit_code == 0, said.output
    assert (tmp_path / "card.md").read_text().startswith("---\n")
    for words in (["--card", str(tmp_path / "card.md")], []):
        assert CliRunner().invoke(app, ["export", str(finished), *words]).exit_code == 2
    other = train(tmp_path / "other", x_rays, 'features = "scattering"\nwhitened = false', 16)
    with pytest.raises(InvalidValue, match="features are scattering"):
        write_onnx(other, tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()
