"""`fedveil encoder`: add, check and scan, as a person runs them."""

import json
import re
from pathlib import Path

import pytest
from tests.learning.encoders.graphs import exported_file, onnx_file
from typer.testing import CliRunner

from fedveil.cli.main import app


def fedveil(*words: object, code: int = 0) -> str:
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == code, found.output
    return found.output


def test_add_says_what_it_stored_and_where(tmp_path: Path) -> None:
    file = tmp_path / "mine.onnx"
    file.write_bytes(onnx_file())
    said = fedveil("encoder", "add", file, "--site", tmp_path / "site")
    digest = re.search(r"sha256 +([0-9a-f]{64})", said)[1]
    assert (tmp_path / "site" / "encoders" / digest).read_bytes() == file.read_bytes()
    for words in ("onnx:mine.onnx", "3 x 32 x 32", "features   24", "one by one", "bit for bit"):
        assert words in said


def test_check_stores_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVEIL_ENCODERS", str(tmp_path / "encoders"))
    (tmp_path / "mine.pt2").write_bytes(exported_file())
    found = json.loads(fedveil("encoder", "check", tmp_path / "mine.pt2", "--json"))
    assert (found["kind"], found["dimension"], found["repeatable"]) == ("exported", 24, True)
    assert not (tmp_path / "encoders").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("encoder", "add", "none.onnx"), "cannot be read"),
        (("encoder", "add", "model.bin"), "must be a .onnx"),
        (("encoder", "check", "timm:no_such_network"), "knows no network"),
        (("encoder", "check", "x.onnx", "--device", "cuda:9"), "no CUDA device"),
        (("encoder", "check", "x.onnx", "--device", "tpu"), "must be auto"),
        (("encoder", "scan", "--data", "phantom", "--candidate", "nonsense"), "known extractors"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_done_is_said(words: tuple[str, ...], said: str) -> None:
    assert said in " ".join(fedveil(*words, code=2).split())


def test_scan_ranks_candidates() -> None:
    said = fedveil(
        "encoder", "scan", "--data", "phantom", "--size", 16, "--seeds", 1, "--epsilon", 8,
        "--candidate", "pixels@2", "--candidate", "scattering",
    )  # fmt: skip
    aurocs = [float(found) for found in re.findall(r"AUROC ([0-9.]+)", said)]
    assert len(aurocs) == 2
    assert said.splitlines()[-1].endswith('"scattering"' if aurocs[1] > aurocs[0] else '"pixels@2"')
