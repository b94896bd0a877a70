"""A network of one's own as a whole study: the example of the documentation, run as it stands."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import PROJECT
from tests.study.conftest import write_images

from fedveil.errors import FedveilError
from fedveil.study import RunDirectory, Study, TrainedModel, predict, run
from fedveil.study.prepare import prepare
from fedveil.study.results.public_start import load_start, start_matches

CLI = "from fedveil.cli.main import app; app()"
STUDY = """
[data]
source = "few.npz"
image_size = 16
sites.count = 2
[training]
rounds = 2
[privacy]
trust = "server"
epsilon = 20.0
delta = 1e-3
[federation]
max_units = 100
"""


def documented() -> tuple[str, str]:
    """The function and the study's table in docs/networks.md."""
    page = (PROJECT / "docs" / "networks.md").read_text(encoding="utf-8")
    section = page.split("### A network of your own")[1]
    code, table = (re.search(rf"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("python", "toml"))
    assert code is not None
    assert table is not None
    return code[1], table[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The documented example with twenty patients."""
    code, table = documented()
    assert len(code.splitlines()) <= 12
    write_images(tmp_path / "few.npz", patients=20)
    (tmp_path / "clinic.py").write_text(code)
    (tmp_path / "study.toml").write_text(table + STUDY)
    return tmp_path


def fedveil(folder: Path, *words: str, path: str = ".") -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", CLI, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_documented_example_trains_and_reports_and_predicts_with_its_function_alone(folder):
    # An empty first entry of sys.path is the working directory under -c: the function has to be found elsewhere.
    (folder / "packages").mkdir()
    (folder / "clinic.py").rename(folder / "packages" / "clinic.py")
    path = str(folder / "packages")
    code, said = fedveil(folder, "run", "study.toml", "--out", "out", path=path)
    assert code == 0, said
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    images = folder / "image.png"
    _image(images)
    code, said = fedveil(folder, "predict", "out", str(images))
    assert code == 2
    assert "clinic cannot be imported here" in said
    assert "PYTHONPATH" in said
    assert "Traceback" not in said


def _image(path: Path) -> None:
    from PIL import Image

    Image.new("L", (16, 16), 90).save(path)


@pytest.fixture
def trained(folder, monkeypatch):
    """A run in this process, with the function importable."""
    monkeypatch.syspath_prepend(str(folder))
    study = Study.load(folder / "study.toml").with_changes({"data": {"source": str(folder / "few.npz")}})
    result = run(RunDirectory.create(folder / "out", study))
    yield folder, result
    sys.modules.pop("clinic", None)


def test_it_is_priced_evaluated_and_loaded_from_python(trained):
    folder, result = trained
    assert 0 < result["guarantee"]["epsilon"] <= 20
    with (folder / "out" / "predictions.csv").open() as file:
        said = [float(row["prob:right"]) for row in csv.DictReader(file)]
    _image(folder / "image.png")
    model = TrainedModel.load(folder / "out")
    assert model.network == "module:clinic.small"
    assert predict(folder / "out", str(folder / "image.png")).csv.count("\n") == 2
    assert len(said) == 10


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("Linear(128, classes)", "Linear(128, classes, bias=False)", "its sizes disagree"),
        ("nn.ReLU()", "nn.Linear(8, 8).requires_grad_(False)", "was trained with other layers or weights"),
        ("nn.ReLU()", "nn.Tanh()", "was trained with other layers or weights"),
        ("def small", "def smaller", "has no function small"),
        ("from torch", "from nowhere", "cannot be imported here"),
    ],
)
def test_a_model_is_loaded_with_its_own_function_alone(trained, old, new, why):
    folder, _ = trained
    (folder / "clinic.py").write_text((folder / "clinic.py").read_text().replace(old, new))
    sys.modules.pop("clinic")
    with pytest.raises(FedveilError, match=why):
        TrainedModel.load(folder / "out")


FIXED = """
import torch
from torch import nn

class Fixed(nn.Module):
    def __init__(self, classes):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        frozen = nn.Linear(256, 300, bias=False).requires_grad_(False)
        frozen.weight.copy_(torch.randn(300, 256, generator=generator) / 16)
        self.frozen, self.head = frozen, nn.Linear(300, classes)
        self.register_buffer("scale", torch.full((300,), 1.0), persistent=False)

    def forward(self, x):
        return self.head(torch.relu(self.frozen(x.flatten(1))) * self.scale)

def fixed(*, classes, channels, image_size):
    with torch.no_grad():
        return Fixed(classes)
"""


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A saved network of random features that its files do not hold."""
    (tmp_path / "elsewhere.py").write_text(FIXED)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = TrainedModel(
        features="none",
        network="module:elsewhere.fixed",
        image_size=16,
        channels=1,
        classes=("left", "right"),
        frequencies=np.array([0.5, 0.5]),
        parameters=np.random.default_rng(0).normal(size=2 + 602),
    )
    made.save(tmp_path)
    yield tmp_path
    sys.modules.pop("elsewhere", None)


@pytest.mark.parametrize(
    ("old", "new"), [("manual_seed(1)", "manual_seed(5)"), ("(300,), 1.0", "(300,), 2.0")]
)
def test_other_fixed_values_of_the_same_norms_are_refused(saved, old, new):
    """Another draw has the same norms to three digits, and buffers may be left out of a module's state."""
    assert TrainedModel.load(saved).parameters.shape == (604,)
    (saved / "elsewhere.py").write_text(FIXED.replace(old, new))
    sys.modules.pop("elsewhere")
    with pytest.raises(FedveilError, match="was trained with other layers or weights"):
        TrainedModel.load(saved)


def test_no_module_is_imported_for_another_study_or_a_name_that_no_study_could_have(saved, tmp_path):
    """A folder with model.json alone would otherwise choose what is imported."""
    sys.modules.pop("elsewhere")
    for text in ('network = "cnn"', 'network = "module:elsewhere.other"'):
        settings = f'[data]\nsource = "phantom"\nimage_size = 16\n[model]\n{text}\nstart = "{saved}"\n'
        study = Study.parse(settings + "[privacy]\nepsilon = 1\n")
        for load in (
            lambda one: load_start(one, prepare(one).dataset),
            lambda one: start_matches(one, ("a", "b")),
        ):
            with pytest.raises(
                FedveilError, match=r"was trained with 'module:elsewhere\.fixed' as model\.network"
            ):
                load(study)
    described = json.loads((saved / "model.json").read_text())
    for name in (
        "module:elsewhere.fixed\n",
        "module:else-where.fixed",
        "module:" + "a" * 200 + ".b",
        ["module:a.b"],
    ):
        (saved / "model.json").write_text(json.dumps(described | {"network": name}))
        with pytest.raises(FedveilError, match=r"is damaged"):
            TrainedModel.load(saved)
    assert "elsewhere" not in sys.modules


@pytest.mark.parametrize("outputs", [None, [], [[1.0, "x"]], {"a": 1}])
def test_a_saved_network_of_ones_own_needs_its_outputs(saved, outputs):
    described = json.loads((saved / "model.json").read_text()) | {"outputs": outputs}
    (saved / "model.json").write_text(json.dumps(described))
    with pytest.raises(FedveilError, match="was trained with other layers or weights"):
        TrainedModel.load(saved)
