import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedveil.errors import StudyError
from fedveil.report import load, write_report
from fedveil.study.results.schema import SCHEMA

MakeRun = Callable[..., Path]


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_everything_that_was_written_is_read(make_run: MakeRun) -> None:
    record = load(make_run(images=60, rounds=6))
    assert record.guarantee is not None
    assert record.guarantee.trust == "secure-aggregation"
    assert [release.what for release in record.releases] == ["class counts", "training"]
    assert record.recomputed_epsilon == pytest.approx(record.guarantee.epsilon)
    assert record.predictions is not None
    assert record.predictions.probabilities.shape == (60, 2)
    assert [round_.number for round_ in record.rounds] == [1, 2, 3, 4, 5, 6]
    assert [head.seq for head in record.ledgers] == [7] * 5
    assert record.examples is not None
    assert record.provenance.packages["opacus"] == "1.5.4"


@pytest.mark.parametrize("name", ["result.json", "rounds.jsonl", "predictions.csv", "provenance.json"])
def test_an_incomplete_run_is_refused_with_the_remedy(make_run: MakeRun, name: str) -> None:
    run = make_run(images=20, rounds=2)
    (run / name).unlink()
    with pytest.raises(StudyError, match=rf"no {name}.*fedveil run --resume"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_path_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="not a directory"):
        load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", b'{"study": "a"'),
        ("result.json", b"[]"),
        ("result.json", b"[" * 100_000),
        ("result.json", b"\xff\xfe\x00"),
        ("rounds.jsonl", b'{"round": 1}\n{"rou'),
        ("provenance.json", b"null"),
        ("predictions.csv", b""),
        ("predictions.csv", b"image,patient,label,predicted\na,b,normal,normal\n"),
        ("predictions.csv", b"image,patient,label,predicted,prob:normal,prob:pneumonia\na,b,normal\n"),
        ("predictions.csv", b"image,patient,label,predicted,prob:normal,prob:pneumonia\na,b,normal,c,1,0\n"),
        (
            "predictions.csv",
            b"image,patient,label,predicted,prob:normal,prob:pneumonia\na,b,normal,normal,x,0\n",
        ),
        (
            "predictions.csv",
            b"image,patient,label,predicted,prob:normal,prob:pneumonia\na,b,normal,normal,2,0\n",
        ),
        ("examples.npz", b"not a zip"),
        ("ledgers/site-1.jsonl", b""),
        ("ledgers/site-1.jsonl", b'{"seq": 1}\n'),
    ],
)
def test_a_damaged_file_is_named(make_run: MakeRun, name: str, content: bytes) -> None:
    run = make_run(images=20, rounds=2)
    (run / name).write_bytes(content)
    with pytest.raises(StudyError, match=Path(name).name):
        load(run)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda result: result.pop("guarantee"), "guarantee"),
        (lambda result: result["guarantee"].update(epsilon=None), "epsilon"),
        (lambda result: result["guarantee"].update(epsilon=-1.0), "epsilon"),
        (lambda result: result["guarantee"].update(trust="everyone"), "trust"),
        (lambda result: result["releases"][0]["mechanism"].update(steps="many"), "steps"),
        (lambda result: result["secure_aggregation"].update(masks="perhaps"), "masks"),
        (lambda result: result["metrics"]["test"].update(auroc="high"), "auroc"),
        (lambda result: result["metrics"]["test"].update(auroc_interval=[1]), "auroc_interval"),
        (lambda result: result["metrics"]["test"].update(confusion=[[1, 2]]), "confusion"),
        (lambda result: result["metrics"]["test"].update(confusion=[["a"]]), "confusion"),
        (lambda result: result["sites"][0].update(images=-1), "images"),
        (lambda result: result["data"].update(synthetic="yes"), "synthetic"),
        (lambda result: result.update(notes=[1]), "notes"),
        (lambda result: result.update(sites=["a"]), "sites"),
    ],
)
def test_a_value_that_cannot_be_is_named(make_run: MakeRun, change: Any, named: str) -> None:
    run = make_run(images=20, rounds=2)
    edit(run / "result.json", change)
    with pytest.raises(StudyError, match=named):
        load(run)


def test_files_of_two_runs_are_not_mixed(make_run: MakeRun) -> None:
    run = make_run(images=20, rounds=2)
    lines = (run / "predictions.csv").read_text().splitlines()
    (run / "predictions.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(StudyError, match="disagree"):
        load(run)


def test_the_guarantee_is_never_dropped_unless_the_run_says_none(make_run: MakeRun) -> None:
    record = load(make_run(images=20, rounds=2, trust="none"))
    assert record.guarantee is None
    assert record.releases == ()
    assert math.isnan(record.recomputed_epsilon)


def test_without_listed_releases_the_mechanism_is_the_release(make_run: MakeRun) -> None:
    record = load(make_run(images=20, rounds=2, change=lambda result: result.pop("releases")))
    assert [release.what for release in record.releases] == ["training"]
    assert record.releases[0].mechanism.steps == 2


def test_a_ledger_is_read_by_its_own_site_only(make_run: MakeRun) -> None:
    run = make_run(images=20, rounds=2, change=lambda result: result["sites"][0].update(name="../provenance"))
    assert [head.site for head in load(run).ledgers] == ["site-2", "site-3", "site-4", "site-5"]


@pytest.mark.parametrize("wrong", ["dtype", "shape", "length", "pickle"])
def test_examples_of_another_shape_are_refused(make_run: MakeRun, wrong: str) -> None:
    run = make_run(images=40, rounds=2)
    with np.load(run / "examples.npz") as file:
        arrays = {name: file[name] for name in file.files}
    match wrong:
        case "dtype":
            arrays["images"] = arrays["images"].astype(float)
        case "shape":
            arrays["images"] = arrays["images"][..., None]
        case "length":
            arrays["names"] = arrays["names"][:-1]
        case "pickle":
            arrays["names"] = np.array([{"a": 1}] * len(arrays["names"]), dtype=object)
    np.savez(run / "examples.npz", **arrays)
    with pytest.raises(StudyError, match=r"examples\.npz"):
        load(run)


def test_a_result_of_a_version_with_other_releases_is_read_and_priced(make_run: MakeRun) -> None:
    """Phases of training and checks of progress are gone; what they cost is not."""
    run = make_run(images=20, rounds=2)
    before = load(run).recomputed_epsilon

    def change(result: dict[str, Any]) -> None:
        phase = {"what": "training-2", "mechanism": result["releases"][1]["mechanism"]}
        result["releases"].append(phase)
        result["progress"] = [{"round": 1, "accuracy": 0.9, "std": 0.1}]

    edit(run / "result.json", change)
    record = load(run)
    assert [release.what for release in record.releases][-1] == "training-2"
    assert record.recomputed_epsilon > before
    assert "training-2" in write_report(run).read_text()


def test_a_result_of_a_newer_version_is_refused(make_run: MakeRun) -> None:
    run = make_run(images=20, rounds=2, change=lambda result: result.update(schema=SCHEMA + 1))
    with pytest.raises(StudyError, match=r"result\.json: schema is 3"):
        load(run)
