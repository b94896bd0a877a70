"""From a run directory to a `RunRecord`: reads its files and checks that they are consistent."""

import csv
import hashlib
import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedveil.audit.result import read_audit
from fedveil.errors import StudyError
from fedveil.privacy import epsilon, operational_risk
from fedveil.report.reading import REMEDY, read_json, read_json_lines, read_text
from fedveil.report.records import Examples, LedgerHead, Predictions, RunRecord
from fedveil.report.statements import read_statements
from fedveil.schema import Record
from fedveil.study import Study
from fedveil.study.results.schema import ModelMetrics, Provenance, Result, RoundLine, SiteResult

__all__ = ["load"]

PROBABILITY = "prob:"
SCORE = "score:"


def load(path: Path) -> RunRecord:
    """Read a complete run directory.

    Optional files: ledgers/, examples.npz, and, if the result has no test metrics, predictions.csv.

    Raises:
        StudyError: it is not a run directory, is incomplete or damaged, or mixes the files of two runs.
    """
    if not path.is_dir():
        raise StudyError(
            f"{path} is not a directory",
            "a report is made from a run directory",
            "give a directory that `fedveil run` made",
        )
    result = read_json(path / "result.json", Result)
    guarantee = None if result.guarantee.trust == "none" else result.guarantee
    mechanisms = [release.mechanism for release in result.releases]
    bounding = mechanisms if result.calibrated is None else list(result.calibrated.mechanisms)
    test, findings = result.metrics.test, result.data is not None and result.data.task == "findings"
    return RunRecord(
        path=path,
        digest=hashlib.sha256((path / "result.json").read_bytes()).hexdigest(),
        result=result,
        recomputed_epsilon=epsilon(mechanisms, guarantee.delta, adaptive=True) if guarantee else math.nan,
        risk=operational_risk(guarantee, bounding) if guarantee else None,
        rounds=_rounds(path, result),
        predictions=_predictions(path / "predictions.csv", test) if test and not findings else None,
        ledgers=_ledgers(path / "ledgers", result.sites),
        provenance=read_json(path / "provenance.json", Provenance),
        examples=_examples(path / "examples.npz"),
        audit=read_audit(path),
        governance=_governance(path / "study.toml"),
        statements=read_statements(path),
    )


def _governance(path: Path) -> tuple[tuple[str, str], ...]:
    """The stated part of the study's table of the same name."""
    if not path.exists():
        return ()
    stated = Study.load(path).governance
    texts = {
        "Controllers": "; ".join(stated.controllers),
        "Purpose": stated.purpose,
        "Legal basis": stated.legal_basis,
        "Retention": stated.retention,
        "Contact": stated.contact,
    }
    return tuple((label, text) for label, text in texts.items() if text)


def _rounds(path: Path, result: Result) -> tuple[RoundLine, ...]:
    """The rounds of training; a model made from statistics alone has none."""
    return () if result.rounds == 0 else tuple(read_json_lines(path / "rounds.jsonl", RoundLine))


class _LedgerLine(Record):
    """The part of a ledger's line that a report shows."""

    seq: int
    hash: str


def _ledgers(folder: Path, sites: tuple[SiteResult, ...]) -> tuple[LedgerHead, ...]:
    found = {path.stem: path for path in folder.glob("*.jsonl")}
    return tuple(_ledger_head(site.name, found[site.name]) for site in sites if site.name in found)


def _ledger_head(site: str, path: Path) -> LedgerHead:
    lines = read_json_lines(path, _LedgerLine)
    if not lines:
        raise StudyError(
            f"ledgers/{path.name} is empty", "a ledger must start with the site's budget", REMEDY
        )
    return LedgerHead(site, lines[-1].seq, lines[-1].hash)


def _predictions(path: Path, test: ModelMetrics) -> Predictions:
    rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
    header, body = (rows[0], rows[1:]) if rows else ([], [])
    classes = tuple(name.removeprefix(PROBABILITY) for name in header if name.startswith(PROBABILITY))
    expected = ["image", "patient", "label", "predicted", *(PROBABILITY + name for name in classes)]
    # Files of earlier versions end here; later ones add the scores that decide the prediction.
    scored = [*expected, *(SCORE + name for name in classes)]
    if header not in (expected, scored) or len(classes) < 2 or any(len(row) != len(header) for row in body):
        raise StudyError(
            f"{path.name} does not have the columns image,patient,label,predicted,prob:CLASS,...",
            "the file is damaged",
            REMEDY,
        )
    try:
        probabilities = np.array([row[4 : 4 + len(classes)] for row in body], dtype=np.float64).reshape(
            len(body), len(classes)
        )
        labels, predicted = (_codes([row[column] for row in body], classes) for column in (2, 3))
    except ValueError as error:
        raise StudyError(
            f"{path.name} holds an entry that cannot be read ({error})", "the file is damaged", REMEDY
        ) from None
    if not body or not np.isfinite(probabilities).all() or probabilities.min() < 0 or probabilities.max() > 1:
        raise StudyError(
            f"{path.name} has no rows, or probabilities outside 0 to 1", "the file is damaged", REMEDY
        )
    found = Predictions(classes, labels, predicted, probabilities, len({row[1] for row in body}))
    if test.n != len(body) or (test.matrix is not None and not np.array_equal(test.matrix, found.confusion)):
        raise StudyError(
            f"{path.name} and result.json disagree on the test set",
            "both must come from the same run",
            REMEDY,
        )
    return found


def _codes(names: list[str], classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Class names as indices."""
    index = {name: code for code, name in enumerate(classes)}
    unknown = next((name for name in names if name not in index), None)
    if unknown is not None:
        raise ValueError(f"class {unknown[:60]!r}")
    return np.array([index[name] for name in names], dtype=np.int64)


def _examples(path: Path) -> Examples | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, probability = arrays["images"], arrays["probability"].astype(np.float64)
            names, labels, predicted = (
                tuple(map(str, arrays[key].tolist())) for key in ("names", "labels", "predicted")
            )
    except Exception as error:  # noqa: BLE001  a damaged zip raises almost anything
        raise StudyError(
            f"{path.name} cannot be read ({error})", "the file is damaged", "delete it, or " + REMEDY
        ) from None
    grey_or_colour = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if (
        images.dtype != np.uint8
        or not grey_or_colour
        or not len(images) == len(names) == len(labels) == len(predicted) == len(probability)
    ):
        raise StudyError(
            f"{path.name} does not hold images uint8 (k, H, W[, 3]) with a name, label, prediction and "
            "probability each",
            "the file is damaged",
            "delete it, or " + REMEDY,
        )
    return Examples(images, names, labels, predicted, tuple(map(float, probability.tolist())))
