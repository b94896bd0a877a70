"""A study with an encoder that is not built in, at a hospital: its hash is shown, and nothing else computes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.deploy.hospital import STUDY, Hospital
from tests.learning.encoders.graphs import onnx_file
from typer.testing import CliRunner

from fedveil.cli.main import app
from fedveil.deploy.offer import Offer
from fedveil.errors import FedveilError
from fedveil.federation import Reply
from fedveil.learning.encoders.external import Store
from fedveil.learning.encoders.external.extractor import _computing
from fedveil.study import TrainedModel


@pytest.fixture
def hospital(
    make_hospital: Callable[..., Hospital], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Hospital:
    """Offered a study whose encoder the coordinator has, and this hospital has not."""
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEDVEIL_ENCODERS", str(tmp_path / "coordinator-encoders"))
    (tmp_path / "mine.onnx").write_bytes(onnx_file())
    template = STUDY.replace('"pixels"', f'"onnx:{tmp_path / "mine.onnx"}"')
    made = make_hospital(approve=False, template=template)
    monkeypatch.delenv("FEDVEIL_ENCODERS")
    return made


def run(hospital: Hospital, *words: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, [str(word) for word in words])
    return found.exit_code, " ".join(found.output.split())


def test_a_site_approves_and_computes_with_exactly_the_encoder_that_it_is_shown(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = hospital.offer.study.model.encoder.spec(hospital.offer.study.model.features)
    assert spec is not None
    assert hospital.offer.study.model.features == "onnx:mine.onnx"
    approve = (
        "site",
        "approve",
        hospital.agreement.digest,
        hospital.folder,
        "--yes",
        "--by",
        "A",
        "--role",
        "B",
    )
    code, said = run(hospital, *approve)
    assert (code, spec.sha256 in said) == (2, True)
    assert "NOT registered here" in said
    other = tmp_path / "other.onnx"
    other.write_bytes(onnx_file(output="r0"))
    assert run(hospital, "encoder", "add", other, "--site", hospital.folder)[0] == 0
    assert run(hospital, *approve)[0] == 2
    assert run(hospital, "encoder", "add", tmp_path / "mine.onnx", "--site", hospital.folder)[0] == 0
    code, said = run(hospital, *approve)
    assert code == 0, said
    assert "; registered here" in said
    monkeypatch.setenv("FEDVEIL_ENCODERS", str(hospital.folder / "encoders"))
    assert isinstance(hospital.round(), Reply)
    task = hospital.service._cohorts.task(hospital.offer)
    assert np.asarray(task.features).std() > 0  # type: ignore[attr-defined]


def test_an_altered_encoder_is_found_before_approval(hospital: Hospital, tmp_path: Path) -> None:
    run(hospital, "encoder", "add", tmp_path / "mine.onnx", "--site", hospital.folder)
    (stored,) = (hospital.folder / "encoders").iterdir()
    stored.write_bytes(stored.read_bytes() + b"\0")
    code, said = run(
        hospital,
        "site",
        "approve",
        hospital.agreement.digest,
        hospital.folder,
        "--yes",
        "--by",
        "A",
        "--role",
        "B",
    )
    assert code == 2
    assert "was altered" in said


def test_the_digest_covers_the_hash_and_an_offer_without_one_is_refused(hospital: Hospital) -> None:
    """A path that a coordinator names is never opened here."""
    offer = hospital.offer
    encoder = offer.study.model.encoder

    def changed(**values: object) -> Offer:
        model = offer.study.model.model_copy(update={"encoder": encoder.model_copy(update=values)})
        return replace(offer, study=offer.study.model_copy(update={"model": model}))

    assert changed(sha256="0" * 64).agreement().digest != offer.agreement().digest
    with pytest.raises(FedveilError, match="hash and length are not known"):
        changed(sha256="", lengths=()).agreement()


def test_a_model_on_an_encoder_predicts_where_the_encoder_is(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer = hospital.offer
    empty = TrainedModel.of(offer.study, classes=offer.classes, channels=1, parameters=np.zeros(0))
    replace(empty, parameters=np.full(empty.model.parameters, 0.5)).save(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8), dtype=np.uint8)
    monkeypatch.setenv("FEDVEIL_ENCODERS", str(tmp_path / "coordinator-encoders"))
    assert TrainedModel.load(tmp_path).predict_proba(pixels).shape == (3, 2)
    monkeypatch.setenv("FEDVEIL_ENCODERS", str(tmp_path / "nowhere"))
    _computing.cache_clear()  # as in a new process
    assert not Store().has(offer.study.model.encoder.sha256)
    with pytest.raises(FedveilError, match="is not registered here"):
        TrainedModel.load(tmp_path).predict_proba(np.full((1, 8, 8), 7, np.uint8))
