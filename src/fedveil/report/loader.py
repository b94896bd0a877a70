"""From a run directory to a `RunRecord`: reads its files and checks that they belong together."""

import csv
import hashlib
import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedveil.errors import StudyError
from fedveil.privacy import Guarantee, Mechanism, epsilon, operational_risk
from fedveil.report.reading import REMEDY, Fields, read_json, read_json_lines, read_text
from fedveil.report.records import (
    ClassMetrics,
    DataFacts,
    Examples,
    LedgerHead,
    Metrics,
    Predictions,
    ProgressCheck,
    Provenance,
    Release,
    Round,
    RunRecord,
    SecureAggregation,
    SiteResult,
)

__all__ = ["load"]

PROBABILITY = "prob:"
SCORE = "score:"


def load(path: Path) -> RunRecord:
    """Read a complete run directory.

    Optional are ledgers/, examples.npz, and with a result that holds no test metrics predictions.csv.

    Raises:
        StudyError: it is not a run directory, is not complete, is damaged, or mixes the files of two runs.
    """
    if not path.is_dir():
        raise StudyError(
            f"{path} is not a directory",
            "a report is made from a run directory",
            "give the directory that `fedveil run` made",
        )
    result = read_json(path / "result.json")
    guarantee = _guarantee(result)
    releases = _releases(result) if guarantee else ()
    mechanisms = [release.mechanism for release in releases]
    sites = tuple(_site(site) for site in result.children("sites"))
    test = _test(result)
    return RunRecord(
        path=path,
        digest=hashlib.sha256((path / "result.json").read_bytes()).hexdigest(),
        study=result.text("study"),
        description=result.text("description", ""),
        guarantee=guarantee,
        releases=releases,
        recomputed_epsilon=epsilon(mechanisms, guarantee.delta) if guarantee else math.nan,
        risk=operational_risk(guarantee, mechanisms) if guarantee else None,
        secure_aggregation=_secure_aggregation(result) if guarantee else None,
        sites=sites,
        test=test,
        released=_test(result, "released"),
        baselines={name: _metrics(metrics) for name, metrics in result.named("baselines")},
        data=_data(result.child("data")) if result.has("data") else None,
        notes=result.texts("notes"),
        seconds=_seconds(result),
        rounds=_rounds(path, result),
        progress=tuple(
            ProgressCheck(one.integer("round"), one.number("accuracy"), one.number("std"))
            for one in result.children("progress")
        ),
        predictions=_predictions(path / "predictions.csv", test) if test else None,
        ledgers=_ledgers(path / "ledgers", sites),
        provenance=_provenance(read_json(path / "provenance.json")),
        examples=_examples(path / "examples.npz"),
    )


def _rounds(path: Path, result: Fields) -> tuple[Round, ...]:
    """The rounds of training; a model that is made from statistics alone had none, and logged none."""
    if result.has("rounds") and result.integer("rounds") == 0:
        return ()
    return tuple(_round(line) for line in read_json_lines(path / "rounds.jsonl"))


def _guarantee(result: Fields) -> Guarantee | None:
    """None where the study ran without privacy, and only where it says so."""
    stated = result.child("guarantee")
    return None if stated.text("trust") == "none" else stated.parse(Guarantee.from_dict)


def _releases(result: Fields) -> tuple[Release, ...]:
    """What was released; a result that names no releases made the one that its mechanism describes."""
    listed = tuple(
        Release(entry.text("what"), entry.child("mechanism").parse(Mechanism.from_dict))
        for entry in result.children("releases")
    )
    return listed or (Release("training", result.child("mechanism").parse(Mechanism.from_dict)),)


def _secure_aggregation(result: Fields) -> SecureAggregation | None:
    if not result.has("secure_aggregation"):
        return None
    fields = result.child("secure_aggregation")
    masks = fields.text("masks")
    if masks not in ("real", "simulated"):
        raise StudyError(
            f"{fields.where} has masks = {masks[:60]!r}", 'it must be "real" or "simulated"', REMEDY
        )
    return SecureAggregation(
        masks == "simulated", fields.integer("min_honest"), fields.integer("participants")
    )


def _test(result: Fields, name: str = "test") -> Metrics | None:
    """None where the study had no test set, or released none."""
    metrics = result.child("metrics") if result.has("metrics") else Fields({}, "")
    return _metrics(metrics.child(name)) if metrics.has(name) else None


def _seconds(result: Fields) -> dict[str, float]:
    fields = result.child("seconds") if result.has("seconds") else Fields({}, "")
    return {name: fields.number(name, math.nan) for name in fields.values}


def _site(fields: Fields) -> SiteResult:
    counts = fields.child("class_counts") if fields.has("class_counts") else Fields({}, "")
    own = fields.child("personal") if fields.has("personal") else Fields({}, "")
    return SiteResult(
        name=fields.text("name"),
        epsilon_spent=fields.number("epsilon_spent", math.inf),
        epsilon_alone=fields.number("epsilon_alone", math.inf),
        patients=fields.integer("patients") if fields.has("patients") else None,
        images=fields.integer("images") if fields.has("images") else None,
        class_counts={name: counts.integer(name) for name in counts.values},
        personal_auroc=own.number("auroc", math.nan),
        personal_balanced_accuracy=own.number("balanced_accuracy", math.nan),
    )


def _metrics(fields: Fields) -> Metrics:
    majority = fields.child("majority") if fields.has("majority") else Fields({}, "")
    return Metrics(
        auroc=fields.number("auroc", math.nan),
        auroc_interval=fields.interval("auroc_interval"),
        balanced_accuracy=fields.number("balanced_accuracy", math.nan),
        balanced_accuracy_interval=fields.interval("balanced_accuracy_interval"),
        accuracy=fields.number("accuracy", math.nan),
        brier=fields.number("brier", math.nan),
        n=fields.integer("n", 0),
        threshold=fields.number("threshold", math.nan),
        majority_accuracy=majority.number("accuracy", math.nan),
        majority_balanced_accuracy=majority.number("balanced_accuracy", math.nan),
        confusion=_matrix(fields) if fields.has("confusion") else None,
        per_class=tuple(_class(entry) for entry in fields.children("per_class")),
    )


def _class(fields: Fields) -> ClassMetrics:
    return ClassMetrics(
        name=fields.text("name"),
        sensitivity=fields.number("sensitivity", math.nan),
        specificity=fields.number("specificity", math.nan),
        auroc=fields.number("auroc", math.nan),
        n=fields.integer("n", 0),
    )


def _matrix(fields: Fields) -> NDArray[np.int64]:
    try:
        matrix = np.array(fields.items("confusion"), dtype=np.int64)
    except (ValueError, TypeError, OverflowError):
        matrix = np.zeros(0, dtype=np.int64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.min(initial=0) < 0:
        raise StudyError(
            f"{fields.where} has a confusion that is not a square matrix of counts",
            "the file is damaged",
            REMEDY,
        )
    return matrix


def _data(fields: Fields) -> DataFacts:
    return DataFacts(
        name=fields.text("name", ""),
        description=fields.text("description", ""),
        synthetic=fields.flag("synthetic", False),
        patients_known=fields.flag("patients_known", True),
        classes=fields.texts("classes"),
        **{
            key: fields.integer(key) if fields.has(key) else None
            for key in ("images_train", "images_test", "patients_train", "patients_test")
        },
    )


def _round(fields: Fields) -> Round:
    test = fields.child("test") if fields.has("test") else Fields({}, "")
    return Round(
        number=fields.integer("round"),
        sites=fields.texts("sites"),
        dropped=tuple((entry.text("site"), entry.text("reason", "")) for entry in fields.children("dropped")),
        epsilon_spent=fields.number("epsilon_spent", math.inf),
        seconds=fields.number("seconds", math.nan),
        auroc=test.number("auroc", math.nan),
        balanced_accuracy=test.number("balanced_accuracy", math.nan),
    )


def _ledgers(folder: Path, sites: tuple[SiteResult, ...]) -> tuple[LedgerHead, ...]:
    found = {path.stem: path for path in folder.glob("*.jsonl")}
    return tuple(_ledger_head(site.name, found[site.name]) for site in sites if site.name in found)


def _ledger_head(site: str, path: Path) -> LedgerHead:
    lines = read_json_lines(path)
    if not lines:
        raise StudyError(f"ledgers/{path.name} is empty", "a ledger starts with the site's budget", REMEDY)
    return LedgerHead(site, lines[-1].integer("seq"), lines[-1].text("hash"))


def _provenance(fields: Fields) -> Provenance:
    packages = fields.child("packages") if fields.has("packages") else Fields({}, "")
    return Provenance(
        **{
            key: fields.text(key, "")
            for key in (
                "fedveil",
                "python",
                "platform",
                "device",
                "started",
                "finished",
                "data_digest",
                "study_digest",
            )
        },
        packages={name: packages.text(name, "") for name in packages.values},
    )


def _predictions(path: Path, test: Metrics) -> Predictions:
    rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
    header, body = (rows[0], rows[1:]) if rows else ([], [])
    classes = tuple(name.removeprefix(PROBABILITY) for name in header if name.startswith(PROBABILITY))
    expected = ["image", "patient", "label", "predicted", *(PROBABILITY + name for name in classes)]
    # Files of earlier versions end here; later ones add the scores that the prediction follows from.
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
    if test.n != len(body) or (
        test.confusion is not None and not np.array_equal(test.confusion, found.confusion)
    ):
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
